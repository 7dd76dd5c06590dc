//! The path of a packet: [`Pipeline::decide`] is the story, and every room is called from it.
//!
//! One pipeline belongs to one worker. Nothing here waits: where something must be looked for, `decide` says what, the
//! packet is parked, and `decide` is asked again once it was found. An answer is kept together with everything it was
//! derived from, and used for the next packet of its flow only while all of that is unchanged.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shared::{Cause, Chain, Flow, Ports, Protocol, Reason, Verdict};
use smallvec::SmallVec;
use syscall_probe::{Generations, Sender, SocketTable};

use crate::attribute::census::Census;
use crate::attribute::diag::{Diag, Tuple};
use crate::attribute::{Endpoint, Holder, Means, Origin, Owners, Staleness, Suspect, quick};
use crate::image::{Image, Process, Retention};
use crate::investigate::{Finding, Found, Key, Question};
use crate::matcher::{ChainRules, Judgement, Made, Outcome, Owner, Ruleset, judge};
use crate::namespaces::links::Beyond;
use crate::namespaces::{Namespace, NamespaceId, Namespaces};
use crate::packet::{About, Packet, PacketError};
use crate::queue::Queued;
use crate::recent::Recent;

/// A packet that arrived, without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Names it in its queue.
    pub id: u32,
    /// What its headers say, or why they say nothing.
    pub packet: Result<Packet, PacketError>,
    /// Length of the whole packet, bytes.
    pub length: u32,
    /// When it was read from the queue, by the daemon's clock.
    pub at: u64,
    /// How often the queue had been read empty before it was read.
    pub round: u64,
    /// Opener of its socket, if a process held that when the packet was queued.
    pub uid: Option<u32>,
    /// Where its socket lives.
    pub place: Place,
    /// Its layer-4 checksum is left to the device.
    pub checksum_missing: bool,
    /// The process that was running when it was queued, if that is known.
    pub ran: Option<Sender>,
    /// It left a socket of the queue's namespace that was held open. If a system call sent it, whoever ran did.
    pub left_held_socket: bool,
}

/// Where a packet's socket lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In the queue's namespace, and the packet uses this interface.
    Here(u32),
    /// In the namespace behind this interface: the packet is only passing through the queue's.
    Behind(u32),
}

/// `NF_INET_FORWARD` and so on of linux/netfilter.h.
const HOOK_FORWARD: u8 = 2;
const HOOK_LOCAL_OUT: u8 = 3;
const HOOK_POST_ROUTING: u8 = 4;

impl Arrived {
    /// What matters of a queued packet.
    pub fn new(queued: &Queued<'_>, chain: Chain, at: u64, round: u64, ran: Option<Sender>) -> Arrived {
        let incoming = chain == Chain::Input;
        let place = if queued.hook != HOOK_FORWARD {
            Place::Here(if incoming { queued.indev } else { queued.outdev })
        } else if incoming {
            Place::Behind(first_of(queued.physoutdev, queued.outdev))
        } else {
            Place::Behind(first_of(queued.physindev, queued.indev))
        };
        Arrived {
            id: queued.id,
            packet: crate::packet::parse(queued.payload, queued.length),
            length: queued.length,
            at,
            round,
            uid: queued.uid,
            place,
            checksum_missing: queued.checksum_missing,
            ran,
            left_held_socket: !incoming
                && queued.uid.is_some()
                && matches!(queued.hook, HOOK_LOCAL_OUT | HOOK_POST_ROUTING),
        }
    }
}

/// The bridge port tells more than the bridge.
fn first_of(port: u32, device: u32) -> u32 {
    if port == 0 { device } else { port }
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It is judged.
    Judged(Arc<Answer>),
    /// Something must be looked for first.
    Wait(Question),
}

/// A judgement with what there is to tell about it.
#[derive(Debug)]
pub struct Answer {
    /// The verdict, its reason, its rule.
    pub judgement: Judgement,
    /// The namespace of the packet's socket; `None` if it is not known.
    pub namespace: Option<Arc<Namespace>>,
    /// Who holds the socket and what they are made of; `None` if nobody asked.
    pub identity: Option<Identity>,
    basis: Basis,
    /// It holds for the next packet as well if nobody's identity was asked for.
    lasts: bool,
}

/// Who holds a socket, and what they are made of.
#[derive(Debug)]
pub struct Identity {
    /// As found.
    pub owners: Arc<Owners>,
    /// One for each holder, in the same order.
    pub images: SmallVec<[Result<Arc<Image>, Cause>; 1]>,
}

/// What an answer depends on besides its owners.
#[derive(Clone, Copy, Debug)]
struct Basis {
    rules: u64,
    namespaces: u64,
}

/// Why a kept answer was not used, as counted in the status.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stale {
    /// The rules changed, or what selectors mean.
    Rules,
    /// See [`Staleness::Wide`].
    Wide,
    /// See [`Staleness::Port`].
    Port,
    /// See [`Staleness::Process`].
    Process,
    /// A holder's mappings changed, or a mapped file did.
    Image,
    /// It was true of one packet only.
    NotKept,
}

impl Stale {
    /// All of them, in the order of their counters.
    pub const ALL: [Stale; 6] = [Stale::Rules, Stale::Wide, Stale::Port, Stale::Process, Stale::Image, Stale::NotKept];

    /// Stable token.
    pub fn token(self) -> &'static str {
        match self {
            Stale::Rules => "rules",
            Stale::Wide => "wide",
            Stale::Port => "port",
            Stale::Process => "process",
            Stale::Image => "image",
            Stale::NotKept => "not-kept",
        }
    }
}

impl From<Staleness> for Stale {
    fn from(staleness: Staleness) -> Stale {
        match staleness {
            Staleness::NotKept => Stale::NotKept,
            Staleness::Wide => Stale::Wide,
            Staleness::Port => Stale::Port,
            Staleness::Process => Stale::Process,
        }
    }
}

/// How often answers could be used again.
#[derive(Clone, Copy, Default, Debug)]
pub struct Reuse {
    /// Answers used again.
    pub hits: u64,
    /// Answers made.
    pub misses: u64,
    /// Answers thrown away, by [`Stale::ALL`].
    pub stale: [u64; Stale::ALL.len()],
}

/// What a flow is told apart by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct FlowKey {
    flow: Flow,
    place: Place,
    /// ICMP identifier.
    echo: Option<u16>,
    quoted: Option<Flow>,
    sender: Option<Sender>,
    suspect: Option<Suspect>,
}

/// How long to insist on an exact answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Until it is there.
    Wait,
    /// No longer: what is not known is undetermined, for this reason.
    End(Cause),
}

/// Which verdicts an event will tell of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tell {
    /// None: the journal takes no more for now.
    Nothing,
    /// All but plain ACCEPT.
    Drops,
    /// All.
    Everything,
}

impl Tell {
    /// Whether it will tell of this one.
    pub fn of(self, verdict: Verdict) -> bool {
        match self {
            Tell::Nothing => false,
            Tell::Drops => verdict != Verdict::Accept,
            Tell::Everything => true,
        }
    }
}

/// What a pipeline knows the world by.
pub struct Surroundings {
    /// The chain whose packets it judges.
    pub chain: Chain,
    /// The rules in force.
    pub rules: Arc<ArcSwap<Ruleset>>,
    /// The namespaces there are.
    pub namespaces: Arc<ArcSwap<Namespaces>>,
    /// The generations, if the probe runs.
    pub generations: Option<Generations>,
    /// Who made which socket.
    pub sockets: Option<SocketTable>,
    /// The raw sockets there are.
    pub census: Census,
    /// What becomes of objects that are no longer mapped.
    pub retention: Retention,
    /// Packets come as they were made: their checksums are missing where the device is to fill them in.
    pub as_made: bool,
}

/// Judges the packets of one queue.
pub struct Pipeline {
    world: Surroundings,
    diag: Option<Diag>,
    answers: Recent<FlowKey, Arc<Answer>>,
    lines: Recent<Line, Attributed>,
    images: Recent<Process, Looked<Result<Arc<Image>, Cause>>>,
    /// Images that were good once, where what was mapped once is to be retained.
    former: Recent<Process, Arc<Image>>,
    /// Programs that were started with sockets of older make: the generation of the exec, and the round in which it was
    /// first noticed.
    execs: Recent<Process, (u64, u64)>,
    round: u64,
    behind: Recent<(u32, IpAddr), Looked<Result<Beyond, Cause>>>,
    views: Recent<NamespaceId, (Basis, Arc<ChainRules>)>,
    reuse: Reuse,
}

/// A connection, or what stands for one, as an earlier packet of it had it: whoever made that.
type Line = (NamespaceId, Protocol, Tuple, bool);

fn line(endpoint: &Endpoint) -> Line {
    (endpoint.namespace, endpoint.protocol, endpoint.tuple, endpoint.origin == Origin::Elsewhere)
}

/// What is known about a line.
#[derive(Debug)]
struct Attributed {
    /// Of which packets the last answer is true besides those of the same generations.
    origin: Origin,
    suspect: Option<Suspect>,
    looked: Looked<Arc<Owners>>,
    /// The last answer that named its holders, whatever was found after: a socket that was closed is asked about by it.
    held: Option<Arc<Owners>>,
}

/// Something found, and when the search for it began.
#[derive(Clone, Debug)]
struct Looked<T> {
    began: u64,
    found: T,
}

const FLOWS: usize = 1 << 15;
const PROCESSES: usize = 1 << 12;
const NAMESPACES: usize = 1 << 10;

impl Pipeline {
    /// A pipeline that knows nothing yet. Opens its socket diagnostics in the calling thread's namespace.
    pub fn new(world: Surroundings) -> Pipeline {
        let diag = Diag::open().inspect_err(|error| tracing::warn!("no socket diagnostics: {error}")).ok();
        Pipeline {
            world,
            diag,
            answers: Recent::new(FLOWS),
            lines: Recent::new(FLOWS),
            images: Recent::new(PROCESSES),
            former: Recent::new(PROCESSES),
            execs: Recent::new(PROCESSES),
            round: 0,
            behind: Recent::new(NAMESPACES),
            views: Recent::new(NAMESPACES),
            reuse: Reuse::default(),
        }
    }

    /// Judges a packet: an answer that still holds, or else rules against its flow, or else rules against its owners and
    /// what they are made of. Where `tell` says so, owners are looked for even if no rule asks, because an event will name
    /// them.
    pub fn decide(&mut self, arrived: &Arrived, tell: Tell, patience: Patience) -> Decision {
        let packet = match &arrived.packet {
            Ok(packet) => packet,
            Err(error) => return Decision::Judged(Arc::new(self.unreadable(*error))),
        };
        let sender = self.sender(arrived, packet);
        let suspect = if sender.is_some() { None } else { self.suspect(arrived, packet) };
        let key = FlowKey::new(packet, arrived, sender, suspect);
        if let Some(answer) = self.kept(&key, tell) {
            return Decision::Judged(answer);
        }
        let basis = self.basis();
        let namespace = match self.namespace(arrived, packet, patience) {
            Ok(namespace) => namespace,
            Err(question) => return Decision::Wait(question),
        };
        let rules = self.view(&namespace, basis);
        let mut identity = None;
        let judgement = match judge(&rules, &packet.flow, None) {
            Outcome::Judged(judgement) if !tell.of(judgement.verdict) => judgement,
            _ => {
                let found = match self.identity(arrived, packet, sender.as_ref(), suspect, &namespace, patience) {
                    Ok(identity) => identity,
                    Err(question) => return Decision::Wait(question),
                };
                let judgement = found.judge(&rules, &packet.flow);
                identity = Some(found);
                judgement
            }
        };
        let lasts = namespace.lasts();
        let answer = Arc::new(Answer { judgement, namespace: namespace.ruled_by().cloned(), identity, basis, lasts });
        self.reuse.misses += 1;
        if answer.may_be_kept() {
            self.answers.put(key, answer.clone());
        } else {
            self.reuse.stale[Stale::NotKept as usize] += 1;
        }
        Decision::Judged(answer)
    }

    /// The process that was running when a packet was put into a queue, if that is known.
    pub fn who_ran(&self, queue: u16, packet: u32) -> Option<Sender> {
        self.world.generations.as_ref()?.sender(queue, packet)
    }

    /// Takes note of what was found.
    pub fn learn(&mut self, finding: Finding) {
        let began = finding.began;
        match (finding.key, finding.found) {
            (Key::Owners(endpoint), Found::Owners(found)) => {
                self.learn_owners(&endpoint, Looked { began, found });
            }
            (Key::Image(process), Found::Image(mut found)) => {
                if self.world.retention != Retention::Nothing
                    && let Ok(image) = &mut found
                {
                    if let Some(former) = self.former.get(&process) {
                        *image = Arc::new(image.retaining(former, self.world.retention));
                    }
                    self.former.put(process, image.clone());
                }
                self.images.put(process, Looked { began, found });
            }
            (Key::Behind(device, address), Found::Behind(found)) => {
                self.behind.put((device, address), Looked { began, found });
            }
            (key, found) => tracing::error!("{key:?} was answered with {found:?}"),
        }
    }

    fn learn_owners(&mut self, endpoint: &Endpoint, looked: Looked<Arc<Owners>>) {
        let (line, origin, suspect) = (line(endpoint), endpoint.origin, endpoint.suspect);
        let names_holders = looked.found.undetermined.is_none() && !looked.found.holders.is_empty();
        let held = names_holders.then(|| looked.found.clone());
        match self.lines.get(&line) {
            Some(known) => {
                let held = held.or_else(|| known.held.take());
                *known = Attributed { origin, suspect, looked, held };
            }
            None => self.lines.put(line, Attributed { origin, suspect, looked, held }),
        }
    }

    /// How often answers could be used again, since the last call.
    pub fn take_reuse(&mut self) -> Reuse {
        std::mem::take(&mut self.reuse)
    }

    fn unreadable(&self, error: PacketError) -> Answer {
        self.refusal(match error {
            PacketError::Malformed(_) => Reason::Malformed,
            PacketError::HeadersTooLong(_) => Reason::HeadersTooLong,
        })
    }

    /// The answer to a packet that no rule needs to see.
    pub fn refusal(&self, reason: Reason) -> Answer {
        Answer {
            judgement: Judgement { verdict: Verdict::Drop, reason, rule: None },
            namespace: None,
            identity: None,
            basis: self.basis(),
            lasts: false,
        }
    }

    /// Read before anything that is derived from it.
    fn basis(&self) -> Basis {
        Basis { rules: self.world.rules.load().generation, namespaces: self.world.namespaces.load().generation }
    }

    /// An answer for the same flow, if everything it was derived from is as it was.
    fn kept(&mut self, key: &FlowKey, tell: Tell) -> Option<Arc<Answer>> {
        let basis = self.basis();
        let answer = self.answers.get(key)?;
        let checked = answer.check(basis, self.world.generations.as_ref());
        match checked {
            // Whoever is to be told wants names.
            Ok(()) if answer.identity.is_none() && tell.of(answer.judgement.verdict) => None,
            Ok(()) => {
                self.reuse.hits += 1;
                Some(answer.clone())
            }
            Err(stale) => {
                self.reuse.stale[stale as usize] += 1;
                None
            }
        }
    }

    /// The rules for a namespace.
    fn view(&mut self, namespace: &Whereabouts, basis: Basis) -> Arc<ChainRules> {
        let rules = self.world.rules.load();
        let chain = self.world.chain;
        let Some(namespace) = namespace.ruled_by() else {
            return Arc::new(rules.chain_in_doubt(chain));
        };
        if let Some((made, view)) = self.views.get(&namespace.id)
            && made.rules == basis.rules
            && made.namespaces == basis.namespaces
        {
            return view.clone();
        }
        let view = Arc::new(rules.chain(&namespace.selectors, chain));
        // Made from rules at least as new as the basis says; if they are newer, the next packet makes another.
        self.views.put(namespace.id, (basis, view.clone()));
        view
    }

    /// Where the packet's socket lives.
    fn namespace(&mut self, arrived: &Arrived, packet: &Packet, patience: Patience) -> Result<Whereabouts, Question> {
        let Place::Behind(device) = arrived.place else {
            return Ok(Whereabouts::Here(self.world.namespaces.load().own.clone()));
        };
        let address = match self.world.chain {
            Chain::Input => packet.flow.destination,
            Chain::Output | Chain::Forward => packet.flow.source,
        };
        let own = || self.world.namespaces.load().own.clone();
        match (self.behind.get(&(device, address)), patience) {
            (Some(Looked { found: Ok(Beyond::Nowhere), .. }), _) => Ok(Whereabouts::Passing(own())),
            (Some(looked), _) if looked.began >= arrived.at => Ok(match &looked.found {
                Ok(Beyond::Namespace(namespace)) => Whereabouts::Behind(namespace.clone()),
                Ok(Beyond::Elsewhere) => Whereabouts::Elsewhere(own()),
                Ok(Beyond::Nowhere) => Whereabouts::Passing(own()),
                Err(cause) => Whereabouts::Lost(*cause),
            }),
            (_, Patience::Wait) => Err(Question::Behind(device, address)),
            (_, Patience::End(cause)) => Ok(Whereabouts::Lost(cause)),
        }
    }

    /// The process that sent the packet, if that is certain. It is for all that only system calls send: TCP alone also
    /// sends when a timer or another packet says so. But TCP leaves the checksum to the device, and raw sockets, which
    /// can send segments too, do not.
    fn sender(&self, arrived: &Arrived, packet: &Packet) -> Option<Sender> {
        let by_call = packet.flow.protocol != Protocol::TCP || self.world.as_made && !arrived.checksum_missing;
        arrived.ran.filter(|_| arrived.left_held_socket && by_call)
    }

    /// Whose raw socket may have made a packet whose sender is not known.
    fn suspect(&self, arrived: &Arrived, packet: &Packet) -> Option<Suspect> {
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
    fn identity(
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
        let mut images = SmallVec::with_capacity(owners.holders.len());
        for holder in &owners.holders {
            images.push(match sender {
                Some((process, sender)) if process == holder.process => {
                    self.image_then(arrived, holder, sender, patience)?
                }
                // It holds the socket; what it sent is its own packet's affair.
                Some(_) => self.image(arrived, holder, patience)?,
                None => self.image_if_its_work(arrived, holder, patience)?,
            });
        }
        Ok(Identity { owners, images })
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
                || generations.is_some_and(|now| looked.found.check(now).is_ok());
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

    /// Takes note that the queue has been read empty `round` times.
    pub fn set_round(&mut self, round: u64) {
        self.round = round;
    }
}

/// Where a packet's socket lives, as far as it is known.
enum Whereabouts {
    /// In the queue's own namespace.
    Here(Arc<Namespace>),
    /// In another namespace of this machine.
    Behind(Arc<Namespace>),
    /// On another machine: the packet passes through this namespace, whose rules apply.
    Passing(Arc<Namespace>),
    /// The same for now: a namespace of this machine may take the address.
    Elsewhere(Arc<Namespace>),
    /// Not known.
    Lost(Cause),
}

impl Whereabouts {
    /// The namespace whose rules apply.
    fn ruled_by(&self) -> Option<&Arc<Namespace>> {
        match self {
            Whereabouts::Here(namespace)
            | Whereabouts::Behind(namespace)
            | Whereabouts::Passing(namespace)
            | Whereabouts::Elsewhere(namespace) => Some(namespace),
            Whereabouts::Lost(_) => None,
        }
    }

    /// Whether the same address at the same place means the same namespace for the next packet.
    fn lasts(&self) -> bool {
        matches!(self, Whereabouts::Here(_) | Whereabouts::Passing(_))
    }
}

impl FlowKey {
    fn new(packet: &Packet, arrived: &Arrived, sender: Option<Sender>, suspect: Option<Suspect>) -> FlowKey {
        let (echo, quoted) = match packet.about {
            About::Itself => (None, None),
            About::Echo(identifier) => (Some(identifier), None),
            About::Quoted(flow) => (None, Some(flow)),
        };
        // That somebody else made a raw socket makes it no other flow.
        let wide = |sender: Sender| if sender.shared { sender.wide } else { 0 };
        let sender = sender.map(|sender| Sender { raw_sockets: 0, wide: wide(sender), ..sender });
        FlowKey { flow: packet.flow, place: arrived.place, echo, quoted, sender, suspect }
    }
}

impl Answer {
    /// Whether [`Answer::check`] may ever find it unchanged.
    fn may_be_kept(&self) -> bool {
        self.identity.as_ref().map_or(self.lasts, |identity| {
            identity.owners.may_be_kept()
                && identity.images.iter().all(|image| image.as_ref().is_ok_and(|image| image.may_be_kept()))
        })
    }

    /// Whether everything the answer was derived from is as it was.
    fn check(&self, basis: Basis, generations: Option<&Generations>) -> Result<(), Stale> {
        if self.basis.rules != basis.rules || self.basis.namespaces != basis.namespaces {
            return Err(Stale::Rules);
        }
        let Some(identity) = &self.identity else {
            return if self.lasts { Ok(()) } else { Err(Stale::NotKept) };
        };
        let generations = generations.ok_or(Stale::NotKept)?;
        identity.owners.check(generations)?;
        for image in &identity.images {
            let image = image.as_ref().map_err(|_| Stale::NotKept)?;
            if !image.is_current(generations) {
                return Err(Stale::Image);
            }
        }
        Ok(())
    }
}

impl Identity {
    fn judge(&self, rules: &ChainRules, flow: &Flow) -> Judgement {
        let mut owners: SmallVec<[Owner<'_>; 4]> = self.images.iter().map(as_owner).collect();
        owners.extend(self.owners.undetermined.map(|_| Owner::Undetermined));
        match judge(rules, flow, Some(&owners)) {
            Outcome::Judged(judgement) => judgement,
            Outcome::NeedsOwners => Judgement { verdict: Verdict::Drop, reason: Reason::Undetermined, rule: None },
        }
    }
}

fn as_owner(image: &Result<Arc<Image>, Cause>) -> Owner<'_> {
    match image {
        Ok(image) => Owner::Known(Made {
            digests: &image.digests,
            complete: image.gap.is_none(),
            aggregate: image.aggregate,
            anon_exec: image.beyond.and_then(|beyond| beyond.anon_exec),
            traced: image.beyond.map(|beyond| beyond.traced_by.is_some()),
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
