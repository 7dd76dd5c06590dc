//! The rules of one chain of one namespace, filed for the packet path.
//!
//! Filing 100,000 rules takes a while, so a change does not file them anew: it goes into a second, small file, and what
//! was deleted is crossed out in the large one, until there is enough of that to be worth the work ([`Chained::compact`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use shared::{Match, Protocol, Verdict};
use smallvec::SmallVec;

use super::index::Index;
use super::rule::keys::{self, Identity};
use super::rule::{ActiveRule, Asking, Sets};
use super::{Dependence, Facts, Judgement, Owner, Reason, Tri};

type Rules = Vec<Arc<ActiveRule>>;

/// Rules, filed by what they ask of packets, and by what they ask of owners.
#[derive(Debug, Default)]
struct File {
    /// All, by rank.
    rules: Rules,
    ids: HashSet<u64, ahash::RandomState>,
    /// Those that do not ask about owners.
    plain: Index,
    /// Those that do, by something that one of the owners must be or have.
    by_identity: HashMap<Identity, Arc<Index>, ahash::RandomState>,
    /// Those that do, and cannot be found so.
    others: Arc<Index>,
    /// All that do: for owners who are not known well enough to be looked for.
    asking: Arc<Index>,
}

impl File {
    fn new(mut rules: Rules, sets: &Sets) -> File {
        rules.sort_unstable_by_key(|rule| rule.rank);
        let (asking, plain): (Rules, Rules) = rules.iter().cloned().partition(|rule| rule.asks_owners());
        let ways: Vec<Vec<Vec<Identity>>> = asking.iter().map(|rule| keys::identities(rule, sets)).collect();
        let mut shared_by: HashMap<&Identity, usize, ahash::RandomState> = HashMap::default();
        ways.iter().flatten().flatten().for_each(|key| *shared_by.entry(key).or_default() += 1);
        let mut by_identity: HashMap<Identity, Rules, ahash::RandomState> = HashMap::default();
        let mut others = Rules::new();
        for (rule, ways) in asking.iter().zip(&ways) {
            match ways.iter().min_by_key(|keys| keys.iter().map(|key| shared_by[key]).max()) {
                Some(keys) => {
                    keys.iter().for_each(|key| by_identity.entry(key.clone()).or_default().push(rule.clone()));
                }
                None => others.push(rule.clone()),
            }
        }
        File {
            ids: rules.iter().map(|rule| rule.id).collect(),
            plain: Index::new(plain, sets),
            by_identity: by_identity.into_iter().map(|(key, rules)| (key, Index::new(rules, sets).into())).collect(),
            others: Index::new(others, sets).into(),
            asking: Index::new(asking, sets).into(),
            rules,
        }
    }
}

/// Which facts about owners rules ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Asks {
    pub(super) aggregate: bool,
    pub(super) paths: bool,
    pub(super) program: bool,
    pub(super) beyond_files: bool,
}

impl Asks {
    fn of(rule: &ActiveRule) -> Asks {
        let any = |is: fn(&Match) -> bool| rule.rule.predicates.iter().any(|predicate| is(&predicate.on));
        Asks {
            aggregate: any(|on| matches!(on, Match::AggHash(_))),
            paths: any(|on| matches!(on, Match::ObjectPath(_))),
            program: any(|on| matches!(on, Match::ProgramPath(_))),
            beyond_files: any(Match::is_beyond_files),
        }
    }

    pub(super) fn and(self, other: Asks) -> Asks {
        Asks {
            aggregate: self.aggregate || other.aggregate,
            paths: self.paths || other.paths,
            program: self.program || other.program,
            beyond_files: self.beyond_files || other.beyond_files,
        }
    }

    /// Whether nothing that is asked for is unknown of any owner.
    fn all_known(&self, owners: &[Owner<'_>]) -> bool {
        owners.iter().all(|owner| match owner {
            Owner::Undetermined => false,
            Owner::Known(made) => {
                made.complete
                    && (!self.aggregate || made.aggregate.is_some())
                    && (!self.paths || made.paths.iter().all(|path| !path.is_empty()))
                    && (!self.program || made.program.is_some())
                    && (!self.beyond_files
                        || made.uid.is_some()
                            && made.gid.is_some()
                            && made.cgroup.is_some()
                            && made.anon_exec.is_some()
                            && made.traced.is_some())
            }
        })
    }
}

/// The rules of one chain of one namespace. Immutable.
#[derive(Debug, Default)]
pub(super) struct Chained {
    base: Arc<File>,
    /// Added since the base was made.
    recent: Arc<File>,
    /// Ids in the base that are there no more.
    gone: Arc<HashSet<u64, ahash::RandomState>>,
    pub(super) asks: Asks,
}

/// So many changes are worth filing all rules anew.
const MANY_CHANGES: usize = 256;

impl Chained {
    /// Files all rules.
    pub(super) fn new(rules: Rules, sets: &Sets) -> Chained {
        let asks = rules.iter().fold(Asks::default(), |asks, rule| asks.and(Asks::of(rule)));
        Chained { base: File::new(rules, sets).into(), asks, ..Chained::default() }
    }

    /// Without some rules, and with others.
    pub(super) fn with(
        &self,
        removed: &[u64],
        added: impl IntoIterator<Item = Arc<ActiveRule>>,
        sets: &Sets,
    ) -> Chained {
        let mut gone = self.gone.clone();
        if removed.iter().any(|id| self.base.ids.contains(id)) {
            Arc::make_mut(&mut gone).extend(removed.iter().filter(|id| self.base.ids.contains(id)));
        }
        let kept = self.recent.rules.iter().filter(|rule| !removed.contains(&rule.id)).cloned();
        let recent: Rules = kept.chain(added).collect();
        let asks = recent.iter().fold(self.asks, |asks, rule| asks.and(Asks::of(rule)));
        Chained { base: self.base.clone(), recent: File::new(recent, sets).into(), gone, asks }
    }

    /// Whether it is time to file all rules anew.
    pub(super) fn is_worn(&self) -> bool {
        self.recent.rules.len() + self.gone.len() > MANY_CHANGES
    }

    /// The same rules, filed anew.
    pub(super) fn compact(&self, sets: &Sets) -> Chained {
        Chained::new(self.rules(), sets)
    }

    /// All rules by rank.
    pub(super) fn rules(&self) -> Rules {
        let kept = self.base.rules.iter().filter(|rule| !self.gone.contains(&rule.id));
        let mut rules: Rules = kept.chain(&self.recent.rules).cloned().collect();
        rules.sort_unstable_by_key(|rule| rule.rank);
        rules
    }

    /// How many rules there are.
    pub(super) fn len(&self) -> usize {
        self.base.rules.len() - self.gone.len() + self.recent.rules.len()
    }

    /// Follows the rules as far as that is possible without knowing the owners.
    pub(super) fn without_owners(&self, facts: &Facts<'_>, only: Only, doubts: &mut Doubts) -> Unasked {
        let mut after = None;
        loop {
            let mut best = None;
            let mut fires = |rule: &ActiveRule| fires(rule, rule.of_packet(facts), only, doubts);
            self.base
                .plain
                .first(facts, after, &mut best, &mut |rule| if self.is_gone(rule) { None } else { fires(rule) });
            self.recent.plain.first(facts, after, &mut best, &mut fires);
            // One before it that may hold is enough to need the owners.
            let end = best.as_ref().map_or(u64::MAX, |(rule, _)| rule.rank);
            let mut may_hold = |rule: &ActiveRule| {
                (rule.rank < end && only.admits(rule) && rule.of_packet(facts) != Tri::No).then_some(())
            };
            let mut asking = None;
            self.base.asking.first(facts, None, &mut asking, &mut |rule| {
                if self.is_gone(rule) { None } else { may_hold(rule) }
            });
            self.recent.asking.first(facts, None, &mut asking, &mut may_hold);
            match best {
                _ if asking.is_some() => return Unasked::NeedsOwners,
                None => return Unasked::Nothing,
                Some((rule, reason)) => {
                    if doubts.limit_holds(rule, facts.now) {
                        return Unasked::Fires(doubts.judgement(rule, reason));
                    }
                    after = Some(rule.rank);
                }
            }
        }
    }

    /// What of a packet it depends on how far [`Chained::without_owners`] comes. Rules that are gone count.
    pub(super) fn dependence(&self, is_udp: bool) -> Dependence {
        let files = [&self.base, &self.recent];
        let indexes = files.iter().flat_map(|file| [&file.plain, &*file.asking]);
        indexes.map(|index| index.dependence(is_udp, u64::MAX)).max().unwrap_or(Dependence::Nothing)
    }

    fn is_gone(&self, rule: &ActiveRule) -> bool {
        !self.gone.is_empty() && self.gone.contains(&rule.id)
    }
}

/// How far a chain could be followed.
pub(super) enum Unasked {
    /// A rule fires.
    Fires(Judgement),
    /// No rule fires, whoever the owners are.
    Nothing,
    /// That depends on the owners.
    NeedsOwners,
}

/// Which rules of a chain count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Only {
    /// All.
    All,
    /// Those that keep packets back: the chain may not be the packet's at all.
    Refusals,
}

impl Only {
    pub(super) fn admits(self, rule: &ActiveRule) -> bool {
        self == Only::All || rule.rule.verdict != Verdict::Accept
    }
}

/// What was noticed on the way.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubts {
    /// A rule to accept might have fired.
    pub(super) doubted: bool,
    /// A rate was asked: the judgement is about one packet only.
    pub(super) momentary: bool,
    /// Rules that do not fire only because the packet is within a rate.
    pub(super) spared: Vec<Arc<ActiveRule>>,
}

impl Doubts {
    /// Whether what a rule asks of its rate holds, all else holding.
    fn limit_holds(&mut self, rule: &Arc<ActiveRule>, now: u64) -> bool {
        self.momentary |= rule.limit.is_some();
        let holds = rule.limit_holds(now);
        if !holds && rule.spares() {
            self.spared.push(rule.clone());
        }
        holds
    }

    fn judgement(&mut self, rule: &Arc<ActiveRule>, reason: Reason) -> Judgement {
        let (momentary, spared) = (self.momentary, std::mem::take(&mut self.spared));
        Judgement { verdict: rule.rule.verdict, reason, rule: Some(rule.clone()), momentary, spared }
    }
}

/// Whether a rule fires, and why.
fn fires(rule: &ActiveRule, holds: Tri, only: Only, doubts: &mut Doubts) -> Option<Reason> {
    match (rule.rule.verdict, holds) {
        _ if !only.admits(rule) => None,
        (_, Tri::Yes) => Some(Reason::Rule),
        (_, Tri::No) => None,
        (Verdict::Accept, Tri::Unknown) => {
            doubts.doubted = true;
            None
        }
        (Verdict::Drop | Verdict::Reject, Tri::Unknown) => Some(Reason::Undetermined),
    }
}

/// So few rules are asked about their owners once and for all.
const FEW_ABOUT_OWNERS: usize = 64;

/// What of a chain is left to ask of packets, once the owners are known. It depends on them and on the rules alone.
#[derive(Debug)]
pub(super) struct Rest {
    chain: Arc<Chained>,
    only: Only,
    /// Rules that hold, or may hold, of these owners, by rank.
    listed: Vec<(Arc<ActiveRule>, Tri)>,
    /// Where there are more than can be listed.
    base: SmallVec<[Arc<Index>; 2]>,
    recent: SmallVec<[Arc<Index>; 2]>,
}

impl Rest {
    /// Asks the rules about `owners`.
    pub(super) fn new(chain: Arc<Chained>, only: Only, owners: &[Owner<'_>]) -> Rest {
        let mut rest = Rest { only, listed: Vec::new(), base: SmallVec::new(), recent: SmallVec::new(), chain };
        let chain = rest.chain.clone();
        if !chain.asks.all_known(owners) {
            rest.base.push(chain.base.asking.clone());
            rest.recent.push(chain.recent.asking.clone());
            return rest;
        }
        let mut keys: Vec<Identity> = owners
            .iter()
            .flat_map(|owner| match owner {
                Owner::Known(made) => keys::of_owner(made),
                Owner::Undetermined => Vec::new(),
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        for (file, is_base) in [(&chain.base, true), (&chain.recent, false)] {
            let found = keys.iter().filter_map(|key| file.by_identity.get(key)).chain([&file.others]);
            for index in found {
                match index.few(FEW_ABOUT_OWNERS) {
                    Some(rules) => rest.list(rules, owners, is_base),
                    None if is_base => rest.base.push(index.clone()),
                    None => rest.recent.push(index.clone()),
                }
            }
        }
        rest.listed.sort_unstable_by_key(|(rule, _)| rule.rank);
        rest.listed.dedup_by_key(|(rule, _)| rule.rank);
        rest
    }

    fn list(&mut self, rules: &[Arc<ActiveRule>], owners: &[Owner<'_>], is_base: bool) {
        for rule in rules {
            if self.only.admits(rule) && !(is_base && self.chain.is_gone(rule)) {
                let holds = rule.of_owners(owners);
                if holds != Tri::No {
                    self.listed.push((rule.clone(), holds));
                }
            }
        }
    }

    /// What of a packet of a protocol what [`Rest::judge`] says depends on, and whether it certainly says something.
    pub(super) fn dependence(&self, protocol: Protocol) -> (Dependence, bool) {
        let is_udp = protocol == Protocol::UDP;
        let (mut dependence, mut end) = (Dependence::Nothing, u64::MAX);
        for (rule, of_owners) in &self.listed {
            match rule.asking(protocol) {
                Asking::OfNone => {}
                Asking::OfAll if rule.limit.is_none() && *of_owners == Tri::Yes => {
                    end = rule.rank;
                    break;
                }
                // That it may hold or not is the same for all packets.
                Asking::OfAll => {}
                Asking::Of(of_rule) => dependence = dependence.max(of_rule),
            }
        }
        let files = [&self.chain.base.plain, &self.chain.recent.plain].into_iter();
        let indexes = files.chain(self.base.iter().chain(&self.recent).map(|index| &**index));
        let of_indexes = indexes.map(|index| index.dependence(is_udp, end)).max();
        (dependence.max(of_indexes.unwrap_or(Dependence::Nothing)), end != u64::MAX)
    }

    /// Follows the rules for one packet of these owners.
    pub(super) fn judge(&self, facts: &Facts<'_>, owners: &[Owner<'_>], doubts: &mut Doubts) -> Option<Judgement> {
        let chain = &self.chain;
        let mut after = None;
        loop {
            let mut best: Option<(&Arc<ActiveRule>, Reason)> = None;
            let start = after.map_or(0, |after| self.listed.partition_point(|(rule, _)| rule.rank <= after));
            for (rule, of_owners) in &self.listed[start..] {
                if let Some(reason) = fires(rule, rule.of_packet(facts).min(*of_owners), self.only, doubts) {
                    best = Some((rule, reason));
                    break;
                }
            }
            let mut of_packet = |rule: &ActiveRule| fires(rule, rule.of_packet(facts), self.only, doubts);
            let unless_gone = |rule: &ActiveRule| !chain.is_gone(rule);
            chain.base.plain.first(facts, after, &mut best, &mut |rule| unless_gone(rule).then(|| of_packet(rule))?);
            chain.recent.plain.first(facts, after, &mut best, &mut of_packet);
            let mut of_all = |rule: &ActiveRule| {
                let of_packet = rule.of_packet(facts);
                // No need to ask the owners about a packet that is not meant.
                let holds = if of_packet == Tri::No { Tri::No } else { of_packet.min(rule.of_owners(owners)) };
                fires(rule, holds, self.only, doubts)
            };
            for index in &self.base {
                index.first(facts, after, &mut best, &mut |rule| unless_gone(rule).then(|| of_all(rule))?);
            }
            for index in &self.recent {
                index.first(facts, after, &mut best, &mut of_all);
            }
            let (rule, reason) = best?;
            if doubts.limit_holds(rule, facts.now) {
                return Some(doubts.judgement(rule, reason));
            }
            after = Some(rule.rank);
        }
    }
}
