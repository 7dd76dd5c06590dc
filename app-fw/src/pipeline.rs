//! The path of a packet: [`Pipeline::decide`] is the story, and every room is called from it.
//!
//! One pipeline belongs to one worker. Nothing here waits: where something must be looked for, `decide` says what, the
//! packet is parked, and `decide` is asked again once it was found. An answer is kept together with everything it was
//! derived from, and used for the next packet of its flow only while all of that is unchanged.

mod identity;
mod lending;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shared::rule::Log;
use shared::{Cause, Chain, Flow, Protocol, Reason, Verdict};
use smallvec::SmallVec;
use syscall_probe::{Generations, Sender, SocketTable};

use crate::attribute::census::Census;
use crate::attribute::diag::{Diag, Tuple};
use crate::attribute::{Endpoint, Origin, Owners, Staleness, Suspect};
use crate::devices::Devices;
pub use crate::devices::Interfaces;
use crate::image::{ControlGroups, Image, Process, Retention};
use crate::investigate::{Finding, Found, Key, Question};
use crate::kernel_cache::KernelCache;
use crate::matcher::{Facts, Judgement, Outcome, Ruleset, View};
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
    /// The devices that it passes.
    pub interfaces: Interfaces,
    /// Indexes of the devices by which it came, a port of a bridge rather than the bridge, and by which it goes; 0 if none.
    pub devices: (u32, u32),
    /// Its layer-4 checksum is left to the device.
    pub checksum_missing: bool,
    /// The process that was running when it was queued, if that is known.
    pub ran: Option<Sender>,
    /// It left a socket of the queue's namespace that was held open. If a system call sent it, whoever ran did.
    pub left_held_socket: bool,
    /// It stands for several packets.
    pub segmented: bool,
    /// It has not left this machine: with other addresses, it would be routed anew.
    pub can_turn_back: bool,
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
    pub fn new(
        queued: &Queued<'_>,
        chain: Chain,
        at: u64,
        round: u64,
        ran: Option<Sender>,
        interfaces: Interfaces,
    ) -> Arrived {
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
            interfaces,
            devices: (first_of(queued.physindev, queued.indev), queued.outdev),
            checksum_missing: queued.checksum_missing,
            segmented: queued.segmented,
            ran,
            left_held_socket: !incoming
                && queued.uid.is_some()
                && matches!(queued.hook, HOOK_LOCAL_OUT | HOOK_POST_ROUTING),
            can_turn_back: queued.hook == HOOK_LOCAL_OUT,
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
    /// Likewise.
    pub whose: SmallVec<[Whose; 1]>,
}

/// Whose a process was when the packet was sent, as far as rules ask and it is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Whose {
    /// Effective user id.
    pub uid: Option<u32>,
    /// Effective group id.
    pub gid: Option<u32>,
    /// Path of its control group.
    pub cgroup: Option<Arc<str>>,
    /// More may be known of the next packet.
    fleeting: bool,
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
    interfaces: Interfaces,
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
    pub fn of(self, judgement: &Judgement) -> bool {
        let log = judgement.rule.as_ref().map_or(Log::Default, |rule| rule.rule.log);
        match (self, log) {
            (Tell::Nothing, _) | (_, Log::Never) => false,
            (_, Log::Always) => true,
            (Tell::Drops, Log::Default) => !judgement.verdict.lets_pass(),
            (Tell::Everything, Log::Default) => true,
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
    /// Paths of control groups, where the kernel has the hierarchy of version 2.
    pub control_groups: Option<ControlGroups>,
    /// What becomes of objects that are no longer mapped.
    pub retention: Retention,
    /// Answers that the kernel may use.
    pub kernel: Option<Arc<KernelCache>>,
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
    /// Processes that became another's, likewise.
    changes_of_standing: Recent<Process, (u64, u64)>,
    /// Rounds would end a doubt.
    wants_rounds: bool,
    control_groups: Recent<u64, Arc<str>>,
    devices: Devices,
    round: u64,
    behind: Recent<(u32, IpAddr), Looked<Result<Beyond, Cause>>>,
    of_rules: OfRules,
    former_rules: crossbeam_channel::Sender<OfRules>,
    reuse: Reuse,
}

/// What is derived from the rules of one generation, and keeps them in memory.
struct OfRules {
    generation: u64,
    views: Recent<NamespaceId, (Basis, Arc<View>)>,
    /// What the rules left to ask of packets, by process.
    asked: Recent<Process, identity::Asked>,
}

impl OfRules {
    fn new(generation: u64) -> OfRules {
        OfRules { generation, views: Recent::new(NAMESPACES), asked: Recent::new(PROCESSES) }
    }

    /// Begins anew with other rules. To free 100,000 rules takes a while: no packet waits for that.
    fn renew(&mut self, generation: u64, former_rules: &crossbeam_channel::Sender<OfRules>) {
        let former = std::mem::replace(self, OfRules::new(generation));
        // If there is no thread, or it is that far behind, it is freed here.
        drop(former_rules.try_send(former));
    }

    /// Frees what it is given, on a thread of its own.
    fn freed_elsewhere() -> crossbeam_channel::Sender<OfRules> {
        const BEHIND: usize = 16;
        let (to, from) = crossbeam_channel::bounded(BEHIND);
        let free = move || from.iter().for_each(drop);
        if let Err(error) = std::thread::Builder::new().name("former-rules".into()).spawn(free) {
            tracing::warn!("former rules are freed while packets wait: {error}");
        }
        to
    }
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
const CONTROL_GROUPS: usize = 1 << 10;

impl Pipeline {
    /// A pipeline that knows nothing yet. Opens its socket diagnostics in the calling thread's namespace.
    pub fn new(world: Surroundings) -> Pipeline {
        let diag = Diag::open().inspect_err(|error| tracing::warn!("no socket diagnostics: {error}")).ok();
        let devices = Devices::new(world.generations.clone());
        Pipeline {
            world,
            diag,
            answers: Recent::new(FLOWS),
            lines: Recent::new(FLOWS),
            images: Recent::new(PROCESSES),
            former: Recent::new(PROCESSES),
            execs: Recent::new(PROCESSES),
            changes_of_standing: Recent::new(PROCESSES),
            wants_rounds: false,
            control_groups: Recent::new(CONTROL_GROUPS),
            devices,
            round: 0,
            behind: Recent::new(NAMESPACES),
            of_rules: OfRules::new(0),
            former_rules: OfRules::freed_elsewhere(),
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
        let view = self.view(&namespace, basis);
        let called = namespace.ruled_by().cloned();
        let facts = Facts {
            flow: &packet.flow,
            input: arrived.interfaces.input(),
            output: arrived.interfaces.output(),
            namespace: called.as_ref().map(|namespace| &namespace.selectors[..]),
            now: arrived.at,
        };
        let (judgement, identity) = loop {
            let (judgement, identity) = match view.judge(&facts) {
                Outcome::Judged(judgement) if !tell.of(&judgement) => (judgement, None),
                _ => match self.identity(arrived, packet, sender.as_ref(), suspect, &namespace, patience) {
                    Ok(identity) => (self.judge(&view, &facts, &identity), Some(identity)),
                    Err(question) => return Decision::Wait(question),
                },
            };
            // Another queue's packet may have used up the rate of the rule that fires. Then another rule does.
            if judgement.take(arrived.at) {
                break (judgement, identity);
            }
        };
        let lasts = namespace.lasts();
        let answer = Arc::new(Answer { judgement, namespace: called, identity, basis, lasts });
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

    /// The devices that a packet passed, or will. `ran`: see [`Pipeline::who_ran`].
    pub fn interfaces(&mut self, queued: &Queued<'_>, ran: Option<&Sender>) -> Interfaces {
        self.devices.interfaces(queued.indev, queued.outdev, ran.map(|ran| ran.links))
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

    /// Takes note that the queue has been read empty `round` times.
    pub fn set_round(&mut self, round: u64) {
        self.round = round;
    }

    /// Whether a doubt has come up since the last call that ends when the queue has been read empty a few times more.
    pub fn wants_rounds(&mut self) -> bool {
        std::mem::take(&mut self.wants_rounds)
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
            judgement: Judgement::without_rule(Verdict::Drop, reason),
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
            Ok(()) if answer.identity.is_none() && tell.of(&answer.judgement) => None,
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
    fn view(&mut self, namespace: &Whereabouts, basis: Basis) -> Arc<View> {
        let rules = self.world.rules.load();
        let chain = self.world.chain;
        let Some(namespace) = namespace.ruled_by() else {
            return Arc::new(rules.view_in_doubt(chain));
        };
        if self.of_rules.generation != basis.rules {
            self.of_rules.renew(basis.rules, &self.former_rules);
        }
        if let Some((made, view)) = self.of_rules.views.get(&namespace.id)
            && made.rules == basis.rules
            && made.namespaces == basis.namespaces
        {
            return view.clone();
        }
        let view = Arc::new(rules.view(&namespace.selectors, chain));
        // Made from rules at least as new as the basis says; if they are newer, the next packet makes another.
        self.of_rules.views.put(namespace.id, (basis, view.clone()));
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
        // That somebody else made a raw socket, or changed a device, makes it no other flow.
        let wide = |sender: Sender| if sender.shared { sender.wide } else { 0 };
        let sender = sender.map(|sender| Sender { raw_sockets: 0, links: 0, wide: wide(sender), ..sender });
        let Arrived { place, interfaces, .. } = *arrived;
        FlowKey { flow: packet.flow, place, interfaces, echo, quoted, sender, suspect }
    }
}

impl Answer {
    /// Whether [`Answer::check`] may ever find it unchanged.
    fn may_be_kept(&self) -> bool {
        !self.judgement.momentary
            && self.identity.as_ref().map_or(self.lasts, |identity| {
                identity.owners.may_be_kept(self.judgement.verdict.lets_pass())
                    && identity.images.iter().all(|image| image.as_ref().is_ok_and(|image| image.may_be_kept()))
                    && !identity.whose.iter().any(|whose| whose.fleeting)
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
        identity.owners.check(generations, self.judgement.verdict.lets_pass())?;
        for image in &identity.images {
            let image = image.as_ref().map_err(|_| Stale::NotKept)?;
            if !image.is_current(generations) {
                return Err(Stale::Image);
            }
        }
        Ok(())
    }
}
