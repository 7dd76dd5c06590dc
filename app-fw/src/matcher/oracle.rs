//! What the rules mean, said as plainly as possible: one after another, nothing prepared. The matcher is held against it.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use shared::rule::{Element, Item, List, OwnerClass, TimeWindow};
use shared::set::{Elements, Set, SetName};
use shared::{Chain, Digest, Flow, Match, Ports, Predicate, Protocol, Reason, Rule, Selector, Verdict};

use super::*;

/// What decided: verdict, reason, rule. `None`: that depends on the owners.
type Verdicts = Option<(Verdict, Reason, Option<u64>)>;

struct World {
    /// In the order in which they count.
    rules: Vec<(u64, Rule)>,
    policy: Verdict,
    sets: HashMap<SetName, Elements>,
}

impl World {
    fn judge(&self, facts: &Facts<'_>, owners: Option<&[Owner<'_>]>) -> Verdicts {
        let mut doubted = false;
        for (id, rule) in &self.rules {
            let of_packet = all(rule, |on| self.of_packet(on, facts));
            let asks = rule.predicates.iter().any(|predicate| predicate.on.is_identity());
            if of_packet == Tri::No {
                continue;
            }
            let holds = match owners {
                None if asks => return None,
                Some(owners) if asks => of_packet.min(self.of_owners(rule, owners)),
                _ => of_packet,
            };
            match (holds, rule.verdict) {
                (Tri::Yes, verdict) => return Some((verdict, Reason::Rule, Some(*id))),
                (Tri::Unknown, Verdict::Accept) => doubted = true,
                (Tri::Unknown, verdict) => return Some((verdict, Reason::Undetermined, Some(*id))),
                (Tri::No, _) => {}
            }
        }
        let reason = if doubted && self.policy == Verdict::Drop { Reason::Undetermined } else { Reason::Policy };
        Some((self.policy, reason, None))
    }

    fn of_owners(&self, rule: &Rule, owners: &[Owner<'_>]) -> Tri {
        let is_identified = |owner: &Owner<'_>| matches!(owner, Owner::Known(Made { identified: true, .. }));
        let doubtful = !owners.iter().all(is_identified);
        let of_class = all(rule, |on| match on {
            Match::Owner(OwnerClass::Undetermined) => Some(doubtful.into()),
            Match::Owner(_) if doubtful => Some(Tri::Unknown),
            Match::Owner(OwnerClass::Owned) => Some((!owners.is_empty()).into()),
            Match::Owner(OwnerClass::Unowned) => Some(owners.is_empty().into()),
            _ => None,
        });
        if !rule
            .predicates
            .iter()
            .any(|predicate| predicate.on.is_identity() && !matches!(predicate.on, Match::Owner(_)))
        {
            return of_class;
        }
        let of_each = owners.iter().map(|owner| all(rule, |on| self.of_owner(on, owner)));
        let of_each = match rule.verdict {
            Verdict::Accept => of_each.min(),
            Verdict::Drop | Verdict::Reject => of_each.max(),
        };
        of_class.min(of_each.unwrap_or(Tri::No))
    }

    fn any<T: Element>(&self, list: &List<T>, one: impl Fn(&T) -> bool, of_set: impl Fn(&Elements) -> bool) -> bool {
        list.0.iter().any(|item| match item {
            Item::One(element) => one(element),
            Item::Set(name) => of_set(&self.sets[name]),
        })
    }

    fn of_packet(&self, on: &Match, facts: &Facts<'_>) -> Option<Tri> {
        let flow = facts.flow;
        let address = |list: &List<_>, address| {
            let within = |net: &shared::rule::Net| net.0.contains(&address);
            self.any(list, within, |set| matches!(set, Elements::Addresses(nets) if nets.iter().any(within))).into()
        };
        let port = |list: &List<_>, source: bool| match flow.ports {
            Ports::Absent => Tri::No,
            Ports::Unknown => Tri::Unknown,
            Ports::Known { source: from, destination: to } => {
                let port = if source { from } else { to };
                let within = |range: &shared::rule::PortRange| range.first <= port && port <= range.last;
                self.any(list, within, |set| matches!(set, Elements::Ports(ports) if ports.iter().any(within))).into()
            }
        };
        let passes = |list: &List<shared::rule::Interface>, device: Device<'_>| match device {
            Device::Unknown => Tri::Unknown,
            Device::None => Tri::No,
            Device::Named(name) => list.elements().any(|pattern| pattern.matches(name)).into(),
        };
        Some(match on {
            Match::Source(list) => address(list, flow.source),
            Match::Destination(list) => address(list, flow.destination),
            Match::Protocol(list) => list.elements().any(|protocol| *protocol == flow.protocol).into(),
            Match::SourcePort(list) => port(list, true),
            Match::DestinationPort(list) => port(list, false),
            Match::InInterface(list) => passes(list, facts.input),
            Match::OutInterface(list) => passes(list, facts.output),
            Match::Netns(list) => {
                let is_meant = |selector: &Selector| facts.namespace.map(|names| names.contains(selector));
                let any = list.elements().any(|selector| *selector == Selector::Any);
                let answers: Vec<_> = list.elements().map(is_meant).collect();
                match answers.contains(&None) {
                    _ if any => Tri::Yes,
                    true => Tri::Unknown,
                    false => answers.contains(&Some(true)).into(),
                }
            }
            Match::Time(window) => is_open(window).into(),
            _ => return None,
        })
    }

    fn of_owner(&self, on: &Match, owner: &Owner<'_>) -> Option<Tri> {
        let is_of_each = on.is_identity() && !matches!(on, Match::Owner(_));
        let Owner::Known(made) = owner else { return is_of_each.then_some(Tri::Unknown) };
        let known = |holds: Option<bool>| holds.map_or(Tri::Unknown, Tri::from);
        let or_unknown = |holds: bool, complete: bool| match (holds, complete) {
            (true, _) => Tri::Yes,
            (false, true) => Tri::No,
            (false, false) => Tri::Unknown,
        };
        let digest = |list: &List<shared::rule::Labelled<Digest>>, has: &dyn Fn(&Digest) -> bool| {
            let of_set = |set: &Elements| matches!(set, Elements::Digests(digests) if digests.iter().any(has));
            self.any(list, |digest| has(&digest.value), of_set)
        };
        let has = |digest: &Digest| made.digests.contains(digest);
        let lacks = |digest: &Digest| !has(digest);
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
        let matches = |list: &List<shared::rule::Glob>, path: &[u8]| {
            list.elements().any(|glob| glob.compile().unwrap().compile_matcher().is_match(text(path)))
        };
        Some(match on {
            Match::SngHash(list) => or_unknown(digest(list, &has), made.complete),
            Match::AllHash(list) => or_unknown(!digest(list, &lacks), made.complete),
            Match::AggHash(list) => known(made.aggregate.map(|aggregate| digest(list, &|other| *other == aggregate))),
            Match::ObjectPath(list) => or_unknown(
                made.paths.iter().any(|path| matches(list, path)),
                made.complete && made.paths.iter().all(|path| !path.is_empty()),
            ),
            Match::ProgramPath(list) => known(made.program.map(|program| matches(list, program))),
            Match::Uid(list) => known(made.uid.map(|uid| list.elements().any(|range| range.contains(uid)))),
            Match::Gid(list) => known(made.gid.map(|gid| list.elements().any(|range| range.contains(gid)))),
            Match::Cgroup(list) => known(made.cgroup.map(|group| list.elements().any(|path| path.holds(group)))),
            Match::Unit(list) => known(made.cgroup.map(|group| list.elements().any(|unit| unit.holds(group)))),
            Match::Container(list) => known(made.cgroup.map(|group| list.elements().any(|id| id.value.holds(group)))),
            Match::AnonExec => match made.anon_exec {
                Some(true) => Tri::Yes,
                Some(false) if made.complete => Tri::No,
                _ => Tri::Unknown,
            },
            Match::Traced => known(made.traced),
            _ => return None,
        })
    }
}

fn all(rule: &Rule, ask: impl Fn(&Match) -> Option<Tri>) -> Tri {
    let answer = |predicate: &Predicate| Some(ask(&predicate.on)?.negate_if(predicate.negated));
    rule.predicates.iter().filter_map(answer).min().unwrap_or(Tri::Yes)
}

fn is_open(window: &TimeWindow) -> bool {
    window.from.is_multiple_of(2)
}

/// Random choices among few things, so that rules and packets meet often.
struct Dice(TestRng);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

const NETS: [&str; 11] = [
    "10.0.0.0/8",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.0/30",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "::/0",
    "2001:db8::/32",
    "2001:db8::1",
    "2001:db8::2",
    "@lan",
];
const ADDRESSES: [[&str; 2]; 3] = [["10.0.0.1", "10.0.0.2"], ["10.1.0.9", "192.0.2.1"], ["2001:db8::1", "2001:db8::2"]];
const PORTS: [&str; 8] = ["80", "443", "1000:2000", "0:65535", "1:1023", "79:81", "53", "@web"];
const SOME_PORTS: [u16; 7] = [80, 443, 53, 1000, 1500, 2000, 65535];
const PATHS: [&str; 4] = ["/usr/bin/curl", "/usr/lib/libssl.so.3", "/opt/a/b", ""];
const GLOBS: [&str; 5] = ["/usr/bin/*", "/usr/bin/curl", "**/libssl.so*", "/opt/**", "/nothing"];
const CGROUP: &str = "/system.slice/docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";
const CGROUPS: [&str; 3] = ["/system.slice/a.service", "/user.slice/x", CGROUP];

fn digest(n: usize) -> Digest {
    Digest([n as u8; 32])
}

fn rule(dice: &mut Dice) -> Rule {
    let mut text = format!("-c OUTPUT -n any -v {}", dice.pick(&["ACCEPT", "DROP", "REJECT"]));
    for _ in 0..dice.below(4) {
        if dice.one_in(4) {
            text.push_str(" !");
        }
        let several = |dice: &mut Dice, from: &[&str]| {
            (0..=dice.below(2)).map(|_| dice.pick(from).to_owned()).collect::<Vec<_>>().join(",")
        };
        let digests = |dice: &mut Dice| {
            let one =
                |dice: &mut Dice| if dice.one_in(5) { "@known".to_owned() } else { digest(dice.below(6)).to_string() };
            (0..=dice.below(2)).map(|_| one(dice)).collect::<Vec<_>>().join(",")
        };
        let option = match dice.below(22) {
            0 => format!("-s {}", several(dice, &NETS)),
            1 | 2 => format!("-d {}", several(dice, &NETS)),
            3 => format!("-p {}", dice.pick(&["tcp", "udp", "icmp", "tcp,udp"])),
            4 => format!("--sport {}", several(dice, &PORTS)),
            5 | 6 => format!("--dport {}", several(dice, &PORTS)),
            7 => format!("-o {}", dice.pick(&["eth0", "eth+", "lo"])),
            8 => format!("-i {}", dice.pick(&["eth0", "docker0"])),
            9 => format!("--netns {}", dice.pick(&["host", "any", "blue"])),
            10 | 11 => format!("--sng-hash {}", digests(dice)),
            12 => format!("--all-hash {}", digests(dice)),
            13 => format!("--agg-hash {}", digests(dice)),
            14 => format!("--object-path {}", dice.pick(&GLOBS)),
            15 => format!("--program-path {}", dice.pick(&GLOBS)),
            16 => format!("--uid {}", dice.pick(&["0", "1000-1999", "0,1000", "0-4294967295"])),
            17 => format!("--gid {}", dice.pick(&["0", "1000"])),
            18 => match dice.below(3) {
                0 => format!("--cgroup {}", dice.pick(&["/system.slice", "/", "/user.slice/x"])),
                1 => format!("--unit {}", dice.pick(&["a", "b"])),
                _ => format!("--container {}", dice.pick(&["0123456789ab", "ffffffffffff"])),
            },
            19 => format!("--owner {}", dice.pick(&["owned", "unowned", "undetermined"])),
            20 => dice.pick(&["--anon-exec", "--traced"]).to_owned(),
            _ => format!("--time {}", dice.pick(&["08:00-18:00", "08:01-18:00"])),
        };
        text.push(' ');
        text.push_str(&option);
    }
    // The same option with the same negation twice may be given twice only if it takes a list.
    text.parse().unwrap_or_else(|_| rule(dice))
}

fn flow(dice: &mut Dice) -> Flow {
    let addresses = ADDRESSES[dice.below(ADDRESSES.len())].map(|address| address.parse().unwrap());
    let source = dice.below(2);
    let mut port = || SOME_PORTS[dice.below(SOME_PORTS.len())];
    let known = Ports::Known { source: port(), destination: port() };
    let (protocol, ports) = match dice.below(8) {
        0 => (Protocol::ICMP, Ports::Absent),
        1 => (Protocol::UDP, Ports::Unknown),
        2 | 3 => (Protocol::UDP, known),
        _ => (Protocol::TCP, known),
    };
    Flow { protocol, source: addresses[source], destination: addresses[1 - source], ports }
}

/// Facts of an owner, owned.
struct Person {
    known: bool,
    digests: Vec<Digest>,
    complete: bool,
    aggregate: Option<Digest>,
    paths: Vec<Vec<u8>>,
    program: Option<&'static str>,
    uid: Option<u32>,
    gid: Option<u32>,
    cgroup: Option<&'static str>,
    anon_exec: Option<bool>,
    traced: Option<bool>,
    identified: bool,
}

impl Person {
    fn new(dice: &mut Dice) -> Person {
        // Mostly everything is known.
        let mut known = dice.below(3) > 0;
        let mut maybe = |dice: &mut Dice| {
            known || {
                known = false;
                !dice.one_in(3)
            }
        };
        let complete = maybe(dice);
        let mut some = |dice: &mut Dice| maybe(dice);
        Person {
            known: some(dice) || !dice.one_in(3),
            digests: (0..dice.below(4)).map(|_| digest(dice.below(6))).collect(),
            complete,
            aggregate: (complete && some(dice)).then(|| digest(dice.below(6))),
            paths: (0..dice.below(3))
                .map(|_| PATHS[dice.below(if complete { PATHS.len() - 1 } else { PATHS.len() })].into())
                .collect(),
            program: some(dice).then(|| PATHS[dice.below(PATHS.len() - 1)]),
            uid: some(dice).then(|| [0, 1000, 1500, 5][dice.below(4)]),
            gid: some(dice).then(|| [0, 1000][dice.below(2)]),
            cgroup: some(dice).then(|| CGROUPS[dice.below(CGROUPS.len())]),
            anon_exec: some(dice).then(|| dice.one_in(2)),
            traced: some(dice).then(|| dice.one_in(2)),
            identified: complete || !dice.one_in(3),
        }
    }

    fn owner(&self) -> Owner<'_> {
        if !self.known {
            return Owner::Undetermined;
        }
        Owner::Known(Made {
            digests: &self.digests,
            complete: self.complete,
            aggregate: self.aggregate,
            paths: &self.paths,
            program: self.program.map(str::as_bytes),
            uid: self.uid,
            gid: self.gid,
            cgroup: self.cgroup,
            anon_exec: self.anon_exec,
            traced: self.traced,
            identified: self.identified,
        })
    }
}

fn sets() -> Vec<Set> {
    let set = |name: &str, kind: &str, elements: &[&str]| Set {
        name: name.parse().unwrap(),
        elements: Elements::parse(kind.parse().unwrap(), elements.iter().copied()).unwrap(),
    };
    let known = [2, 3].map(|n| digest(n).to_string());
    vec![
        set("lan", "addresses", &["10.1.0.0/16", "2001:db8::2", "192.0.2.0/24"]),
        set("web", "ports", &["80", "443", "1000:1500"]),
        set("known", "digests", &known.each_ref().map(String::as_str)),
    ]
}

fn said(judgement: Judgement) -> Verdicts {
    Some((judgement.verdict, judgement.reason, judgement.rule.map(|rule| rule.id)))
}

/// Rules and the same rules made ready, changed now and then.
struct Both {
    world: World,
    ranks: Vec<u64>,
    ruleset: Ruleset,
    sets: Arc<Sets>,
    next: u64,
}

const PLACE: (Selector, Chain) = (Selector::Any, Chain::Output);

impl Both {
    fn new(dice: &mut Dice, count: usize) -> Both {
        let policy = if dice.one_in(2) { Verdict::Drop } else { Verdict::Accept };
        let all = sets();
        let ready = Arc::new(Sets::new(&all));
        let rules: Vec<(u64, Rule)> = (0..count as u64).map(|id| (id + 1, rule(dice))).collect();
        let ranks = (0..count as u64).map(|n| (n + 1) << 20).collect::<Vec<_>>();
        let active = rules.iter().zip(&ranks).map(|((id, rule), rank)| active(*id, *rank, rule, &ready));
        let defaults = Defaults { output: policy, input: policy, forward: policy };
        let contents = Contents { rules: active, policies: [], sets: ready.clone() };
        let ruleset = Ruleset::new(1, contents, defaults);
        let world = World { rules, policy, sets: all.into_iter().map(|set| (set.name, set.elements)).collect() };
        Both { world, ranks, ruleset, sets: ready, next: count as u64 + 1 }
    }

    fn change(&mut self, dice: &mut Dice) {
        let mut delta = Delta::default();
        for _ in 0..=dice.below(3) {
            let at = dice.below(self.world.rules.len() + 1);
            if at < self.world.rules.len() && dice.one_in(2) {
                let (id, _) = self.world.rules.remove(at);
                self.ranks.remove(at);
                delta.added.retain(|rule| rule.id != id);
                delta.removed.push(id);
                continue;
            }
            let before = at.checked_sub(1).map_or(0, |before| self.ranks[before]);
            let rank = before + (self.ranks.get(at).copied().unwrap_or(before + (2 << 20)) - before) / 2;
            let (id, rule) = (self.next, rule(dice));
            self.next += 1;
            delta.added.push(active(id, rank, &rule, &self.sets));
            self.world.rules.insert(at, (id, rule));
            self.ranks.insert(at, rank);
        }
        self.ruleset = self.ruleset.with(self.ruleset.generation + 1, [(PLACE, delta)], [], self.sets.clone());
        if dice.one_in(8) {
            self.ruleset = self.ruleset.compact();
        }
    }

    fn check(&self, dice: &mut Dice) {
        let flow = flow(dice);
        let names = [vec![Selector::Host], vec![Selector::Named("blue".into()), Selector::Host]];
        let names = &names[dice.below(2)];
        let facts = Facts {
            flow: &flow,
            input: [Device::None, Device::Named("eth0"), Device::Named("docker0"), Device::Unknown][dice.below(4)],
            output: [Device::None, Device::Named("eth0"), Device::Named("eth12"), Device::Unknown][dice.below(4)],
            namespace: (!dice.one_in(8)).then_some(names),
            now: 0,
        };
        let people: Vec<Person> = (0..[0, 1, 1, 1, 2, 3][dice.below(6)]).map(|_| Person::new(dice)).collect();
        let owners: Vec<Owner<'_>> = people.iter().map(Person::owner).collect();
        let view = self.ruleset.view(&[], Chain::Output);
        let unasked = match view.judge(&facts) {
            Outcome::Judged(judgement) => said(judgement),
            Outcome::NeedsOwners => None,
        };
        let context = || {
            format!(
                "{facts:?}\n{owners:?}\n{:#?}",
                self.world.rules.iter().map(|(id, rule)| format!("{id}: {rule}")).collect::<Vec<_>>()
            )
        };
        assert_eq!(unasked, self.world.judge(&facts, None), "without owners: {}", context());
        let residual = view.residual(&owners);
        let asked = said(residual.judge(&facts, &owners));
        assert_eq!(asked, self.world.judge(&facts, Some(&owners)), "with owners: {}", context());
        if let Some(like) = Like::new(&facts, view.dependence(flow.protocol), dice) {
            let unasked_of_other = match view.judge(&like.facts(&facts)) {
                Outcome::Judged(judgement) => said(judgement),
                Outcome::NeedsOwners => None,
            };
            assert_eq!(unasked_of_other, unasked, "{like:?} without owners: {}", context());
        }
        if let Some(like) = Like::new(&facts, residual.dependence(flow.protocol), dice) {
            let of_other = said(residual.judge(&like.facts(&facts), &owners));
            assert_eq!(of_other, asked, "{like:?} with owners: {}", context());
        }
        let ids: Vec<u64> = view.rules().iter().map(|rule| rule.id).collect();
        assert_eq!(ids, self.world.rules.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    }
}

/// Another packet, for which the rules should say the same.
#[derive(Debug)]
struct Like {
    flow: Flow,
    input: Device<'static>,
    output: Device<'static>,
}

impl Like {
    fn new(facts: &Facts<'_>, dependence: Dependence, dice: &mut Dice) -> Option<Like> {
        let Ports::Known { destination: port, .. } = facts.flow.ports else { return None };
        let mut other = flow(dice);
        let Ports::Known { source, destination } = other.ports else { return None };
        other.protocol = facts.flow.protocol;
        let mut device = |devices: [Device<'static>; 4]| devices[dice.below(4)];
        match dependence {
            Dependence::Nothing => {
                let devices = [Device::None, Device::Named("eth0"), Device::Named("docker0"), Device::Unknown];
                other.ports = Ports::Known { source, destination };
                Some(Like { flow: other, input: device(devices), output: device(devices) })
            }
            Dependence::Destination => {
                if other.source.is_ipv4() != facts.flow.source.is_ipv4() {
                    other.source = facts.flow.source;
                }
                other.destination = facts.flow.destination;
                other.ports = Ports::Known { source, destination: port };
                Some(Like { flow: other, input: constant(facts.input), output: constant(facts.output) })
            }
            Dependence::Flow => None,
        }
    }

    fn facts<'a>(&'a self, facts: &Facts<'a>) -> Facts<'a> {
        Facts { flow: &self.flow, input: self.input, output: self.output, ..*facts }
    }
}

fn constant(device: Device<'_>) -> Device<'static> {
    match device {
        Device::None => Device::None,
        Device::Unknown => Device::Unknown,
        Device::Named(name) => {
            Device::Named(["eth0", "docker0", "eth12"].into_iter().find(|known| *known == name).unwrap())
        }
    }
}

fn active(id: u64, rank: u64, rule: &Rule, sets: &Sets) -> Arc<ActiveRule> {
    Arc::new(ActiveRule::new(id, rank, Arc::new(rule.clone()), Arc::default(), sets, is_open))
}

/// Rounds of rules, each with so many packets; `APP_FW_ROUNDS` makes it longer.
fn rounds() -> u32 {
    std::env::var("APP_FW_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1500)
}
const PACKETS: usize = 700;

#[test]
fn random_rules_mean_what_they_say() {
    let config = Config { cases: rounds(), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    runner
        .run(&any::<[u8; 32]>(), |seed| {
            let mut dice = Dice(TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
            let count = [0, 1, 3, 12, 40, 150][dice.below(6)];
            let mut both = Both::new(&mut dice, count);
            for packet in 0..PACKETS {
                if packet % 100 == 99 {
                    both.change(&mut dice);
                }
                both.check(&mut dice);
            }
            Ok(())
        })
        .unwrap();
}
