//! One rule, ready to be asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use globset::GlobSet;
use shared::rule::{
    CgroupPath, ContainerId, Element, Glob, IdRange, Interface, Item, Labelled, List, Net, OwnerClass, PortRange, Rate,
    TimeWindow, Unit,
};
use shared::set::{Elements, Set, SetName};
use shared::{Digest, Flow, Match, Ports, Predicate, Protocol, Rule, Selector, Verdict};
use smallvec::SmallVec;

use super::ranges::{Nets, Ranges};
use super::{Dependence, Device, Facts, Made, Owner, Tri};

/// Named sets, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Sets(HashMap<SetName, ReadySet>);

#[derive(Clone, Debug)]
enum ReadySet {
    Nets(Arc<Nets>, Arc<[Net]>),
    Ports(Arc<Ranges<u16>>, Arc<[PortRange]>),
    Digests(Arc<[Digest]>),
}

impl Sets {
    /// Makes them ready.
    pub fn new<'a>(sets: impl IntoIterator<Item = &'a Set>) -> Sets {
        Sets(sets.into_iter().map(|set| (set.name.clone(), ReadySet::new(set))).collect())
    }

    /// The same, but for some that are different now, or not there.
    pub fn with<'a>(&self, changed: impl IntoIterator<Item = (&'a SetName, Option<&'a Set>)>) -> Sets {
        let mut sets = self.0.clone();
        for (name, set) in changed {
            match set {
                Some(set) => sets.insert(name.clone(), ReadySet::new(set)),
                None => sets.remove(name),
            };
        }
        Sets(sets)
    }
}

impl ReadySet {
    fn new(set: &Set) -> ReadySet {
        match &set.elements {
            Elements::Addresses(nets) => {
                ReadySet::Nets(Nets::new(nets.iter().map(|net| net.0)).into(), nets[..].into())
            }
            Elements::Ports(ports) => ReadySet::Ports(Ranges::new(ports.iter().map(pair)).into(), ports[..].into()),
            Elements::Digests(digests) => {
                let mut sorted = digests.clone();
                sorted.sort_unstable();
                ReadySet::Digests(sorted.into())
            }
        }
    }
}

fn pair(range: &PortRange) -> (u16, u16) {
    (range.first, range.last)
}

/// What a rule counts and remembers, however often the rules are compiled anew.
#[derive(Debug, Default)]
pub struct RuleState {
    /// Packets for which it fired.
    pub packets: AtomicU64,
    /// Bytes of these, as their IP headers say.
    pub bytes: AtomicU64,
    /// `--limit`: when the next packet would come if they came evenly, nanoseconds by the daemon's clock.
    next: AtomicU64,
    /// Where packets are counted that are judged elsewhere, if any were.
    pub elsewhere: OnceLock<u32>,
}

impl RuleState {
    /// Counts packets that were judged elsewhere.
    pub fn count_many(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a packet of so many bytes.
    pub fn count(&self, bytes: u32) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
    }
}

/// A rate that packets are held against (the generic cell rate algorithm of ITU-T I.371: one number instead of a bucket
/// that is filled).
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    negated: bool,
    interval: u64,
    /// A packet may come so much earlier than evenly.
    tolerance: u64,
}

impl Limit {
    fn new(negated: bool, rate: &Rate) -> Limit {
        let interval = rate.interval();
        Limit { negated, interval, tolerance: interval.saturating_mul(u64::from(rate.burst - 1)) }
    }

    fn conforms(&self, next: u64, now: u64) -> bool {
        next.saturating_sub(now) <= self.tolerance
    }

    /// Whether the predicate holds for a packet at `now`.
    fn holds(&self, state: &RuleState, now: u64) -> bool {
        self.conforms(state.next.load(Ordering::Relaxed), now) != self.negated
    }

    /// Takes a packet into account that is within the rate. False if it is not, any more.
    fn take(&self, state: &RuleState, now: u64) -> bool {
        let later = |next: u64| self.conforms(next, now).then(|| next.max(now).saturating_add(self.interval));
        state.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).is_ok()
    }
}

/// A rule in force.
#[derive(Debug)]
pub struct ActiveRule {
    /// Stable id.
    pub id: u64,
    /// Orders the rules of a chain of a namespace: the smallest comes first.
    pub rank: u64,
    /// What it says.
    pub rule: Arc<Rule>,
    /// Its text form, made when it is first told.
    text: OnceLock<Box<str>>,
    /// What it counts and remembers.
    pub state: Arc<RuleState>,
    /// One for each predicate, in their order.
    checks: Box<[Check]>,
    asks_owners: bool,
    asks_of_each: bool,
    pub(super) limit: Option<Limit>,
}

#[derive(Debug)]
struct Check {
    negated: bool,
    ask: Ask,
}

/// A predicate, ready to be asked.
#[derive(Debug)]
enum Ask {
    Source(Union<Net, Nets>),
    Destination(Union<Net, Nets>),
    Protocol(SmallVec<[u8; 8]>),
    SourcePort(Union<PortRange, Ranges<u16>>),
    DestinationPort(Union<PortRange, Ranges<u16>>),
    Input(Vec<Interface>),
    Output(Vec<Interface>),
    Netns(Vec<Selector>),
    SomeDigest(Union<Digest, [Digest]>),
    AllDigests(Union<Digest, [Digest]>),
    Aggregate(Union<Digest, [Digest]>),
    ObjectPath(GlobSet),
    ProgramPath(GlobSet),
    Uid(Ranges<u32>),
    Gid(Ranges<u32>),
    Cgroup(Vec<CgroupPath>),
    Unit(Vec<Unit>),
    Container(Vec<ContainerId>),
    AnonExec,
    Traced,
    Class(OwnerClass),
    /// Known for as long as the rules are not compiled anew.
    Fixed(bool),
    /// Asked apart, after all else.
    Limit,
    /// It names a set that is not there, or is no pattern: nobody knows.
    Broken,
}

/// What a list and the sets in it hold. Most lists hold one thing.
#[derive(Debug)]
enum Union<V, R: ?Sized> {
    One(V),
    /// Sorted.
    Many(Box<[Arc<R>]>),
}

impl Union<Net, Nets> {
    fn contains(&self, address: IpAddr) -> bool {
        match self {
            Union::One(net) => net.0.contains(&address),
            Union::Many(all) => all.iter().any(|nets| nets.contains(address)),
        }
    }
}

impl Union<PortRange, Ranges<u16>> {
    fn contains(&self, port: u16) -> bool {
        match self {
            Union::One(range) => range.contains(port),
            Union::Many(all) => all.iter().any(|ports| ports.contains(port)),
        }
    }
}

impl Union<Digest, [Digest]> {
    fn contains(&self, digest: &Digest) -> bool {
        match self {
            Union::One(one) => one == digest,
            Union::Many(all) => all.iter().any(|list| list.binary_search(digest).is_ok()),
        }
    }

    fn are_all(&self, is: impl Fn(&Digest) -> bool) -> bool {
        match self {
            Union::One(one) => is(one),
            Union::Many(all) => all.iter().all(|list| list.iter().all(&is)),
        }
    }
}

/// Which part of a rule is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Packet,
    Owner,
    Owners,
    Rate,
}

impl Ask {
    fn part(&self) -> Part {
        match self {
            Ask::Source(_)
            | Ask::Destination(_)
            | Ask::Protocol(_)
            | Ask::SourcePort(_)
            | Ask::DestinationPort(_)
            | Ask::Input(_)
            | Ask::Output(_)
            | Ask::Netns(_)
            | Ask::Fixed(_)
            | Ask::Broken => Part::Packet,
            Ask::Class(_) => Part::Owners,
            Ask::Limit => Part::Rate,
            _ => Part::Owner,
        }
    }

    fn of_packet(&self, facts: &Facts<'_>) -> Tri {
        let flow = facts.flow;
        match self {
            Ask::Source(nets) => nets.contains(flow.source).into(),
            Ask::Destination(nets) => nets.contains(flow.destination).into(),
            Ask::Protocol(protocols) => protocols.contains(&flow.protocol.0).into(),
            Ask::SourcePort(ports) => port(flow, ports, |source, _| source),
            Ask::DestinationPort(ports) => port(flow, ports, |_, destination| destination),
            Ask::Input(patterns) => passes(patterns, facts.input),
            Ask::Output(patterns) => passes(patterns, facts.output),
            Ask::Netns(wanted) => match facts.namespace {
                _ if wanted.contains(&Selector::Any) => Tri::Yes,
                Some(selectors) => wanted.iter().any(|selector| selectors.contains(selector)).into(),
                None => Tri::Unknown,
            },
            _ => self.of_fixed(),
        }
    }

    /// What depends on nothing.
    fn of_fixed(&self) -> Tri {
        match self {
            Ask::Fixed(holds) => (*holds).into(),
            Ask::Broken => Tri::Unknown,
            _ => Tri::Yes,
        }
    }

    fn of_owner(&self, owner: &Owner<'_>) -> Tri {
        let Owner::Known(made) = owner else { return Tri::Unknown };
        let has = |digest: &Digest| made.digests.contains(digest);
        let known = |holds: Option<bool>| holds.map_or(Tri::Unknown, Tri::from);
        match self {
            Ask::SomeDigest(list) => match made.digests.iter().any(|digest| list.contains(digest)) {
                true => Tri::Yes,
                false => unless_complete(made),
            },
            Ask::AllDigests(list) => match list.are_all(has) {
                true => Tri::Yes,
                false => unless_complete(made),
            },
            Ask::Aggregate(list) => known(made.aggregate.map(|aggregate| list.contains(&aggregate))),
            Ask::ObjectPath(globs) => match made.paths.iter().any(|path| matches(globs, path)) {
                true => Tri::Yes,
                false if made.paths.iter().any(|path| path.is_empty()) => Tri::Unknown,
                false => unless_complete(made),
            },
            Ask::ProgramPath(globs) => known(made.program.map(|program| matches(globs, program))),
            Ask::Uid(ids) => known(made.uid.map(|uid| ids.contains(uid))),
            Ask::Gid(ids) => known(made.gid.map(|gid| ids.contains(gid))),
            Ask::Cgroup(paths) => known(made.cgroup.map(|group| paths.iter().any(|path| path.holds(group)))),
            Ask::Unit(units) => known(made.cgroup.map(|group| units.iter().any(|unit| unit.holds(group)))),
            Ask::Container(ids) => known(made.cgroup.map(|group| ids.iter().any(|id| id.holds(group)))),
            Ask::AnonExec => match made.anon_exec {
                Some(true) => Tri::Yes,
                // What could not be read may be no file: secret memory, a device.
                Some(false) if made.complete => Tri::No,
                _ => Tri::Unknown,
            },
            Ask::Traced => known(made.traced),
            _ => Tri::Yes,
        }
    }

    fn of_owners(&self, owners: &[Owner<'_>]) -> Tri {
        let doubtful = owners.iter().any(Owner::is_undetermined);
        match self {
            Ask::Class(OwnerClass::Undetermined) => doubtful.into(),
            Ask::Class(_) if doubtful => Tri::Unknown,
            Ask::Class(OwnerClass::Owned) => (!owners.is_empty()).into(),
            Ask::Class(OwnerClass::Unowned) => owners.is_empty().into(),
            _ => Tri::Yes,
        }
    }
}

fn unless_complete(made: &Made<'_>) -> Tri {
    if made.complete { Tri::No } else { Tri::Unknown }
}

fn matches(globs: &GlobSet, path: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt;
    globs.is_match(std::ffi::OsStr::from_bytes(path))
}

fn port(flow: &Flow, wanted: &Union<PortRange, Ranges<u16>>, of: fn(u16, u16) -> u16) -> Tri {
    match flow.ports {
        Ports::Known { source, destination } => wanted.contains(of(source, destination)).into(),
        Ports::Absent => Tri::No,
        Ports::Unknown => Tri::Unknown,
    }
}

fn passes(patterns: &[Interface], device: Device<'_>) -> Tri {
    match device {
        Device::None => Tri::No,
        Device::Named(name) => patterns.iter().any(|pattern| pattern.matches(name)).into(),
        Device::Unknown => Tri::Unknown,
    }
}

/// What a rule asks of packets of one protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asking {
    /// Nothing of theirs matters: it holds for none.
    OfNone,
    /// Nothing: it holds for all.
    OfAll,
    /// Whether it holds depends on so much of them.
    Of(Dependence),
}

impl ActiveRule {
    /// What it asks of packets of a protocol. What it asks of owners and of its rate is left out.
    pub(super) fn asking(&self, protocol: Protocol) -> Asking {
        let mut asking = Asking::OfAll;
        for Check { negated, ask } in self.checks.iter().filter(|check| check.ask.part() == Part::Packet) {
            let of_ask = match ask {
                Ask::Protocol(protocols) if protocols.contains(&protocol.0) == *negated => return Asking::OfNone,
                Ask::Fixed(holds) if holds == negated => return Asking::OfNone,
                // A packet's namespace is known from where it is met.
                Ask::Protocol(_) | Ask::Fixed(_) => continue,
                Ask::Netns(_) | Ask::Broken => Dependence::Nothing,
                Ask::Destination(_) | Ask::DestinationPort(_) | Ask::Input(_) | Ask::Output(_) => {
                    Dependence::Destination
                }
                _ => Dependence::Flow,
            };
            asking = match asking {
                Asking::Of(before) => Asking::Of(before.max(of_ask)),
                _ => Asking::Of(of_ask),
            };
        }
        asking
    }

    /// Makes a rule ready. `open` tells whether it is such a time of the week now: when that changes, the rule is to be
    /// made anew.
    pub fn new(
        id: u64,
        rank: u64,
        rule: Arc<Rule>,
        state: Arc<RuleState>,
        sets: &Sets,
        open: impl Fn(&TimeWindow) -> bool,
    ) -> ActiveRule {
        let ready = |predicate: &Predicate| Check { negated: predicate.negated, ask: ask(&predicate.on, sets, &open) };
        let checks: Box<[Check]> = rule.predicates.iter().map(ready).collect();
        let limit = rule.predicates.iter().find_map(|predicate| match &predicate.on {
            Match::Limit(rate) => Some(Limit::new(predicate.negated, rate)),
            _ => None,
        });
        let asks_of_each = checks.iter().any(|check| check.ask.part() == Part::Owner);
        let asks_owners = asks_of_each || checks.iter().any(|check| check.ask.part() == Part::Owners);
        ActiveRule { id, rank, text: OnceLock::new(), rule, state, checks, asks_owners, asks_of_each, limit }
    }

    /// Its text form.
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| self.rule.to_string().into())
    }

    /// Whether it asks about owners.
    pub fn asks_owners(&self) -> bool {
        self.asks_owners
    }

    /// Whether its answer may change with time alone.
    pub fn depends_on_time(&self) -> bool {
        self.rule.predicates.iter().any(|predicate| matches!(predicate.on, Match::Time(_)))
    }

    fn all(&self, part: Part, ask: impl Fn(&Ask) -> Tri) -> Tri {
        let answers = self.checks.iter().filter(|check| check.ask.part() == part);
        answers.map(|check| ask(&check.ask).negate_if(check.negated)).min().unwrap_or(Tri::Yes)
    }

    /// Whether what it asks of the packet itself holds, but for its rate.
    pub(super) fn of_packet(&self, facts: &Facts<'_>) -> Tri {
        self.all(Part::Packet, |ask| ask.of_packet(facts))
    }

    /// Whether what it asks of the owners holds. For a DROP rule the owner that matches best counts, for an ACCEPT rule the
    /// one that matches worst. A packet without owners matches no predicate about one, whether negated or not.
    pub fn of_owners(&self, owners: &[Owner<'_>]) -> Tri {
        let of_all = self.all(Part::Owners, |ask| ask.of_owners(owners));
        if !self.asks_of_each || of_all == Tri::No {
            return of_all;
        }
        let holds = owners.iter().map(|owner| self.all(Part::Owner, |ask| ask.of_owner(owner)));
        let of_each = if self.rule.verdict == Verdict::Accept { holds.min() } else { holds.max() };
        of_all.min(of_each.unwrap_or(Tri::No))
    }

    /// Whether what it asks of its rate holds, if it has one.
    pub(super) fn limit_holds(&self, now: u64) -> bool {
        self.limit.is_none_or(|limit| limit.holds(&self.state, now))
    }

    /// Whether it spares packets that are within a rate.
    pub(super) fn spares(&self) -> bool {
        self.limit.is_some_and(|limit| limit.negated)
    }

    /// Takes a packet into account for which it `fires`, or which it spares. False if its rate is used up meanwhile.
    pub(super) fn take(&self, fires: bool, now: u64) -> bool {
        // What is beyond the rate does not count against it.
        self.limit.is_none_or(|limit| fires && limit.negated || limit.take(&self.state, now))
    }

    /// Whether one of its predicates holds, by its index. `None`: that depends on what is not given.
    pub fn predicate(&self, index: usize, facts: Option<&Facts<'_>>, owners: &[Owner<'_>]) -> Option<Tri> {
        let Check { negated, ask } = self.checks.get(index)?;
        let answer = match ask.part() {
            Part::Rate => return None,
            _ if matches!(ask, Ask::Fixed(_) | Ask::Broken) => ask.of_fixed(),
            Part::Packet => ask.of_packet(facts?),
            Part::Owners => ask.of_owners(owners),
            Part::Owner => {
                let holds = owners.iter().map(|owner| ask.of_owner(owner).negate_if(*negated));
                let of_each = if self.rule.verdict == Verdict::Accept { holds.min() } else { holds.max() };
                return Some(of_each.unwrap_or(Tri::No));
            }
        };
        Some(answer.negate_if(*negated))
    }
}

impl PartialEq for ActiveRule {
    fn eq(&self, other: &ActiveRule) -> bool {
        (self.id, self.rank, &self.rule) == (other.id, other.rank, &other.rule)
    }
}

fn ask(on: &Match, sets: &Sets, open: &impl Fn(&TimeWindow) -> bool) -> Ask {
    let or_broken = |ask: Option<Ask>| ask.unwrap_or(Ask::Broken);
    match on {
        Match::Source(list) => or_broken(nets(list, sets).map(Ask::Source)),
        Match::Destination(list) => or_broken(nets(list, sets).map(Ask::Destination)),
        Match::Protocol(list) => Ask::Protocol(list.elements().map(|protocol| protocol.0).collect()),
        Match::SourcePort(list) => or_broken(ports(list, sets).map(Ask::SourcePort)),
        Match::DestinationPort(list) => or_broken(ports(list, sets).map(Ask::DestinationPort)),
        Match::InInterface(list) => Ask::Input(list.elements().cloned().collect()),
        Match::OutInterface(list) => Ask::Output(list.elements().cloned().collect()),
        Match::Netns(list) => Ask::Netns(list.elements().cloned().collect()),
        Match::SngHash(list) => or_broken(digests(list, sets).map(Ask::SomeDigest)),
        Match::AllHash(list) => or_broken(digests(list, sets).map(Ask::AllDigests)),
        Match::AggHash(list) => or_broken(digests(list, sets).map(Ask::Aggregate)),
        Match::ObjectPath(list) => or_broken(globs(list).map(Ask::ObjectPath)),
        Match::ProgramPath(list) => or_broken(globs(list).map(Ask::ProgramPath)),
        Match::Uid(list) => Ask::Uid(ids(list)),
        Match::Gid(list) => Ask::Gid(ids(list)),
        Match::Cgroup(list) => Ask::Cgroup(list.elements().cloned().collect()),
        Match::Unit(list) => Ask::Unit(list.elements().cloned().collect()),
        Match::Container(list) => Ask::Container(list.elements().map(|id| id.value.clone()).collect()),
        Match::Owner(class) => Ask::Class(*class),
        Match::AnonExec => Ask::AnonExec,
        Match::Traced => Ask::Traced,
        Match::Time(window) => Ask::Fixed(open(window)),
        Match::Limit(_) => Ask::Limit,
    }
}

/// What is in a list by itself, and the sets in it. `None`: one is not there.
fn union<T: Element, V, R: ?Sized>(
    list: &List<T>,
    sets: &Sets,
    value: impl Fn(&T) -> V,
    own: impl FnOnce(Vec<V>) -> Arc<R>,
    of_set: impl Fn(&ReadySet) -> Option<Arc<R>>,
) -> Option<Union<V, R>> {
    if let [Item::One(element)] = &list.0[..] {
        return Some(Union::One(value(element)));
    }
    let named: Option<Vec<Arc<R>>> = list.sets().map(|name| of_set(sets.0.get(name)?)).collect();
    let mut all = named?;
    let elements: Vec<V> = list.elements().map(value).collect();
    if !elements.is_empty() {
        all.push(own(elements));
    }
    Some(Union::Many(all.into()))
}

fn nets(list: &List<Net>, sets: &Sets) -> Option<Union<Net, Nets>> {
    let own = |nets: Vec<Net>| Nets::new(nets.into_iter().map(|net| net.0)).into();
    union(
        list,
        sets,
        |net| *net,
        own,
        |set| match set {
            ReadySet::Nets(nets, _) => Some(nets.clone()),
            _ => None,
        },
    )
}

fn ports(list: &List<PortRange>, sets: &Sets) -> Option<Union<PortRange, Ranges<u16>>> {
    let own = |ports: Vec<PortRange>| Ranges::new(ports.iter().map(pair)).into();
    union(
        list,
        sets,
        |range| *range,
        own,
        |set| match set {
            ReadySet::Ports(ports, _) => Some(ports.clone()),
            _ => None,
        },
    )
}

fn digests(list: &List<Labelled<Digest>>, sets: &Sets) -> Option<Union<Digest, [Digest]>> {
    let own = |mut digests: Vec<Digest>| {
        digests.sort_unstable();
        digests.into()
    };
    union(
        list,
        sets,
        |digest| digest.value,
        own,
        |set| match set {
            ReadySet::Digests(digests) => Some(digests.clone()),
            _ => None,
        },
    )
}

fn ids(list: &List<IdRange>) -> Ranges<u32> {
    Ranges::new(list.elements().map(|range| (range.first, range.last)))
}

fn globs(list: &List<Glob>) -> Option<GlobSet> {
    let mut builder = GlobSet::builder();
    for glob in list.elements() {
        builder.add(glob.compile().ok()?);
    }
    builder.build().ok()
}

/// A way to find a rule without asking all: if the rule may hold, the packet or an owner has one of these keys. `None`: the
/// rule has too many, or does not say.
pub(super) mod keys {
    use super::*;

    /// More keys than this are not worth their memory.
    const MOST: usize = 64;

    /// A predicate that must hold as it stands.
    fn positive<'a, T: 'a>(rule: &'a ActiveRule, pick: impl Fn(&'a Match) -> Option<T>) -> impl Iterator<Item = T> {
        rule.rule
            .predicates
            .iter()
            .filter(|predicate| !predicate.negated)
            .filter_map(move |predicate| pick(&predicate.on))
    }

    /// A few keys, and mostly one.
    pub(crate) type Keys<K> = SmallVec<[K; 1]>;

    /// Elements of a list with its sets opened. `None`: too many, or a set is not there.
    fn opened<T: Element, V: Copy>(
        list: &List<T>,
        sets: &Sets,
        own: impl Fn(&T) -> V,
        of_set: impl for<'a> Fn(&'a ReadySet) -> Option<&'a [V]>,
    ) -> Option<Keys<V>> {
        let mut all = Keys::new();
        for item in &list.0 {
            match item {
                Item::One(element) => all.push(own(element)),
                Item::Set(name) => all.extend_from_slice(of_set(sets.0.get(name)?)?),
            }
            if all.len() > MOST {
                return None;
            }
        }
        Some(all)
    }

    fn nets(list: &List<Net>, sets: &Sets) -> Option<Keys<Net>> {
        opened(
            list,
            sets,
            |net| *net,
            |set| match set {
                ReadySet::Nets(_, nets) if nets.len() <= MOST => Some(nets),
                _ => None,
            },
        )
    }

    fn ports(list: &List<PortRange>, sets: &Sets) -> Option<Keys<PortRange>> {
        opened(
            list,
            sets,
            |range| *range,
            |set| match set {
                ReadySet::Ports(_, ports) if ports.len() <= MOST => Some(ports),
                _ => None,
            },
        )
    }

    pub(crate) fn sources(rule: &ActiveRule, sets: &Sets) -> Option<Keys<Net>> {
        positive(rule, |on| if let Match::Source(list) = on { Some(nets(list, sets)) } else { None }).next()?
    }

    pub(crate) fn destinations(rule: &ActiveRule, sets: &Sets) -> Option<Keys<Net>> {
        positive(rule, |on| if let Match::Destination(list) = on { Some(nets(list, sets)) } else { None }).next()?
    }

    pub(crate) fn source_ports(rule: &ActiveRule, sets: &Sets) -> Option<Keys<PortRange>> {
        positive(rule, |on| if let Match::SourcePort(list) = on { Some(ports(list, sets)) } else { None }).next()?
    }

    pub(crate) fn destination_ports(rule: &ActiveRule, sets: &Sets) -> Option<Keys<PortRange>> {
        positive(rule, |on| if let Match::DestinationPort(list) = on { Some(ports(list, sets)) } else { None })
            .next()?
    }

    pub(crate) fn protocols(rule: &ActiveRule) -> Option<Keys<u8>> {
        let of = |list: &List<shared::Protocol>| list.elements().map(|protocol| protocol.0).collect();
        positive(rule, |on| if let Match::Protocol(list) = on { Some(of(list)) } else { None }).next()
    }

    /// What an owner is known by.
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub(crate) enum Identity {
        Digest(Digest),
        Aggregate(Digest),
        Uid(u32),
        Gid(u32),
        Cgroup(Box<str>),
        Unit(Box<str>),
        Program(Box<[u8]>),
    }

    fn digests(list: &List<Labelled<Digest>>, sets: &Sets) -> Option<Keys<Digest>> {
        opened(
            list,
            sets,
            |digest| digest.value,
            |set| match set {
                ReadySet::Digests(digests) if digests.len() <= MOST => Some(digests),
                _ => None,
            },
        )
    }

    fn ids(list: &List<IdRange>) -> Option<Vec<u32>> {
        let count: u64 = list.elements().map(|range| u64::from(range.last - range.first) + 1).sum();
        (count <= MOST as u64).then(|| list.elements().flat_map(|range| range.first..=range.last).collect())
    }

    /// A pattern that only one path matches.
    fn literal(glob: &Glob) -> Option<Box<[u8]>> {
        let is_plain = !glob.as_str().contains(['*', '?', '[', ']', '{', '}', '\\']);
        is_plain.then(|| glob.as_str().as_bytes().into())
    }

    /// Each way to find the rule by an owner: any one of them is enough.
    pub(crate) fn identities(rule: &ActiveRule, sets: &Sets) -> Vec<Vec<Identity>> {
        let of = |on: &Match| -> Option<Vec<Identity>> {
            let keys: Vec<Identity> = match on {
                Match::SngHash(list) => digests(list, sets)?.into_iter().map(Identity::Digest).collect(),
                // Whoever has all has the first.
                Match::AllHash(list) => digests(list, sets)?.into_iter().take(1).map(Identity::Digest).collect(),
                Match::AggHash(list) => digests(list, sets)?.into_iter().map(Identity::Aggregate).collect(),
                Match::Uid(list) => ids(list)?.into_iter().map(Identity::Uid).collect(),
                Match::Gid(list) => ids(list)?.into_iter().map(Identity::Gid).collect(),
                Match::Cgroup(list) => list.elements().map(|path| Identity::Cgroup(path.as_str().into())).collect(),
                Match::Unit(list) => list.elements().map(|unit| Identity::Unit(unit.as_str().into())).collect(),
                Match::ProgramPath(list) => {
                    list.elements().map(|glob| literal(glob).map(Identity::Program)).collect::<Option<_>>()?
                }
                _ => return None,
            };
            // All of no digests is true of everybody.
            (!matches!(on, Match::AllHash(_)) || !keys.is_empty()).then_some(keys).filter(|keys| keys.len() <= MOST)
        };
        positive(rule, of).collect()
    }

    /// All keys under which an owner may be looked for.
    pub(crate) fn of_owner(made: &Made<'_>) -> Vec<Identity> {
        let mut keys: Vec<_> = made.digests.iter().copied().map(Identity::Digest).collect();
        keys.extend(made.aggregate.map(Identity::Aggregate));
        keys.extend(made.uid.map(Identity::Uid));
        keys.extend(made.gid.map(Identity::Gid));
        keys.extend(made.program.map(|program| Identity::Program(program.into())));
        if let Some(group) = made.cgroup {
            let ends = group.match_indices('/').map(|(at, _)| at).chain([group.len()]);
            keys.extend(ends.map(|end| Identity::Cgroup(group[..end].into())));
            keys.extend(group.split('/').map(|part| Identity::Unit(part.into())));
        }
        keys
    }
}
