//! Rules against a packet and its owners: the first rule that fires decides, else the chain's policy.
//!
//! Predicates over owners answer yes, no or unknown, and not knowing never helps the sender: a DROP rule fires if any
//! owner may match, an ACCEPT rule only if every owner surely does. Pure: no clock, no kernel, no other room.

use std::collections::HashMap;
use std::sync::Arc;

use shared::{Chain, Digest, Flow, Match, Ports, Predicate, Reason, Rule, Selector, Verdict};

/// The answer of a predicate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tri {
    /// It does not hold.
    No,
    /// It may hold.
    Unknown,
    /// It holds.
    Yes,
}

impl Tri {
    fn negate_if(self, negated: bool) -> Tri {
        match (self, negated) {
            (Tri::Yes, true) => Tri::No,
            (Tri::No, true) => Tri::Yes,
            (as_is, _) => as_is,
        }
    }
}

impl From<bool> for Tri {
    fn from(holds: bool) -> Tri {
        if holds { Tri::Yes } else { Tri::No }
    }
}

/// What a process is made of, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// Digests of its objects, those that are known.
    pub digests: &'a [Digest],
    /// These are all.
    pub complete: bool,
    /// The aggregate digest, if it is known.
    pub aggregate: Option<Digest>,
    /// It has executable memory whose content no file holds. `None` if that is not known.
    pub anon_exec: Option<bool>,
    /// Another process traces it. `None` if that is not known.
    pub traced: Option<bool>,
    /// Paths of its objects, as far as they are known: where `complete`, and none is empty, these are all.
    pub paths: &'a [Vec<u8>],
    /// Path of its program, as it is known to the process. `None` if it is not known.
    pub program: Option<&'a [u8]>,
    /// Its effective user id. `None` if that is not known.
    pub uid: Option<u32>,
    /// Its effective group id. `None` if that is not known.
    pub gid: Option<u32>,
    /// Path of its control group. `None` if that is not known.
    pub cgroup: Option<&'a str>,
}

/// One owner of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A process whose image was read.
    Known(Made<'a>),
    /// A process that could not be identified.
    Undetermined,
}

/// A rule in force.
#[derive(Debug, PartialEq)]
pub struct ActiveRule {
    /// Stable id.
    pub id: u64,
    /// What it says.
    pub rule: Rule,
    /// Its text form, made once for events.
    pub text: Arc<str>,
}

impl ActiveRule {
    /// Makes the text.
    pub fn new(id: u64, rule: Rule) -> ActiveRule {
        ActiveRule { id, text: rule.to_string().into(), rule }
    }
}

/// The rules one packet meets, in order.
#[derive(Clone, Debug)]
pub struct ChainRules {
    /// First match decides.
    pub rules: Vec<Arc<ActiveRule>>,
    /// Where none fires.
    pub policy: Verdict,
}

/// What the rules say.
#[derive(Clone, PartialEq, Debug)]
pub struct Judgement {
    /// What happens to the packet.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The rule that fired.
    pub rule: Option<Arc<ActiveRule>>,
}

/// How far the rules could be followed.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// To the end.
    Judged(Judgement),
    /// Up to a rule that asks about owners, who were not given.
    NeedsOwners,
}

/// Follows the rules. `owners` is `None` while nobody asked; an empty list is a packet that no process owns.
pub fn judge(chain: &ChainRules, flow: &Flow, owners: Option<&[Owner<'_>]>) -> Outcome {
    let mut doubted = false;
    for active in &chain.rules {
        let rule = &active.rule;
        let of_flow = all(rule, |on| flow_holds(on, flow));
        if of_flow == Tri::No {
            continue;
        }
        let holds = if rule.predicates.iter().any(|predicate| predicate.on.is_identity()) {
            let Some(owners) = owners else { return Outcome::NeedsOwners };
            of_flow.min(owners_hold(rule, owners))
        } else {
            of_flow
        };
        let (fires, reason) = match (rule.verdict, holds) {
            (_, Tri::Yes) => (true, Reason::Rule),
            (Verdict::Drop, Tri::Unknown) => (true, Reason::Undetermined),
            (Verdict::Accept, Tri::Unknown) => {
                doubted = true;
                (false, Reason::Undetermined)
            }
            (_, Tri::No) => (false, Reason::Rule),
        };
        if fires {
            return Outcome::Judged(Judgement { verdict: rule.verdict, reason, rule: Some(active.clone()) });
        }
    }
    let reason = if doubted && chain.policy == Verdict::Drop { Reason::Undetermined } else { Reason::Policy };
    Outcome::Judged(Judgement { verdict: chain.policy, reason, rule: None })
}

/// Whether all predicates hold that `ask` knows about.
fn all(rule: &Rule, ask: impl Fn(&Match) -> Option<Tri>) -> Tri {
    let answer = |predicate: &Predicate| Some(ask(&predicate.on)?.negate_if(predicate.negated));
    rule.predicates.iter().filter_map(answer).min().unwrap_or(Tri::Yes)
}

fn flow_holds(on: &Match, flow: &Flow) -> Option<Tri> {
    let port = |wanted: u16, of: fn(u16, u16) -> u16| match flow.ports {
        Ports::Known { source, destination } => Tri::from(of(source, destination) == wanted),
        Ports::Absent => Tri::No,
        Ports::Unknown => Tri::Unknown,
    };
    Some(match on {
        Match::Source(net) => net.contains(&flow.source).into(),
        Match::Destination(net) => net.contains(&flow.destination).into(),
        Match::Protocol(protocol) => (*protocol == flow.protocol).into(),
        Match::SourcePort(wanted) => port(*wanted, |source, _| source),
        Match::DestinationPort(wanted) => port(*wanted, |_, destination| destination),
        Match::SngHash(_) | Match::AggHash(_) | Match::AnonExec | Match::Traced => return None,
    })
}

/// For a DROP rule the owner that matches best counts, for an ACCEPT rule the one that matches worst. A packet without
/// owners matches no predicate about owners, whether negated or not.
fn owners_hold(rule: &Rule, owners: &[Owner<'_>]) -> Tri {
    let holds = owners.iter().map(|owner| all(rule, |on| owner_holds(on, owner)));
    match rule.verdict {
        Verdict::Drop => holds.max(),
        Verdict::Accept => holds.min(),
    }
    .unwrap_or(Tri::No)
}

fn owner_holds(on: &Match, owner: &Owner<'_>) -> Option<Tri> {
    let Owner::Known(made) = owner else { return on.is_identity().then_some(Tri::Unknown) };
    match on {
        Match::SngHash(wanted) if made.digests.contains(wanted) => Some(Tri::Yes),
        Match::SngHash(_) => Some(if made.complete { Tri::No } else { Tri::Unknown }),
        Match::AggHash(wanted) => Some(made.aggregate.map_or(Tri::Unknown, |aggregate| (aggregate == *wanted).into())),
        Match::AnonExec => Some(match made.anon_exec {
            Some(true) => Tri::Yes,
            // What could not be read may be no file: secret memory, a device.
            Some(false) if made.complete => Tri::No,
            _ => Tri::Unknown,
        }),
        Match::Traced => Some(made.traced.map_or(Tri::Unknown, Tri::from)),
        _ => None,
    }
}

/// All rules and policies at one moment. Immutable: a change makes a new one.
#[derive(Debug)]
pub struct Ruleset {
    /// Moves with every change.
    pub generation: u64,
    rules: HashMap<(Selector, Chain), Vec<Arc<ActiveRule>>>,
    policies: HashMap<(Selector, Chain), Verdict>,
    defaults: Defaults,
    count: usize,
    asks_beyond_files: bool,
}

/// What happens where neither a rule nor a stored policy says anything.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// `--pol-out`.
    pub output: Verdict,
    /// `--pol-in`.
    pub input: Verdict,
    /// `--pol-fwd`.
    pub forward: Verdict,
}

impl Defaults {
    /// The default of one chain.
    pub fn of(&self, chain: Chain) -> Verdict {
        match chain {
            Chain::Output => self.output,
            Chain::Input => self.input,
            Chain::Forward => self.forward,
        }
    }
}

impl Ruleset {
    /// `rules` in the order in which they stand in their chain and namespace.
    pub fn new(
        generation: u64,
        rules: impl IntoIterator<Item = ActiveRule>,
        policies: impl IntoIterator<Item = (Selector, Chain, Verdict)>,
        defaults: Defaults,
    ) -> Ruleset {
        let mut lists: HashMap<_, Vec<_>> = HashMap::new();
        let mut count = 0;
        let mut asks_beyond_files = false;
        for active in rules {
            count += 1;
            asks_beyond_files |= active.rule.predicates.iter().any(|predicate| predicate.on.is_beyond_files());
            lists.entry((active.rule.namespace.clone(), active.rule.chain)).or_default().push(Arc::new(active));
        }
        let policies = policies.into_iter().map(|(selector, chain, verdict)| ((selector, chain), verdict)).collect();
        Ruleset { generation, rules: lists, policies, defaults, count, asks_beyond_files }
    }

    /// Whether some rule asks for more of a process than its mapped files.
    pub fn asks_beyond_files(&self) -> bool {
        self.asks_beyond_files
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What packets of `chain` meet in a namespace that `selectors` name, most specific first: the rules of each
    /// selector in turn, then those for any namespace. The first of them that has a policy gives it.
    pub fn chain(&self, selectors: &[Selector], chain: Chain) -> ChainRules {
        let any = [Selector::Any];
        let keys = || selectors.iter().filter(|s| **s != Selector::Any).chain(&any).map(|s| (s.clone(), chain));
        ChainRules {
            rules: keys().filter_map(|key| self.rules.get(&key)).flatten().cloned().collect(),
            policy: keys().find_map(|key| self.policies.get(&key).copied()).unwrap_or_else(|| self.defaults.of(chain)),
        }
    }
}

impl Ruleset {
    /// What packets of `chain` meet whose namespace is not known. Any rule to drop may be meant for them, and no rule to
    /// accept surely is but one for all namespaces; the policy is to drop if it is so anywhere.
    pub fn chain_in_doubt(&self, chain: Chain) -> ChainRules {
        let of_chain = |(selector, of): &&(Selector, Chain)| *of == chain && *selector != Selector::Any;
        let mut named: Vec<_> = self.rules.keys().filter(of_chain).collect();
        named.sort();
        let drops =
            named.into_iter().flat_map(|key| &self.rules[key]).filter(|active| active.rule.verdict == Verdict::Drop);
        let any = self.chain(&[], chain);
        let drops_somewhere = self.policies.iter().any(|((_, of), verdict)| *of == chain && *verdict == Verdict::Drop);
        ChainRules {
            rules: drops.cloned().chain(any.rules).collect(),
            policy: if drops_somewhere { Verdict::Drop } else { any.policy },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::Protocol;

    const A: Digest = Digest([1; 32]);
    const B: Digest = Digest([2; 32]);
    const WHOLE: Digest = Digest([9; 32]);

    fn flow() -> Flow {
        Flow {
            protocol: Protocol::TCP,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            ports: Ports::Known { source: 1000, destination: 80 },
        }
    }

    fn chain(policy: Verdict, rules: &[&str]) -> ChainRules {
        let parse = |(id, text): (usize, &&str)| {
            Arc::new(ActiveRule::new(id as u64, format!("-c OUTPUT -n any {text}").parse().unwrap()))
        };
        ChainRules { rules: rules.iter().enumerate().map(parse).collect(), policy }
    }

    fn known(digests: &[Digest]) -> Owner<'_> {
        Owner::Known(made(digests))
    }

    fn partly(digests: &[Digest]) -> Owner<'_> {
        Owner::Known(Made { complete: false, aggregate: None, ..made(digests) })
    }

    fn with_memory(anon_exec: Option<bool>) -> Owner<'static> {
        Owner::Known(Made { anon_exec, ..made(&[A]) })
    }

    fn perhaps_traced(traced: Option<bool>) -> Owner<'static> {
        Owner::Known(Made { traced, ..made(&[A]) })
    }

    fn made(digests: &[Digest]) -> Made<'_> {
        let (complete, aggregate, anon_exec, traced) = (true, Some(WHOLE), Some(false), Some(false));
        let (paths, program, uid, gid, cgroup) = (&[][..], None, None, None, None);
        Made { digests, complete, aggregate, anon_exec, traced, paths, program, uid, gid, cgroup }
    }

    #[track_caller]
    fn check(chain: &ChainRules, owners: &[Owner<'_>], verdict: Verdict, reason: Reason) {
        match judge(chain, &flow(), Some(owners)) {
            Outcome::Judged(judgement) => assert_eq!((judgement.verdict, judgement.reason), (verdict, reason)),
            Outcome::NeedsOwners => panic!("owners were given"),
        }
    }

    #[test]
    fn a_drop_rule_fires_if_one_owner_may_match() {
        let rules = chain(Verdict::Accept, &[&format!("-v DROP --sng-hash {A}")]);
        check(&rules, &[known(&[A])], Verdict::Drop, Reason::Rule);
        check(&rules, &[known(&[B])], Verdict::Accept, Reason::Policy);
        check(&rules, &[known(&[B]), known(&[A, B])], Verdict::Drop, Reason::Rule);
        check(&rules, &[known(&[B]), Owner::Undetermined], Verdict::Drop, Reason::Undetermined);
        check(&rules, &[partly(&[B])], Verdict::Drop, Reason::Undetermined);
        check(&rules, &[partly(&[A])], Verdict::Drop, Reason::Rule);
        check(&rules, &[], Verdict::Accept, Reason::Policy);
    }

    #[test]
    fn an_accept_rule_fires_only_if_every_owner_surely_matches() {
        let rules = chain(Verdict::Drop, &[&format!("-v ACCEPT --sng-hash {A}")]);
        check(&rules, &[known(&[A])], Verdict::Accept, Reason::Rule);
        check(&rules, &[known(&[A]), known(&[B])], Verdict::Drop, Reason::Policy);
        check(&rules, &[known(&[A]), Owner::Undetermined], Verdict::Drop, Reason::Undetermined);
        check(&rules, &[known(&[B]), Owner::Undetermined], Verdict::Drop, Reason::Policy);
        check(&rules, &[partly(&[A])], Verdict::Accept, Reason::Rule);
        check(&rules, &[partly(&[B])], Verdict::Drop, Reason::Undetermined);
        check(&rules, &[], Verdict::Drop, Reason::Policy);
    }

    #[test]
    fn negation_means_has_no_such_object() {
        let drops = chain(Verdict::Accept, &[&format!("-v DROP ! --sng-hash {A}")]);
        check(&drops, &[known(&[A, B])], Verdict::Accept, Reason::Policy);
        check(&drops, &[known(&[B])], Verdict::Drop, Reason::Rule);
        check(&drops, &[known(&[A]), known(&[B])], Verdict::Drop, Reason::Rule);
        check(&drops, &[partly(&[B])], Verdict::Drop, Reason::Undetermined);
        // Nobody owns it: nobody lacks the object either.
        check(&drops, &[], Verdict::Accept, Reason::Policy);
        let accepts = chain(Verdict::Drop, &[&format!("-v ACCEPT ! --sng-hash {A}")]);
        check(&accepts, &[known(&[B])], Verdict::Accept, Reason::Rule);
        check(&accepts, &[known(&[A]), known(&[B])], Verdict::Drop, Reason::Policy);
        check(&accepts, &[Owner::Undetermined], Verdict::Drop, Reason::Undetermined);
    }

    #[test]
    fn the_aggregate_needs_every_digest() {
        let rules = chain(Verdict::Drop, &[&format!("-v ACCEPT --agg-hash {WHOLE}")]);
        check(&rules, &[known(&[A])], Verdict::Accept, Reason::Rule);
        check(&rules, &[partly(&[A])], Verdict::Drop, Reason::Undetermined);
    }

    #[test]
    fn executable_memory_without_a_file() {
        let (yes, no, unknown) = (with_memory(Some(true)), with_memory(Some(false)), with_memory(None));
        let drops = chain(Verdict::Accept, &["-v DROP --anon-exec"]);
        check(&drops, &[yes], Verdict::Drop, Reason::Rule);
        check(&drops, &[no, yes], Verdict::Drop, Reason::Rule);
        check(&drops, &[no], Verdict::Accept, Reason::Policy);
        for doubtful in [unknown, partly(&[A]), Owner::Undetermined] {
            check(&drops, &[doubtful], Verdict::Drop, Reason::Undetermined);
        }
        check(&drops, &[], Verdict::Accept, Reason::Policy);
        let accepts = chain(Verdict::Drop, &["-v ACCEPT ! --anon-exec"]);
        check(&accepts, &[no], Verdict::Accept, Reason::Rule);
        check(&accepts, &[no, yes], Verdict::Drop, Reason::Policy);
        for doubtful in [unknown, partly(&[A]), Owner::Undetermined] {
            check(&accepts, &[doubtful], Verdict::Drop, Reason::Undetermined);
        }
        check(&accepts, &[], Verdict::Drop, Reason::Policy);
    }

    #[test]
    fn a_tracer() {
        let [yes, no, unknown] = [Some(true), Some(false), None].map(perhaps_traced);
        let drops = chain(Verdict::Accept, &["-v DROP --traced"]);
        check(&drops, &[no, yes], Verdict::Drop, Reason::Rule);
        check(&drops, &[no], Verdict::Accept, Reason::Policy);
        let accepts = chain(Verdict::Drop, &[&format!("-v ACCEPT ! --traced --sng-hash {A}")]);
        check(&accepts, &[no], Verdict::Accept, Reason::Rule);
        check(&accepts, &[no, yes], Verdict::Drop, Reason::Policy);
        for doubtful in [unknown, Owner::Undetermined] {
            check(&drops, &[doubtful], Verdict::Drop, Reason::Undetermined);
            check(&accepts, &[doubtful], Verdict::Drop, Reason::Undetermined);
        }
    }

    #[test]
    fn predicates_about_one_owner_belong_together() {
        // One owner has A, another lacks B: no single owner does both.
        let rules = chain(Verdict::Accept, &[&format!("-v DROP --sng-hash {A} ! --sng-hash {B}")]);
        check(&rules, &[known(&[A, B]), known(&[])], Verdict::Accept, Reason::Policy);
        check(&rules, &[known(&[A])], Verdict::Drop, Reason::Rule);
    }

    #[test]
    fn the_first_match_decides_and_owners_are_asked_for_only_when_needed() {
        let rules = chain(Verdict::Accept, &["-v DROP -d 10.9.0.0/16", "-v ACCEPT -p tcp --dport 80", "-v DROP"]);
        let Outcome::Judged(judgement) = judge(&rules, &flow(), None) else { panic!("no owner is asked for") };
        assert_eq!(judgement.rule.unwrap().id, 1);
        let elsewhere = chain(Verdict::Accept, &[&format!("-v DROP -d 10.9.0.0/16 --sng-hash {A}")]);
        assert!(matches!(judge(&elsewhere, &flow(), None), Outcome::Judged(_)));
        let here = chain(Verdict::Accept, &[&format!("-v DROP -d 10.0.0.0/8 --sng-hash {A}")]);
        assert_eq!(judge(&here, &flow(), None), Outcome::NeedsOwners);
    }

    #[test]
    fn flow_predicates() {
        let fires = |text: &str| {
            let rules = chain(Verdict::Accept, &[&format!("-v DROP {text}")]);
            matches!(judge(&rules, &flow(), None), Outcome::Judged(j) if j.verdict == Verdict::Drop)
        };
        for yes in ["", "-s 10.0.0.1", "-d 10.0.0.0/30", "! -d 10.0.0.3", "-p tcp", "! -p udp", "--sport 1000"] {
            assert!(fires(yes), "{yes}");
        }
        for no in ["-s 10.0.0.2", "! -d 10.0.0.0/8", "-p 17", "--dport 81", "! --dport 80", "-s ::/0", "-p tcp -p udp"]
        {
            assert!(!fires(no), "{no}");
        }
    }

    #[test]
    fn unknown_ports_never_help_the_sender() {
        let fragment = Flow { ports: Ports::Unknown, ..flow() };
        let verdict = |policy, text: &str| match judge(&chain(policy, &[text]), &fragment, None) {
            Outcome::Judged(judgement) => judgement.verdict,
            Outcome::NeedsOwners => panic!("no owner is asked for"),
        };
        assert_eq!(verdict(Verdict::Accept, "-v DROP --dport 81"), Verdict::Drop);
        assert_eq!(verdict(Verdict::Accept, "-v DROP ! --dport 80"), Verdict::Drop);
        assert_eq!(verdict(Verdict::Drop, "-v ACCEPT --dport 80"), Verdict::Drop);
        let portless = Flow { ports: Ports::Absent, ..flow() };
        let dropped = judge(&chain(Verdict::Accept, &["-v DROP --dport 80"]), &portless, None);
        assert!(matches!(dropped, Outcome::Judged(j) if j.verdict == Verdict::Accept));
    }

    #[test]
    fn specific_namespaces_come_before_any() {
        let rule = |id, text: &str| ActiveRule::new(id, text.parse().unwrap());
        let rules = [
            rule(1, "-c OUTPUT -n any -v DROP"),
            rule(2, "-c OUTPUT -n host -v ACCEPT"),
            rule(3, "-c INPUT -n host -v ACCEPT"),
            rule(4, "-c OUTPUT -n netns:blue -v ACCEPT"),
        ];
        let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Drop };
        let policies =
            [(Selector::Any, Chain::Output, Verdict::Drop), (Selector::Host, Chain::Output, Verdict::Accept)];
        let set = Ruleset::new(7, rules, policies, defaults);
        let ids = |selectors: &[Selector]| -> Vec<u64> {
            set.chain(selectors, Chain::Output).rules.iter().map(|rule| rule.id).collect()
        };
        assert_eq!(ids(&[Selector::Host]), [2, 1]);
        assert_eq!(ids(&[Selector::Named("blue".into()), Selector::Host]), [4, 2, 1]);
        assert_eq!(ids(&[]), [1]);
        assert_eq!(set.chain(&[Selector::Host], Chain::Output).policy, Verdict::Accept);
        assert_eq!(set.chain(&[], Chain::Output).policy, Verdict::Drop);
        assert_eq!(set.chain(&[], Chain::Forward).policy, Verdict::Drop);
        assert_eq!(set.len(), 4);
        let in_doubt = set.chain_in_doubt(Chain::Output);
        assert_eq!(in_doubt.rules.iter().map(|rule| rule.id).collect::<Vec<_>>(), [1]);
        let drop_blue = Ruleset::new(8, [rule(5, "-c OUTPUT -n netns:blue -v DROP")], [], defaults);
        assert_eq!(drop_blue.chain(&[], Chain::Output).rules.len(), 0);
        assert_eq!(drop_blue.chain_in_doubt(Chain::Output).rules.len(), 1);
        assert_eq!(drop_blue.chain_in_doubt(Chain::Output).policy, Verdict::Accept);
    }
}
