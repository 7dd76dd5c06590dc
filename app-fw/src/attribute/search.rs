//! The thorough way from a flow to its owners.

use std::io;
use std::sync::Arc;

use shared::{Cause, Protocol};
use smallvec::{SmallVec, smallvec};
use syscall_probe::{Creator, Generations, Holders, SocketEnds, SocketRecord, SocketTable, Writer, Writers};

use super::census::{Census, is_raw, may_send};
use super::diag::{Diag, Socket, Tuple, state};
use super::{Endpoint, Holder, Means, Origin, Owners, Stamp, Suspect, descriptors, without_socket};
use crate::image::{ProcDir, Process};
use crate::namespaces::{Namespace, NamespaceId};

/// Finds owners. One for each thread that searches.
pub struct Search {
    /// The probe's generations, if it runs.
    pub generations: Option<Generations>,
    /// Who made which socket.
    pub sockets: Option<SocketTable>,
    /// Who holds which socket; without it /proc tells.
    pub iterator: Option<Holders>,
    /// The raw sockets there are.
    pub census: Census,
    /// For the namespace asked about last.
    diag: Option<(NamespaceId, Diag)>,
    /// A process that likely holds the socket that is asked about.
    likely: Option<Process>,
}

/// An answer in the making.
#[derive(Default)]
struct Found {
    holders: SmallVec<[Holder; 1]>,
    undetermined: Option<Cause>,
    cookies: SmallVec<[u64; 1]>,
    /// Something about it could change without any generation moving.
    fleeting: bool,
}

impl Found {
    fn undetermined(cause: Cause) -> Found {
        Found { undetermined: Some(cause), fleeting: true, ..Found::default() }
    }

    /// "Nobody" is never kept: no generation tells when somebody comes.
    fn nobody() -> Found {
        Found { fleeting: true, ..Found::default() }
    }

    /// What was true of a socket before it was closed.
    fn last(owners: &Owners) -> Found {
        Found { holders: owners.holders.clone(), undetermined: None, cookies: owners.cookies.clone(), fleeting: true }
    }

    fn add_writers(&mut self, writers: Written) {
        if writers.more {
            self.undetermined = self.undetermined.or(Some(Cause::HoldersGone));
            self.fleeting = true;
        }
        for writer in writers.known {
            match self.holders.iter_mut().find(|known| known.process == writer.process) {
                Some(known) => known.wrote = writer.wrote,
                None => self.holders.push(writer),
            }
        }
    }

    fn add(&mut self, holders: impl IntoIterator<Item = Holder>) {
        for holder in holders {
            match self.holders.iter_mut().find(|known| known.process == holder.process) {
                // Of several sockets the one counts that was made first.
                Some(known) => {
                    known.since = known.since.min(holder.since);
                    known.wrote = known.wrote.or(holder.wrote);
                }
                None => self.holders.push(holder),
            }
        }
    }
}

/// Who wrote into sockets.
#[derive(Default)]
struct Written {
    known: Vec<Holder>,
    /// Others too.
    more: bool,
}

/// A socket whose holders are looked for.
#[derive(Clone, Copy)]
struct Sought<'a> {
    inode: u64,
    ends: SocketEnds,
    namespace: &'a Namespace,
}

impl<'a> Sought<'a> {
    fn described(socket: &Socket, protocol: Protocol, namespace: &'a Namespace) -> Sought<'a> {
        let Tuple { local, local_port, remote, remote_port } = socket.tuple;
        let protocol = u16::from(protocol.0);
        let ends = SocketEnds { cookie: socket.cookie, protocol, local, local_port, remote, remote_port };
        Sought { inode: socket.inode, ends, namespace }
    }

    fn listed(record: &SocketRecord, namespace: &'a Namespace) -> Sought<'a> {
        Sought { inode: record.inode, ends: SocketEnds::from(record), namespace }
    }

    /// Its descriptors in one process.
    fn in_process(&self, iterator: &Holders, tgid: u32, out: &mut Vec<SocketRecord>) -> io::Result<()> {
        if self.by_file(iterator, tgid, out)? {
            return Ok(());
        }
        iterator.of_process(tgid, out)?;
        out.retain(|record| record.inode == self.inode);
        Ok(())
    }

    /// Its descriptors in one process, or in all, if the kernel finds its open file by its ends.
    fn by_file(&self, iterator: &Holders, tgid: u32, out: &mut Vec<SocketRecord>) -> io::Result<bool> {
        let mut list = || iterator.of_socket(&self.ends, tgid, out);
        if self.namespace.is_own() { list() } else { self.namespace.inside(list)? }
    }
}

/// The processes of a list that hold a socket.
struct Accounted {
    holders: Vec<Holder>,
    /// Nobody else holds it.
    complete: bool,
    /// Nobody can get it without a generation moving.
    settled: bool,
}

impl Search {
    /// A search with what the probe has to offer.
    pub fn new(
        generations: Option<Generations>,
        sockets: Option<SocketTable>,
        iterator: Option<Holders>,
        census: Census,
    ) -> Search {
        Search { generations, sockets, iterator, census, diag: None, likely: None }
    }

    /// Every process that holds a socket the flow may belong to. `previous` is an earlier answer for the same flow: a
    /// socket that has been closed since, and goes on sending, belongs to those who held it last. `likely`: who to look at
    /// before all others.
    pub fn owners(
        &mut self,
        endpoint: &Endpoint,
        namespace: &Arc<Namespace>,
        previous: Option<&Owners>,
        likely: Option<Process>,
    ) -> Owners {
        self.likely = likely;
        let wide = self.generations.as_ref().map_or(0, Generations::wide);
        let stamp = self.generations.as_ref().and_then(|generations| Stamp::read(generations, endpoint));
        let found = match endpoint.protocol {
            Protocol::TCP => self.tcp(endpoint, namespace, previous),
            Protocol::UDP | Protocol::UDPLITE => self.datagram(endpoint, namespace, previous),
            _ => self.other(endpoint, namespace, previous),
        };
        if !namespace.is_own() {
            self.diag = None;
        }
        let mut found = found.unwrap_or_else(|error| {
            tracing::debug!("cannot ask about sockets: {error}");
            Found::undetermined(Cause::NoDiagnostics)
        });
        // Who let go of a socket before its holders were looked for has written before.
        let writers = self.writers(endpoint, &found.cookies);
        found.add_writers(writers);
        for holder in &mut found.holders {
            // A connection that was accepted comes from a socket of the same flow's earlier answer.
            let earlier = previous.into_iter().flat_map(|previous| &previous.holders);
            let mut earlier = earlier.filter(|earlier| earlier.process == holder.process);
            holder.since = holder.since.or_else(|| earlier.next()?.since);
        }
        Owners {
            // Absence is never kept: no generation says when somebody comes.
            stamp: stamp.filter(|_| !found.fleeting && !found.holders.is_empty()),
            wide,
            holders: found.holders,
            undetermined: found.undetermined,
            cookies: found.cookies,
        }
    }

    fn tcp(&mut self, endpoint: &Endpoint, namespace: &Arc<Namespace>, previous: Option<&Owners>) -> io::Result<Found> {
        let diag = diag_in(&mut self.diag, namespace)?;
        if self.generations.as_ref().is_none_or(|all| all.is_ambiguous(endpoint.tuple.local_port)) {
            let mut alike = Vec::new();
            list_at(diag, endpoint, state::ALL, &mut alike)?;
            alike.retain(|socket| socket.inode != 0 && socket.tuple == endpoint.tuple);
            if alike.len() > 1 {
                return self.holders(endpoint, namespace, &alike, previous);
            }
        }
        let Some(socket) = diag.find(Protocol::TCP, &endpoint.tuple, endpoint.device)? else {
            // Bound to an interface that was not named, perhaps; or gone.
            return self.by_ends(endpoint, namespace, previous);
        };
        if socket.inode != 0 && !matches!(socket.state, state::LISTEN | state::SYN_RECV) {
            return self.holders(endpoint, namespace, &[socket], previous);
        }
        if let (state::TIME_WAIT, Some(means)) = (socket.state, self.means()) {
            return Ok(Found::last(&means.time_wait(socket.cookie, previous)));
        }
        if let Some(last) = self.means().and_then(|means| means.last_holders(socket.cookie, previous)) {
            return Ok(Found::last(&last));
        }
        if socket.state == state::TIME_WAIT {
            return Ok(Found::nobody());
        }
        // A handshake, or a connection that nobody has accepted yet: whoever listens may take it. Any other socket that
        // no file holds was closed, and those who held it are not known.
        let unaccepted = matches!(socket.state, state::SYN_RECV | state::ESTABLISHED | state::CLOSE_WAIT)
            && self.maker(socket.cookie).is_none();
        let mut listeners = Vec::new();
        if unaccepted || socket.state == state::LISTEN {
            let diag = diag_in(&mut self.diag, namespace)?;
            list_at(diag, endpoint, 1 << state::LISTEN, &mut listeners)?;
        }
        if listeners.is_empty() {
            return Ok(Found { cookies: smallvec![socket.cookie], ..Found::undetermined(Cause::HoldersGone) });
        }
        let mut found = self.holders(endpoint, namespace, &listeners, previous)?;
        found.fleeting |= socket.state != state::LISTEN;
        Ok(found)
    }

    /// Any socket with the local port may send a datagram to anywhere, and most receive from anywhere: remote ends do
    /// not tell them apart.
    fn datagram(
        &mut self,
        endpoint: &Endpoint,
        namespace: &Arc<Namespace>,
        previous: Option<&Owners>,
    ) -> io::Result<Found> {
        let mut sockets = Vec::new();
        list_at(diag_in(&mut self.diag, namespace)?, endpoint, state::ALL, &mut sockets)?;
        if sockets.is_empty() {
            Ok(self.absent(endpoint, previous))
        } else {
            self.holders(endpoint, namespace, &sockets, previous)
        }
    }

    /// Protocols that diagnostics do not know: ICMP echo sockets and raw sockets, SCTP and the like.
    fn other(&mut self, endpoint: &Endpoint, namespace: &Namespace, previous: Option<&Owners>) -> io::Result<Found> {
        if endpoint.origin == Origin::Kernel {
            // Neighbour discovery, ICMP errors, IGMP reports: the kernel's own.
            return Ok(self.absent(endpoint, previous));
        }
        let records = self.dump()?;
        let found = self.matching(&records, namespace, |record| {
            is_in(record, endpoint)
                && (may_send(record, endpoint.protocol) || (is_protocol(record, endpoint) && is_here(record, endpoint)))
        });
        Ok(found.unwrap_or_else(|| self.absent(endpoint, previous)))
    }

    /// Looks at every open socket for one with these ends.
    fn by_ends(&mut self, endpoint: &Endpoint, namespace: &Namespace, previous: Option<&Owners>) -> io::Result<Found> {
        if !endpoint.may_be_made() {
            return Ok(self.absent(endpoint, previous));
        }
        let records = self.dump()?;
        let Tuple { remote, remote_port, .. } = endpoint.tuple;
        let found = self.matching(&records, namespace, |record| {
            is_in(record, endpoint)
                && (may_send(record, endpoint.protocol)
                    || is_protocol(record, endpoint)
                        && is_here(record, endpoint)
                        && record.remote_port == remote_port
                        && record.remote.to_canonical() == remote)
        });
        Ok(found.unwrap_or_else(|| self.absent(endpoint, previous)))
    }

    /// There is no socket. Then either the kernel made the packet, or its socket is gone already.
    fn absent(&self, endpoint: &Endpoint, previous: Option<&Owners>) -> Found {
        let last = match (&self.generations, endpoint.origin) {
            (None, _) | (_, Origin::Process { .. }) => Found::nobody(),
            (Some(generations), _) => Found::last(&without_socket(generations, previous)),
        };
        if last.holders.is_empty() && endpoint.may_be_made() { Found::undetermined(Cause::SocketGone) } else { last }
    }

    /// All holders of all of `sockets`, and of the raw sockets that might have made the packet.
    fn holders(
        &self,
        endpoint: &Endpoint,
        namespace: &Namespace,
        sockets: &[Socket],
        previous: Option<&Owners>,
    ) -> io::Result<Found> {
        let mut found = Found { cookies: sockets.iter().map(|socket| socket.cookie).collect(), ..Found::default() };
        // Not only afterwards: they are forgotten when the connection ends, which may be while its holders are looked for.
        let writers = self.writers(endpoint, &found.cookies);
        let forgers = endpoint.suspect.is_some();
        let mut open = Vec::new();
        for socket in sockets {
            let sought = Sought::described(socket, endpoint.protocol, namespace);
            if socket.inode == 0 {
                // The kernel's own (a tunnel, an RPC server), or closed just now.
                found.undetermined = endpoint.may_be_made().then_some(Cause::HoldersGone).or(found.undetermined);
                found.fleeting = true;
            } else if let Some(holder) = self.means().and_then(|means| means.sole_maker(socket.cookie)) {
                found.add([holder]);
            } else if let Some(all) = self.likely_holders(sought, previous).or_else(|| self.holders_by_file(sought)) {
                found.fleeting |= !all.settled;
                found.add(all.holders);
            } else {
                open.push(sought);
            }
        }
        let records = if open.is_empty() && !forgers { Vec::new() } else { self.dump()? };
        for sought in open {
            self.holders_listed(&records, sought, &mut found);
        }
        if forgers {
            let forgers = |record: &&SocketRecord| {
                is_in(record, endpoint)
                    && match endpoint.suspect {
                        None => false,
                        Some(Suspect::Sender(tgid)) => is_raw(record) && record.tgid == tgid,
                        Some(Suspect::Anybody) => may_send(record, endpoint.protocol),
                    }
            };
            let before = found.holders.len();
            found.add(records.iter().filter(forgers).map(|record| self.holder(process_of(record))));
            found.fleeting |= found.holders.len() > before;
        }
        found.add_writers(writers);
        Ok(found)
    }

    /// All holders of a socket, if they are among the processes that come to mind: its maker, who held it before, who sent.
    fn likely_holders(&self, sought: Sought<'_>, previous: Option<&Owners>) -> Option<Accounted> {
        let maker = self.maker(sought.ends.cookie).map(|maker| maker.process);
        let mut likely: Vec<Process> = maker.into_iter().chain(self.likely).collect();
        likely.extend(previous.into_iter().flat_map(|previous| &previous.holders).map(|holder| holder.process));
        likely.sort_unstable();
        likely.dedup();
        self.accounted(sought, &likely).filter(|accounted| accounted.complete)
    }

    /// All holders of a socket, if all of them hold it by a descriptor.
    fn holders_by_file(&self, sought: Sought<'_>) -> Option<Accounted> {
        let mut records = Vec::new();
        sought.by_file(self.iterator.as_ref()?, 0, &mut records).ok().filter(|found| *found)?;
        self.accounted(sought, &processes_of(&records)).filter(|accounted| accounted.complete)
    }

    /// Whoever wrote into these sockets: owners for the rest of them, holders or not. None where the sender is known.
    fn writers(&self, endpoint: &Endpoint, cookies: &[u64]) -> Written {
        let mut all = Written::default();
        let Some(Means { sockets, generations }) = self.means() else { return all };
        if endpoint.protocol != Protocol::TCP && endpoint.origin != Origin::Unknown {
            return all;
        }
        for cookie in cookies {
            let writers = sockets.writers(*cookie).unwrap_or_else(|_| Writers { known: Vec::new(), more: true });
            let lost = generations.lost_writers();
            let none_lost = |maker: Creator| maker.lost_writers == lost;
            let all_noted = lost == 0 || self.is_soles(*cookie) || self.creator(*cookie).is_some_and(none_lost);
            all.more |= writers.more || !all_noted;
            let writer = |writer: &Writer| Holder {
                wrote: Some(writer.wrote),
                ..self.holder(Process::new(writer.tgid, writer.start))
            };
            all.known.extend(writers.known.iter().map(writer));
        }
        all
    }

    /// Whether nobody but its maker ever had the socket.
    fn is_soles(&self, cookie: u64) -> bool {
        self.means().is_some_and(|means| means.sole_maker(cookie).is_some())
    }

    fn means(&self) -> Option<Means<'_>> {
        Some(Means { sockets: self.sockets.as_ref()?, generations: self.generations.as_ref()? })
    }

    /// Those of `processes` that hold the socket. `None`: nobody, or that cannot be told here.
    fn accounted(&self, sought: Sought<'_>, processes: &[Process]) -> Option<Accounted> {
        let (generations, iterator) = (self.generations.as_ref()?, self.iterator.as_ref()?);
        let mut records = Vec::new();
        let mut holders = Vec::new();
        let (mut references, mut descriptors, mut countable, mut settled) = (0, 0, true, true);
        for process in processes {
            // Before the look: whoever passes the socket on afterwards moves it.
            let generation = generations.process(process.tgid);
            records.clear();
            sought.in_process(iterator, process.tgid, &mut records).ok()?;
            let before = descriptors;
            for record in records.iter().filter(|record| record.inode == sought.inode && process_of(record) == *process)
            {
                references = record.file_refs;
                descriptors += 1;
                // A datagram socket that shares its port may get company which no hook sees come.
                settled &= !record.reuse || record.protocol == u16::from(Protocol::TCP.0);
                countable &= !record.shared_table;
            }
            if descriptors > before {
                settled &= generation.settled;
                let maker = self.maker(sought.ends.cookie).filter(|maker| maker.process == *process);
                let since = maker.and_then(|maker| maker.since);
                holders.push(Holder { process: *process, generation: generation.value, since, wrote: None });
            }
        }
        let complete = countable && references == descriptors;
        (!holders.is_empty()).then_some(Accounted { holders, complete, settled: complete && settled })
    }

    /// Adds all processes of the list `records` that hold a socket.
    fn holders_listed(&self, records: &[SocketRecord], sought: Sought<'_>, found: &mut Found) {
        let mut processes = processes_of(records.iter().filter(|record| record.inode == sought.inode));
        if let Some(accounted) = self.accounted(sought, &processes) {
            found.fleeting |= !accounted.settled;
            // Those that gave it up between the two looks stay: the packet may be theirs.
            processes.retain(|process| !accounted.holders.iter().any(|holder| holder.process == *process));
            found.fleeting |= !processes.is_empty();
            found.add(accounted.holders);
            if processes.is_empty() {
                return;
            }
        } else {
            found.fleeting = true;
        }
        if processes.is_empty() {
            // Held, but by no descriptor: under way in a message, or registered with an io_uring.
            processes.extend(self.maker(sought.ends.cookie).map(|maker| maker.process));
            // A maker that just ended closed it in between; else somebody unseen holds it.
            if processes.first().is_none_or(|maker| ProcDir::open(*maker).is_ok()) {
                found.undetermined = Some(Cause::HoldersGone);
            }
        }
        found.add(processes.into_iter().map(|process| self.holder(process)));
    }

    /// The process that made a socket, if that is known.
    fn maker(&self, cookie: u64) -> Option<Holder> {
        Some(Holder::maker(&self.creator(cookie)?))
    }

    fn creator(&self, cookie: u64) -> Option<Creator> {
        self.sockets.as_ref()?.creator(cookie).ok()?
    }

    fn holder(&self, process: Process) -> Holder {
        let generation = self.generations.as_ref().map_or(0, |generations| generations.process(process.tgid).value);
        Holder { process, generation, since: None, wrote: None }
    }

    /// All holders of all sockets of `records` that `wanted` wants. `None`: there is no such socket.
    fn matching(
        &self,
        records: &[SocketRecord],
        namespace: &Namespace,
        wanted: impl Fn(&SocketRecord) -> bool,
    ) -> Option<Found> {
        let mut sockets: Vec<&SocketRecord> = records.iter().filter(|record| wanted(record)).collect();
        // Where /proc alone tells, there are no cookies.
        sockets.sort_unstable_by_key(|record| (record.inode, record.cookie));
        sockets.dedup_by_key(|record| (record.inode, record.cookie));
        let mut found = Found { cookies: sockets.iter().map(|record| record.cookie).collect(), ..Found::default() };
        for record in &sockets {
            self.holders_listed(records, Sought::listed(record, namespace), &mut found);
        }
        (!sockets.is_empty()).then_some(found)
    }

    /// Every open socket.
    fn dump(&self) -> io::Result<Vec<SocketRecord>> {
        let Some(iterator) = &self.iterator else { return descriptors::dump() };
        let list = || {
            let mut records = Vec::new();
            iterator.all(&mut records)?;
            Ok(records)
        };
        match &self.generations {
            Some(generations) => self.census.take(generations, list),
            None => list(),
        }
    }

    /// Counts the raw sockets, so that the packet path need not search while there are none.
    ///
    /// # Errors
    /// The kernel does not list sockets.
    pub fn count_raw_sockets(&self) -> io::Result<()> {
        self.dump().map(drop)
    }
}

fn process_of(record: &SocketRecord) -> Process {
    Process::new(record.tgid, record.start)
}

fn processes_of<'a>(records: impl IntoIterator<Item = &'a SocketRecord>) -> Vec<Process> {
    let mut processes: Vec<Process> = records.into_iter().map(process_of).collect();
    processes.sort_unstable();
    processes.dedup();
    processes
}

fn is_in(record: &SocketRecord, endpoint: &Endpoint) -> bool {
    u64::from(record.netns) == endpoint.namespace.inode
}

fn is_protocol(record: &SocketRecord, endpoint: &Endpoint) -> bool {
    record.protocol == u16::from(endpoint.protocol.0)
}

/// Whether the socket's local end is the flow's.
fn is_here(record: &SocketRecord, endpoint: &Endpoint) -> bool {
    let bound = Tuple { local: record.local, local_port: record.local_port, remote: record.remote, remote_port: 0 };
    record.local_port == endpoint.tuple.local_port && bound.is_at(endpoint.tuple.local, record.ipv6_only)
}

/// Sockets in any of `states` that are at the flow's local end.
fn list_at(diag: &mut Diag, endpoint: &Endpoint, states: u32, out: &mut Vec<Socket>) -> io::Result<()> {
    let Tuple { local, local_port, .. } = endpoint.tuple;
    if local.is_ipv4() {
        diag.list(endpoint.protocol, false, local_port, states, out)?;
    }
    diag.list(endpoint.protocol, true, local_port, states, out)?;
    // A socket that is bound to one local address may still send from another (IP_PKTINFO); the sender's user tells
    // whether it could have been this one.
    let may_lie = |socket: &Socket| {
        endpoint.protocol != Protocol::TCP
            && match endpoint.origin {
                Origin::Process { uid } => socket.uid == uid,
                Origin::Unknown => true,
                Origin::Elsewhere | Origin::Kernel => false,
            }
    };
    out.retain(|socket| socket.tuple.is_at(local, socket.ipv6_only) || may_lie(socket));
    Ok(())
}

/// A diagnostics socket in a namespace. Only the one for the daemon's own is kept: an open socket would keep a container's
/// namespace alive, and its devices with it.
fn diag_in<'a>(kept: &'a mut Option<(NamespaceId, Diag)>, namespace: &Namespace) -> io::Result<&'a mut Diag> {
    if kept.as_ref().is_none_or(|(id, _)| *id != namespace.id || !namespace.is_own()) {
        *kept = Some((namespace.id, namespace.inside(Diag::open)??));
    }
    kept.as_mut().map(|(_, diag)| diag).ok_or_else(|| io::ErrorKind::NotFound.into())
}
