use shared::{Ports, Protocol};

use super::*;

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

fn active(id: u64, text: &str) -> Arc<ActiveRule> {
    Arc::new(ActiveRule::new(id, id, Arc::new(text.parse().unwrap()), Arc::default(), &Sets::default(), |_| true))
}

fn ruleset(
    rules: impl IntoIterator<Item = Arc<ActiveRule>>,
    policies: impl IntoIterator<Item = (Selector, Chain, Verdict)>,
    defaults: Defaults,
) -> Ruleset {
    Ruleset::new(7, Contents { rules, policies, sets: Arc::default() }, defaults)
}

fn chain(policy: Verdict, rules: &[&str]) -> View {
    let rules = rules.iter().enumerate().map(|(id, text)| active(id as u64, &format!("-c OUTPUT -n any {text}")));
    let defaults = Defaults { output: policy, input: policy, forward: policy };
    ruleset(rules, [], defaults).view(&[], Chain::Output)
}

fn facts(flow: &Flow, now: u64) -> Facts<'_> {
    Facts { flow, input: Device::None, output: Device::Named("eth0"), namespace: Some(&[Selector::Host]), now }
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
    Made {
        digests,
        complete: true,
        aggregate: Some(WHOLE),
        paths: &[],
        program: Some(b"/usr/bin/it"),
        uid: Some(1000),
        gid: Some(1000),
        cgroup: Some("/user.slice"),
        anon_exec: Some(false),
        traced: Some(false),
        identified: true,
    }
}

#[track_caller]
fn check(view: &View, owners: &[Owner<'_>], verdict: Verdict, reason: Reason) {
    let judgement = view.residual(owners).judge(&facts(&flow(), 0), owners);
    assert_eq!((judgement.verdict, judgement.reason), (verdict, reason));
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
    let Outcome::Judged(judgement) = rules.judge(&facts(&flow(), 0)) else { panic!("no owner is asked for") };
    assert_eq!(judgement.rule.unwrap().id, 1);
    let elsewhere = chain(Verdict::Accept, &[&format!("-v DROP -d 10.9.0.0/16 --sng-hash {A}")]);
    assert!(matches!(elsewhere.judge(&facts(&flow(), 0)), Outcome::Judged(_)));
    let here = chain(Verdict::Accept, &[&format!("-v DROP -d 10.0.0.0/8 --sng-hash {A}")]);
    assert_eq!(here.judge(&facts(&flow(), 0)), Outcome::NeedsOwners);
}

#[test]
fn flow_predicates() {
    let fires = |text: &str| {
        let rules = chain(Verdict::Accept, &[&format!("-v DROP {text}")]);
        matches!(rules.judge(&facts(&flow(), 0)), Outcome::Judged(j) if j.verdict == Verdict::Drop)
    };
    for yes in
        ["", "-s 10.0.0.1", "-d 10.0.0.0/30", "! -d 10.0.0.3", "-p tcp", "! -p udp", "--sport 1000", "-p udp -p tcp"]
    {
        assert!(fires(yes), "{yes}");
    }
    for no in ["-s 10.0.0.2", "! -d 10.0.0.0/8", "-p 17", "--dport 81", "! --dport 80", "-s ::/0"] {
        assert!(!fires(no), "{no}");
    }
}

#[test]
fn unknown_ports_never_help_the_sender() {
    let fragment = Flow { ports: Ports::Unknown, ..flow() };
    let verdict = |policy, text: &str| match chain(policy, &[text]).judge(&facts(&fragment, 0)) {
        Outcome::Judged(judgement) => judgement.verdict,
        Outcome::NeedsOwners => panic!("no owner is asked for"),
    };
    assert_eq!(verdict(Verdict::Accept, "-v DROP --dport 81"), Verdict::Drop);
    assert_eq!(verdict(Verdict::Accept, "-v DROP ! --dport 80"), Verdict::Drop);
    assert_eq!(verdict(Verdict::Drop, "-v ACCEPT --dport 80"), Verdict::Drop);
    let portless = Flow { ports: Ports::Absent, ..flow() };
    let dropped = chain(Verdict::Accept, &["-v DROP --dport 80"]).judge(&facts(&portless, 0));
    assert!(matches!(dropped, Outcome::Judged(j) if j.verdict == Verdict::Accept));
}

#[test]
fn specific_namespaces_come_before_any() {
    let rules = [
        active(1, "-c OUTPUT -n any -v DROP"),
        active(2, "-c OUTPUT -n host -v ACCEPT"),
        active(3, "-c INPUT -n host -v ACCEPT"),
        active(4, "-c OUTPUT -n netns:blue -v ACCEPT"),
    ];
    let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Drop };
    let policies = [(Selector::Any, Chain::Output, Verdict::Drop), (Selector::Host, Chain::Output, Verdict::Accept)];
    let set = ruleset(rules, policies, defaults);
    let ids = |view: &View| -> Vec<u64> { view.rules().iter().map(|rule| rule.id).collect() };
    let of = |selectors: &[Selector]| ids(&set.view(selectors, Chain::Output));
    assert_eq!(of(&[Selector::Host]), [2, 1]);
    assert_eq!(of(&[Selector::Named("blue".into()), Selector::Host]), [4, 2, 1]);
    assert_eq!(of(&[]), [1]);
    assert_eq!(set.view(&[Selector::Host], Chain::Output).policy(), Verdict::Accept);
    assert_eq!(set.view(&[], Chain::Output).policy(), Verdict::Drop);
    assert_eq!(set.view(&[], Chain::Forward).policy(), Verdict::Drop);
    assert_eq!(set.len(), 4);
    assert_eq!(ids(&set.view_in_doubt(Chain::Output)), [1]);
    let drop_blue = ruleset([active(5, "-c OUTPUT -n netns:blue -v DROP")], [], defaults);
    assert!(ids(&drop_blue.view(&[], Chain::Output)).is_empty());
    let in_doubt = drop_blue.view_in_doubt(Chain::Output);
    assert_eq!((ids(&in_doubt), in_doubt.policy()), (vec![5], Verdict::Accept));
    assert!(matches!(in_doubt.judge(&facts(&flow(), 0)), Outcome::Judged(j) if j.verdict == Verdict::Drop));
}

#[test]
fn owner_classes() {
    let unowned = chain(Verdict::Drop, &["-v ACCEPT --owner unowned"]);
    check(&unowned, &[], Verdict::Accept, Reason::Rule);
    check(&unowned, &[known(&[A])], Verdict::Drop, Reason::Policy);
    check(&unowned, &[Owner::Undetermined], Verdict::Drop, Reason::Undetermined);
    let undetermined = chain(Verdict::Drop, &["-v ACCEPT --owner undetermined"]);
    check(&undetermined, &[known(&[A]), Owner::Undetermined], Verdict::Accept, Reason::Rule);
    check(&undetermined, &[known(&[A])], Verdict::Drop, Reason::Policy);
    let owned = chain(Verdict::Accept, &["-v REJECT --owner owned"]);
    check(&owned, &[known(&[])], Verdict::Reject, Reason::Rule);
    check(&owned, &[], Verdict::Accept, Reason::Policy);
    check(&owned, &[Owner::Undetermined], Verdict::Reject, Reason::Undetermined);
    // Whose it is may be known of one of which nothing else is.
    let somebodys = || Owner::Known(Made { complete: false, aggregate: None, identified: false, ..made(&[]) });
    check(&undetermined, &[somebodys()], Verdict::Accept, Reason::Rule);
    check(&owned, &[somebodys()], Verdict::Reject, Reason::Undetermined);
    let users = chain(Verdict::Drop, &["-v ACCEPT --uid 1000"]);
    check(&users, &[somebodys()], Verdict::Accept, Reason::Rule);
    check(&users, &[Owner::Undetermined], Verdict::Drop, Reason::Undetermined);
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_rate_lets_so_many_pass() {
    let view = chain(Verdict::Drop, &["-v ACCEPT --limit 2/s:3", "-v REJECT -p tcp"]);
    let verdict = |now| loop {
        let flow = flow();
        let Outcome::Judged(judgement) = view.judge(&facts(&flow, now)) else { panic!("nobody asks for owners") };
        assert!(judgement.momentary);
        if judgement.take(now) {
            return judgement.verdict;
        }
    };
    let at_once: Vec<_> = (0..5).map(|_| verdict(10 * SECOND)).collect();
    use Verdict::{Accept, Reject};
    assert_eq!(at_once, [Accept, Accept, Accept, Reject, Reject]);
    assert_eq!(verdict(10 * SECOND + SECOND / 4), Reject);
    assert_eq!(verdict(10 * SECOND + SECOND / 2), Accept);
    assert_eq!(verdict(10 * SECOND + SECOND / 2), Reject);
    // After a pause all of the burst is there again.
    assert_eq!((0..4).map(|_| verdict(60 * SECOND)).collect::<Vec<_>>(), [Accept, Accept, Accept, Reject]);
    let above = chain(Verdict::Accept, &["-v DROP ! --limit 1/m:1"]);
    let verdicts: Vec<_> = [0, 1, 2, 61]
        .map(|second| {
            let flow = flow();
            let Outcome::Judged(judgement) = above.judge(&facts(&flow, second * SECOND)) else { panic!() };
            // Whoever passes is counted too.
            judgement.take(second * SECOND);
            judgement.verdict
        })
        .into();
    assert_eq!(verdicts, [Accept, Verdict::Drop, Verdict::Drop, Accept]);
}

#[test]
fn rules_that_change_little_by_little_and_then_are_filed_anew() {
    let defaults = Defaults { output: Verdict::Accept, input: Verdict::Accept, forward: Verdict::Accept };
    let place = (Selector::Any, Chain::Output);
    let mut set = Ruleset::empty(1, defaults);
    let mut changes = 0;
    while !set.is_worn() {
        changes += 1;
        let added = vec![active(changes, &format!("-c OUTPUT -n any -v DROP --dport {changes}"))];
        let delta = Delta { removed: changes.checked_sub(2).filter(|id| id % 3 == 0).into_iter().collect(), added };
        set = set.with(changes, [(place.clone(), delta)], [], Arc::default());
    }
    assert!(changes > 100, "{changes}");
    let compact = set.compact();
    assert!(!compact.is_worn());
    assert_eq!((compact.generation, compact.len()), (set.generation, set.len()));
    let ids = |set: &Ruleset| set.view(&[], Chain::Output).rules().iter().map(|rule| rule.id).collect::<Vec<_>>();
    assert_eq!(ids(&compact), ids(&set));
    let none = set.with(9, [(place, Delta { removed: ids(&set), added: vec![] })], [], Arc::default());
    assert!(none.is_empty());
}
