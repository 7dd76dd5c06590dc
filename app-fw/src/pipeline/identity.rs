//! Who made a packet and what that is made of: the sender, the holders of the socket, and the image of each.

use std::sync::Arc;

use shared::{Cause, Chain, Ports, Protocol};
use smallvec::SmallVec;
use syscall_probe::{Generations, Sender};

use super::{Arrived, Attributed, Identity, Looked, Patience, Pipeline, Place, Whereabouts, Whose, line};
use crate::attribute::diag::Tuple;
use crate::attribute::{Endpoint, Holder, Means, Origin, Owners, Suspect, quick};
use crate::image::{Image, Process, Standing};
use crate::investigate::Question;
use crate::matcher::{Facts, Judgement, Made, Owner, Residual, View};
use crate::namespaces::NamespaceId;
use crate::packet::{About, Packet};

impl Pipeline {
    /// The process that sent the packet, if that is certain. It is for all that only system calls send: TCP alone also
    /// sends when a timer or another packet says so. But TCP leaves the checksum to the device, and raw sockets, which
    /// can send segments too, do not.
    pub(super) fn sender(&self, arrived: &Arrived, packet: &Packet) -> Option<Sender> {
        let by_call = packet.flow.protocol != Protocol::TCP || self.world.as_made && !arrived.checksum_missing;
        arrived.ran.filter(|_| arrived.left_held_socket && by_call)
    }

    /// Whose raw socket may have made a packet whose sender is not known.
    pub(super) fn suspect(&self, arrived: &Arrived, packet: &Packet) -> Option<Suspect> {
        let generations = self.world.generations.as_ref();
        let is_tcps_own = packet.flow.protocol == Protocol::TCP && self.world.as_made && arrived.checksum_missing;
        if self.world.chain == Chain::Input || is_tcps_own {
            return None;
        }
        let Some(generations) = generations else { return Some(Suspect::Anybody) };
        let (census, gone) = (&self.world.census, self.forger_may_be_gone(arrived));
        match (arrived.uid, arrived.ran.filter(|_| arrived.left_held_socket), arrived.place) {
            // A process sends through a socket that it holds; what nobody held, the kernel made.
            (None, _, Place::Here(_)) => None,
            (Some(_), Some(ran), Place::Here(_)) if gone || !census.clears(ran.tgid, generations) => {
                Some(Suspect::Sender(ran.tgid))
            }
            (Some(_), Some(_), Place::Here(_)) => None,
            _ => (gone || !census.is_clear(generations)).then_some(Suspect::Anybody),
        }
    }

    /// Whether a raw socket that was there when the packet was queued may not be there any more.
    fn forger_may_be_gone(&self, arrived: &Arrived) -> bool {
        let now = self.world.generations.as_ref().map(Generations::raw_sockets);
        arrived.ran.is_some_and(|ran| Some(ran.raw_sockets) != now)
    }

    /// Who holds the packet's socket, who sent it, and what they are made of.
    pub(super) fn identity(
        &mut self,
        arrived: &Arrived,
        packet: &Packet,
        sender: Option<&Sender>,
        suspect: Option<Suspect>,
        namespace: &Whereabouts,
        patience: Patience,
    ) -> Result<Identity, Question> {
        let mut owners = self.owners(arrived, packet, sender, suspect, namespace, patience)?;
        if suspect.is_some() && self.forger_may_be_gone(arrived) {
            owners = Arc::new(owners.and_somebody(Cause::SocketGone));
        }
        let sender = sender.map(|sender| (Process::new(sender.tgid, sender.start), sender));
        if let (Some((process, _)), Some(generations)) = (sender, &self.world.generations) {
            owners = Owners::and_sender(owners, process, generations);
        }
        if sender.is_some_and(|(_, sender)| sender.finished) {
            owners = Arc::new(owners.and_somebody(Cause::OtherProgram));
        }
        let (mut images, mut whose) = (SmallVec::with_capacity(owners.holders.len()), SmallVec::new());
        for holder in &owners.holders {
            let image = match sender {
                Some((process, sender)) if process == holder.process => {
                    self.image_then(arrived, holder, sender, patience)?
                }
                // It holds the socket; what it sent is its own packet's affair.
                Some(_) => self.image(arrived, holder, patience)?,
                None => self.image_if_its_work(arrived, holder, patience)?,
            };
            // After the image was read.
            whose.push(self.whose(arrived, holder, sender, &image));
            images.push(image);
        }
        Ok(Identity { owners, images, whose })
    }

    /// Whose the holder was when the packet was sent. What its sender was is known of the packet itself.
    fn whose(
        &mut self,
        arrived: &Arrived,
        holder: &Holder,
        sender: Option<(Process, &Sender)>,
        image: &Result<Arc<Image>, Cause>,
    ) -> Whose {
        let unknown = Whose { fleeting: true, ..Whose::default() };
        if !self.world.rules.load().asks_beyond_files() {
            return Whose::default();
        }
        let standing = image.as_ref().ok().and_then(|image| image.standing.as_ref());
        // Not asked for where the sender tells everything.
        let is_known_of = |pipeline: &mut Pipeline| {
            pipeline.world.chain == Chain::Input || pipeline.was_of_this_standing(arrived, holder)
        };
        match (sender, standing) {
            (Some((process, sender)), _) if process == holder.process => {
                let (uid, gid) = (Some(sender.uid), Some(sender.gid));
                if self.world.control_groups.is_some() {
                    let cgroup = self.control_group(sender.cgroup);
                    return Whose { uid, gid, fleeting: cgroup.is_none(), cgroup };
                }
                let cgroup = standing.filter(|_| is_known_of(self)).and_then(|standing| standing.cgroup.clone());
                Whose { uid, gid, fleeting: cgroup.is_none(), cgroup }
            }
            (Some(_), Some(standing)) => Whose::of(standing),
            (None, Some(standing)) if is_known_of(self) => Whose::of(standing),
            _ => unknown,
        }
    }

    /// The path of a control group of version 2. One that is gone has none any more.
    fn control_group(&mut self, id: u64) -> Option<Arc<str>> {
        if let Some(path) = self.control_groups.get(&id) {
            return Some(path.clone());
        }
        let path = self.world.control_groups.as_ref()?.path(id)?;
        self.control_groups.put(id, path.clone());
        Some(path)
    }

    /// Whether a packet whose sender is not known was surely made when its holder was whose it is now: like
    /// [`Pipeline::is_its_work`].
    fn was_of_this_standing(&mut self, arrived: &Arrived, holder: &Holder) -> bool {
        let Some(generations) = &self.world.generations else { return true };
        let since = generations.standing_since(holder.process.tgid);
        if since == 0 || holder.since.is_some_and(|made| made >= since) {
            return true;
        }
        match self.changes_of_standing.get(&holder.process) {
            Some((known, noticed)) if *known == since => arrived.round >= *noticed + 2,
            _ => {
                self.changes_of_standing.put(holder.process, (since, self.round));
                self.wants_rounds = true;
                false
            }
        }
    }

    /// What the process was made of when it sent the packet. If it has only got more since, it counts as made of all that.
    fn image_then(
        &mut self,
        arrived: &Arrived,
        holder: &Holder,
        sender: &Sender,
        patience: Patience,
    ) -> Result<Result<Arc<Image>, Cause>, Question> {
        let Some(generations) = &self.world.generations else { return self.image(arrived, holder, patience) };
        let asked = self.world.rules.load().asks_beyond_files();
        // What others of the same address space did to it moved no generation of this process.
        let was_changed = |generations: &Generations| sender.shared && generations.wide() != sender.wide;
        if let Some(Looked { found: Ok(image), .. }) = self.images.get(&holder.process)
            && image.was_true_at(sender.image, generations)
            && !was_changed(generations)
            && (!asked || image.beyond.is_some() && !sender.traced)
        {
            return Ok(Ok(image.clone()));
        }
        let found = self.image(arrived, holder, patience)?;
        // Asked after the image was read.
        let generations = self.world.generations.as_ref();
        let has_shed = generations
            .is_none_or(|generations| generations.shed(holder.process.tgid) != sender.shed || was_changed(generations));
        // Who traced it then may have made it send anything.
        let untraced = |image: &Arc<Image>| image.beyond.is_some_and(|beyond| beyond.traced_by.is_none());
        let lost_tracer = sender.traced && found.as_ref().is_ok_and(untraced);
        Ok(if has_shed || lost_tracer { found.and(Err(Cause::ImageChanged)) } else { found })
    }

    /// What the process is made of, if the packet is the work of the program it runs now.
    fn image_if_its_work(
        &mut self,
        arrived: &Arrived,
        holder: &Holder,
        patience: Patience,
    ) -> Result<Result<Arc<Image>, Cause>, Question> {
        let image = self.image(arrived, holder, patience)?;
        let is_its_work = self.world.chain == Chain::Input || self.is_its_work(arrived, holder);
        Ok(if is_its_work { image } else { Err(Cause::OtherProgram) })
    }

    fn owners(
        &mut self,
        arrived: &Arrived,
        packet: &Packet,
        sender: Option<&Sender>,
        suspect: Option<Suspect>,
        namespace: &Whereabouts,
        patience: Patience,
    ) -> Result<Arc<Owners>, Question> {
        let namespace = match namespace {
            Whereabouts::Here(namespace) | Whereabouts::Behind(namespace) => namespace,
            Whereabouts::Passing(_) | Whereabouts::Elsewhere(_) => return Ok(Arc::new(Owners::unowned())),
            Whereabouts::Lost(cause) => return Ok(Arc::new(Owners::undetermined(*cause))),
        };
        let Some(endpoint) = endpoint(self.world.chain, arrived, packet, suspect, namespace.id) else {
            return Ok(Arc::new(Owners::undetermined(Cause::LaterFragment)));
        };
        let generations = self.world.generations.as_ref();
        let mut previous = None;
        if let Some(Attributed { origin, suspect, looked, held }) = self.lines.get(&line(&endpoint)) {
            let holds = (looked.began >= arrived.at && *origin == endpoint.origin)
                || generations.is_some_and(|now| looked.found.check(now, false).is_ok());
            if holds && *suspect == endpoint.suspect {
                return Ok(looked.found.clone());
            }
            previous = held.clone();
        }
        if let (Origin::Kernel, true, Some(previous)) = (endpoint.origin, packet.is_bare, &previous) {
            return Ok(Arc::new(previous.of_last_words()));
        }
        if let (Place::Here(_), Some(generations), Some(sockets), Some(diag)) =
            (arrived.place, generations, &self.world.sockets, &mut self.diag)
            && let Some(found) = quick(&endpoint, diag, Means { sockets, generations }, previous.as_deref())
        {
            let found = Arc::new(found);
            self.learn_owners(&endpoint, Looked { began: arrived.at, found: found.clone() });
            return Ok(found);
        }
        match patience {
            Patience::Wait => {
                let likely = arrived.ran.map(|ran| Process::new(ran.tgid, ran.start));
                let with_image = sender.is_some() && likely.is_some_and(|process| self.images.get(&process).is_none());
                Err(Question::Owners { endpoint, namespace: namespace.clone(), previous, likely, with_image })
            }
            Patience::End(cause) => Ok(Arc::new(Owners::undetermined(cause))),
        }
    }

    fn image(
        &mut self,
        arrived: &Arrived,
        holder: &Holder,
        patience: Patience,
    ) -> Result<Result<Arc<Image>, Cause>, Question> {
        let generations = self.world.generations.as_ref();
        if let Some(looked) = self.images.get(&holder.process) {
            let asked = self.world.rules.load().asks_beyond_files();
            let is_current = |image: &Arc<Image>| {
                (!asked || image.beyond.is_some()) && generations.is_some_and(|now| image.is_current(now))
            };
            if looked.began >= arrived.at || looked.found.as_ref().is_ok_and(is_current) {
                return Ok(looked.found.clone());
            }
        }
        match patience {
            Patience::Wait => Err(Question::Image(holder.process)),
            Patience::End(cause) => Ok(Err(cause)),
        }
    }

    /// Whether the packet is surely the work of the program the process runs now, and not of one that it ran before.
    ///
    /// It is if the socket was made since; else if the packet was queued since. Packets tell no time, but one that was
    /// read after the queue had been read empty was queued after that reading began. So the first packets of a program
    /// that was started with an older socket stay in doubt; and all of a connection that a former program has written
    /// into, for nobody knows when that leaves.
    fn is_its_work(&mut self, arrived: &Arrived, holder: &Holder) -> bool {
        let exec = self.world.generations.as_ref().map_or(0, |generations| generations.exec(holder.process.tgid));
        if holder.wrote.is_some_and(|wrote| wrote != exec) {
            return false;
        }
        if exec == 0 || holder.since.is_some_and(|since| since >= exec) {
            return true;
        }
        match self.execs.get(&holder.process) {
            // The reading that was under way when the exec was noticed may have begun before it; the next one did not.
            Some((known, noticed)) if *known == exec => arrived.round >= *noticed + 2,
            _ => {
                self.note_exec(holder.process);
                false
            }
        }
    }

    /// Takes note that a process runs another program now. The sooner, the sooner its packets are beyond doubt.
    pub fn note_exec(&mut self, process: Process) {
        let exec = self.world.generations.as_ref().map_or(0, |generations| generations.exec(process.tgid));
        if self.execs.get(&process).is_none_or(|(known, _)| *known != exec) {
            self.execs.put(process, (exec, self.round));
        }
    }
}

impl Identity {
    /// Whoever holds the socket, for the rules.
    fn owners(&self) -> SmallVec<[Owner<'_>; 4]> {
        let undetermined = self.owners.undetermined.map(|_| Owner::Undetermined);
        let known = self.images.iter().zip(&self.whose).map(|(image, whose)| as_owner(image, whose));
        known.chain(undetermined).collect()
    }

    /// The only process that matters, if there is one.
    pub(super) fn sole(&self) -> Option<(&Arc<Image>, &Whose)> {
        match (&self.images[..], &self.whose[..], self.owners.undetermined) {
            ([Ok(image)], [whose], None) => Some((image, whose)),
            _ => None,
        }
    }
}

/// What the rules left to ask of a process's packets, with what that was derived from.
#[derive(Debug)]
pub(super) struct Asked {
    image: Arc<Image>,
    whose: Whose,
    view: Arc<View>,
    pub(super) residual: Arc<Residual>,
}

impl Asked {
    /// Whether it says what these rules left to ask of such a process.
    pub(super) fn is_of(&self, image: &Arc<Image>, whose: &Whose, view: &Arc<View>) -> bool {
        Arc::ptr_eq(&self.image, image) && Arc::ptr_eq(&self.view, view) && self.whose == *whose
    }
}

impl Pipeline {
    /// Has the rules judge a packet of these owners. What the rules say of a single owner is kept for the next packet.
    pub(super) fn judge(&mut self, view: &Arc<View>, facts: &Facts<'_>, identity: &Identity) -> Judgement {
        let owners = identity.owners();
        let Some((image, whose)) = identity.sole() else { return view.residual(&owners).judge(facts, &owners) };
        if let Some(asked) = self.of_rules.asked.get(&image.process)
            && asked.is_of(image, whose, view)
        {
            return asked.residual.judge(facts, &owners);
        }
        let residual = Arc::new(view.residual(&owners));
        let judgement = residual.judge(facts, &owners);
        let asked = Asked { image: image.clone(), whose: whose.clone(), view: view.clone(), residual };
        self.of_rules.asked.put(image.process, asked);
        judgement
    }
}

impl Whose {
    fn of(standing: &Standing) -> Whose {
        let Standing { uid, gid, cgroup, .. } = standing.clone();
        Whose { uid, gid, cgroup, fleeting: false }
    }

    fn is_known(&self) -> bool {
        self.uid.is_some() || self.gid.is_some() || self.cgroup.is_some()
    }
}

fn as_owner<'a>(image: &'a Result<Arc<Image>, Cause>, whose: &'a Whose) -> Owner<'a> {
    let Whose { uid, gid, ref cgroup, .. } = *whose;
    let cgroup = cgroup.as_deref();
    match image {
        Ok(image) => Owner::Known(Made {
            digests: &image.digests,
            complete: image.gap.is_none(),
            aggregate: image.aggregate,
            paths: &image.paths,
            program: Some(&image.program_path[..]).filter(|path| !path.is_empty()),
            uid,
            gid,
            cgroup,
            anon_exec: image.beyond.and_then(|beyond| beyond.anon_exec),
            traced: image.beyond.map(|beyond| beyond.traced_by.is_some()),
            identified: true,
        }),
        // Nothing is known of what it is made of, but whose it is.
        Err(_) if whose.is_known() => Owner::Known(Made {
            digests: &[],
            complete: false,
            aggregate: None,
            paths: &[],
            program: None,
            uid,
            gid,
            cgroup,
            anon_exec: None,
            traced: None,
            identified: false,
        }),
        Err(_) => Owner::Undetermined,
    }
}

/// The near end of the flow a packet belongs to. `None`: the packet does not say.
fn endpoint(
    chain: Chain,
    arrived: &Arrived,
    packet: &Packet,
    suspect: Option<Suspect>,
    namespace: NamespaceId,
) -> Option<Endpoint> {
    let outgoing = chain != Chain::Input;
    let device = match arrived.place {
        Place::Here(device) => device,
        Place::Behind(_) => 0,
    };
    let origin = match (outgoing, arrived.place, arrived.uid) {
        (false, _, _) => Origin::Elsewhere,
        (true, Place::Behind(_), _) => Origin::Unknown,
        (true, Place::Here(_), Some(uid)) => Origin::Process { uid },
        (true, Place::Here(_), None) => Origin::Kernel,
    };
    // An error that leaves quotes a packet that came, and the other way round. The kernel makes errors; what a process
    // quotes is its own affair.
    let (flow, source_is_near) = match packet.about {
        About::Quoted(quoted) if matches!(origin, Origin::Kernel | Origin::Elsewhere) => (quoted, !outgoing),
        _ => (packet.flow, outgoing),
    };
    let (source_port, destination_port) = match (flow.ports, packet.about) {
        (Ports::Known { source, destination }, _) => (source, destination),
        (Ports::Unknown, _) => return None,
        (Ports::Absent, About::Echo(identifier)) => (identifier, identifier),
        (Ports::Absent, _) => (0, 0),
    };
    let (local, local_port, remote, remote_port) = if source_is_near {
        (flow.source, source_port, flow.destination, destination_port)
    } else {
        (flow.destination, destination_port, flow.source, source_port)
    };
    let remote_port = if matches!(packet.about, About::Echo(_)) { 0 } else { remote_port };
    Some(Endpoint {
        namespace,
        protocol: flow.protocol,
        tuple: Tuple { local, local_port, remote, remote_port },
        device,
        origin,
        suspect,
    })
}
