//! Rules against a packet and its owners: the first rule that fires decides, else the chain's policy.
//!
//! Predicates over owners answer yes, no or unknown, and not knowing never helps the sender: a DROP or REJECT rule fires if
//! any owner may match, an ACCEPT rule only if every owner surely does.
//!
//! Rules are not asked one after another. They are filed by what they ask for (`index`, `chain`), and a packet meets only
//! those that are filed under what it has. What its owners are made of is asked once ([`Residual`]); what is left depends on
//! the packet alone. Pure: no clock, no kernel, no other room.

mod chain;
mod index;
#[cfg(test)]
mod oracle;
mod ranges;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use shared::{Chain, Digest, Flow, Protocol, Reason, Selector, Verdict};
use smallvec::SmallVec;

use chain::{Asks, Chained, Doubts, Only, Rest, Unasked};
pub use rule::{ActiveRule, RuleState, Sets};

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

/// What is known of a packet itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its headers.
    pub flow: &'a Flow,
    /// Where it came in.
    pub input: Device<'a>,
    /// Where it leaves.
    pub output: Device<'a>,
    /// What the namespace of its socket is called; `None` if that is not known.
    pub namespace: Option<&'a [Selector]>,
    /// When it is judged, nanoseconds by the daemon's clock: rates are held against it.
    pub now: u64,
}

/// A network device that a packet passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device<'a> {
    /// It passes none.
    None,
    /// The one of this name.
    Named(&'a str),
    /// Which one is not known, or whether it passes one.
    Unknown,
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
    /// The paths under which its objects are mapped. An empty one is not known.
    pub paths: &'a [Vec<u8>],
    /// The path of the program it runs. `None` if that is not known.
    pub program: Option<&'a [u8]>,
    /// Its effective user id. `None` if that is not known.
    pub uid: Option<u32>,
    /// Its effective group id. `None` if that is not known.
    pub gid: Option<u32>,
    /// Its control group. `None` if that is not known.
    pub cgroup: Option<&'a str>,
    /// It has executable memory whose content no file holds. `None` if that is not known.
    pub anon_exec: Option<bool>,
    /// Another process traces it. `None` if that is not known.
    pub traced: Option<bool>,
    /// It is known what it is made of, in part at least. If not, it may be known whose it is.
    pub identified: bool,
}

/// One owner of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A process whose image was read.
    Known(Made<'a>),
    /// A process that could not be identified.
    Undetermined,
}

impl Owner<'_> {
    /// Whether it is not known what the process is made of.
    fn is_undetermined(&self) -> bool {
        match self {
            Owner::Known(made) => !made.identified,
            Owner::Undetermined => true,
        }
    }
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
    /// A rate was asked: it is about this packet only.
    pub momentary: bool,
    /// Rules that would have fired, were the packet not within their rate.
    spared: Vec<Arc<ActiveRule>>,
}

impl Judgement {
    /// What happens to a packet for another reason than a rule or a policy.
    pub fn without_rule(verdict: Verdict, reason: Reason) -> Judgement {
        Judgement { verdict, reason, rule: None, momentary: false, spared: Vec::new() }
    }

    /// Takes a packet into account that is settled by it. False if the rate of its rule is used up meanwhile: then it does
    /// not hold, and the rules must be asked again.
    pub fn take(&self, now: u64) -> bool {
        self.spared.iter().all(|rule| rule.take(false, now))
            && self.rule.as_ref().is_none_or(|rule| rule.take(true, now))
    }
}

/// How much of a packet, besides its chain and protocol, a judgement depends on. Known for TCP and UDP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Dependence {
    /// It is the same for all.
    Nothing,
    /// It is the same for all to one destination address and port that pass the same devices.
    Destination,
    /// Any of it.
    Flow,
}

/// How far the rules could be followed.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// To the end.
    Judged(Judgement),
    /// Up to a rule that asks about owners, who were not given.
    NeedsOwners,
}

/// The rules that packets of one namespace meet in one chain. Immutable.
#[derive(Debug)]
pub struct View {
    /// In this order.
    chains: SmallVec<[(Arc<Chained>, Only); 2]>,
    policy: Verdict,
}

/// What of a [`View`] is left to ask of packets of certain owners. It depends on the rules and the owners alone.
#[derive(Debug)]
pub struct Residual {
    rests: SmallVec<[Rest; 2]>,
    policy: Verdict,
}

impl View {
    /// Follows the rules without knowing the owners.
    pub fn judge(&self, facts: &Facts<'_>) -> Outcome {
        let mut doubts = Doubts::default();
        for (chain, only) in &self.chains {
            match chain.without_owners(facts, *only, &mut doubts) {
                Unasked::Fires(judgement) => return Outcome::Judged(judgement),
                Unasked::NeedsOwners => return Outcome::NeedsOwners,
                Unasked::Nothing => {}
            }
        }
        Outcome::Judged(by_policy(self.policy, doubts))
    }

    /// What of packets of a protocol [`View::judge`] depends on.
    pub fn dependence(&self, protocol: Protocol) -> Dependence {
        let is_udp = protocol == Protocol::UDP;
        self.chains.iter().map(|(chain, _)| chain.dependence(is_udp)).max().unwrap_or(Dependence::Nothing)
    }

    /// Asks the rules about owners. An empty list is a packet that no process owns.
    pub fn residual(&self, owners: &[Owner<'_>]) -> Residual {
        let rests = self.chains.iter().map(|(chain, only)| Rest::new(chain.clone(), *only, owners)).collect();
        Residual { rests, policy: self.policy }
    }

    /// All rules in the order in which they count; only those that keep packets back where it says so.
    pub fn rules(&self) -> Vec<Arc<ActiveRule>> {
        let counts = |only: Only| move |rule: &Arc<ActiveRule>| only.admits(rule);
        self.chains.iter().flat_map(|(chain, only)| chain.rules().into_iter().filter(counts(*only))).collect()
    }

    /// What happens where no rule fires.
    pub fn policy(&self) -> Verdict {
        self.policy
    }
}

impl Residual {
    /// What of packets of a protocol [`Residual::judge`] depends on.
    pub fn dependence(&self, protocol: Protocol) -> Dependence {
        let mut dependence = Dependence::Nothing;
        for rest in &self.rests {
            let (of_rest, ends) = rest.dependence(protocol);
            dependence = dependence.max(of_rest);
            if ends {
                break;
            }
        }
        dependence
    }

    /// Follows the rules. `owners` are those it was made for.
    pub fn judge(&self, facts: &Facts<'_>, owners: &[Owner<'_>]) -> Judgement {
        let mut doubts = Doubts::default();
        let fired = self.rests.iter().find_map(|rest| rest.judge(facts, owners, &mut doubts));
        fired.unwrap_or_else(|| by_policy(self.policy, doubts))
    }
}

fn by_policy(policy: Verdict, doubts: Doubts) -> Judgement {
    let reason = if doubts.doubted && policy == Verdict::Drop { Reason::Undetermined } else { Reason::Policy };
    Judgement { verdict: policy, reason, rule: None, momentary: doubts.momentary, spared: doubts.spared }
}

/// All rules and policies at one moment. Immutable: a change makes a new one.
#[derive(Debug)]
pub struct Ruleset {
    /// Moves with every change.
    pub generation: u64,
    chains: HashMap<(Selector, Chain), Arc<Chained>>,
    policies: HashMap<(Selector, Chain), Verdict>,
    defaults: Defaults,
    sets: Arc<Sets>,
    count: usize,
    asks: Asks,
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

/// What a ruleset is made of.
pub struct Contents<R, P> {
    /// The rules, in any order: their ranks tell it.
    pub rules: R,
    /// The policies that were set.
    pub policies: P,
    /// The sets, with which the rules were made.
    pub sets: Arc<Sets>,
}

/// What a change of the rules does to one chain of one namespace.
#[derive(Debug, Default)]
pub struct Delta {
    /// Ids of rules that are there no more, or are among the added ones.
    pub removed: Vec<u64>,
    /// Rules that were not there, or not so.
    pub added: Vec<Arc<ActiveRule>>,
}

impl Ruleset {
    /// Files everything. Takes a fraction of a second for 100,000 rules.
    pub fn new(
        generation: u64,
        contents: Contents<
            impl IntoIterator<Item = Arc<ActiveRule>>,
            impl IntoIterator<Item = (Selector, Chain, Verdict)>,
        >,
        defaults: Defaults,
    ) -> Ruleset {
        let Contents { rules, policies, sets } = contents;
        let mut lists: HashMap<_, Vec<_>> = HashMap::new();
        for active in rules {
            lists.entry((active.rule.namespace.clone(), active.rule.chain)).or_default().push(active);
        }
        let chains = lists.into_iter().map(|(place, rules)| (place, Arc::new(Chained::new(rules, &sets)))).collect();
        Ruleset { generation, chains, policies: by_place(policies), defaults, sets, count: 0, asks: Asks::default() }
            .counted()
    }

    /// Without any rule.
    pub fn empty(generation: u64, defaults: Defaults) -> Ruleset {
        Ruleset::new(generation, Contents { rules: [], policies: [], sets: Arc::default() }, defaults)
    }

    /// After a change of a few rules, of policies, or of sets; rules that name a changed set are among those that changed.
    /// Takes as long for 100,000 rules as for one, but what is filed so is found a little more slowly: see
    /// [`Ruleset::is_worn`].
    pub fn with(
        &self,
        generation: u64,
        changes: impl IntoIterator<Item = ((Selector, Chain), Delta)>,
        policies: impl IntoIterator<Item = (Selector, Chain, Verdict)>,
        sets: Arc<Sets>,
    ) -> Ruleset {
        let mut chains = self.chains.clone();
        for (place, Delta { removed, added }) in changes {
            let before = chains.entry(place).or_default();
            *before = Arc::new(before.with(&removed, added, &sets));
        }
        chains.retain(|_, chain| chain.len() > 0);
        let policies = by_place(policies);
        Ruleset { generation, chains, policies, defaults: self.defaults, sets, count: 0, asks: Asks::default() }
            .counted()
    }

    /// Whether so much was changed since all was filed that it is worth [`Ruleset::compact`].
    pub fn is_worn(&self) -> bool {
        self.chains.values().any(|chain| chain.is_worn())
    }

    /// The same rules, filed anew where that is worth it. They are the same generation.
    pub fn compact(&self) -> Ruleset {
        let compact = |chain: &Arc<Chained>| match chain.is_worn() {
            true => Arc::new(chain.compact(&self.sets)),
            false => chain.clone(),
        };
        Ruleset {
            chains: self.chains.iter().map(|(place, chain)| (place.clone(), compact(chain))).collect(),
            policies: self.policies.clone(),
            sets: self.sets.clone(),
            ..*self
        }
    }

    fn counted(mut self) -> Ruleset {
        self.count = self.chains.values().map(|chain| chain.len()).sum();
        self.asks = self.chains.values().fold(Asks::default(), |asks, chain| asks.and(chain.asks));
        self
    }

    /// Whether some rule asks for more of a process than its mapped files.
    pub fn asks_beyond_files(&self) -> bool {
        self.asks.beyond_files
    }

    /// Whether some rule may ask for the paths of objects.
    pub fn asks_paths(&self) -> bool {
        self.asks.paths
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
    pub fn view(&self, selectors: &[Selector], chain: Chain) -> View {
        let any = [Selector::Any];
        let places = || selectors.iter().filter(|s| **s != Selector::Any).chain(&any).map(|s| (s.clone(), chain));
        View {
            chains: places().filter_map(|place| Some((self.chains.get(&place)?.clone(), Only::All))).collect(),
            policy: places()
                .find_map(|place| self.policies.get(&place).copied())
                .unwrap_or_else(|| self.defaults.of(chain)),
        }
    }

    /// What packets of `chain` meet whose namespace is not known. Any rule that keeps packets back may be meant for them, and
    /// no rule to accept surely is but one for all namespaces; the policy is to drop if it is so anywhere.
    pub fn view_in_doubt(&self, chain: Chain) -> View {
        let of_chain = |(selector, of): &&(Selector, Chain)| *of == chain && *selector != Selector::Any;
        let mut named: Vec<_> = self.chains.keys().filter(of_chain).collect();
        named.sort();
        let refusals = named.into_iter().map(|place| (self.chains[place].clone(), Only::Refusals));
        let any = self.view(&[], chain);
        let drops_somewhere = self.policies.iter().any(|((_, of), verdict)| *of == chain && *verdict == Verdict::Drop);
        View {
            chains: refusals.chain(any.chains).collect(),
            policy: if drops_somewhere { Verdict::Drop } else { any.policy },
        }
    }
}

fn by_place(policies: impl IntoIterator<Item = (Selector, Chain, Verdict)>) -> HashMap<(Selector, Chain), Verdict> {
    policies.into_iter().map(|(selector, chain, verdict)| ((selector, chain), verdict)).collect()
}
