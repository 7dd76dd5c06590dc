//! Chains of iptables, and what they come to without jumps.

use std::collections::HashMap;

use shared::rule::{Comment, IdRange, Interface, Item, List, Net, PortRange};
use shared::{Match, Predicate, Protocol, Verdict};

use super::LeftOut;

/// Jumps in a row that are followed; iptables refuses loops.
const DEEPEST: usize = 16;
/// Rules that a chain may come to: jumps to jumps multiply.
const MOST: usize = 100_000;

/// A rule as it was read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) predicates: Vec<Predicate>,
    pub(super) target: Target,
    pub(super) comment: Option<Comment>,
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Verdict(Verdict),
    Jump(String),
    Return,
    /// It only counts.
    None,
}

/// A line of a chain.
#[derive(Debug)]
struct Line {
    number: usize,
    text: String,
    /// What could be read of it.
    entry: Result<Entry, String>,
}

#[derive(Debug, Default)]
pub(super) struct Chains(HashMap<String, Vec<Line>>);

impl Chains {
    pub(super) fn declare(&mut self, name: &str) {
        self.0.entry(name.into()).or_default();
    }

    pub(super) fn add(&mut self, chain: &str, number: usize, text: &str, entry: Entry) {
        self.0.entry(chain.into()).or_default().push(Line { number, text: text.into(), entry: Ok(entry) });
    }

    pub(super) fn add_unread(&mut self, chain: &str, LeftOut { line, text, why }: LeftOut) {
        self.0.entry(chain.into()).or_default().push(Line { number: line, text, entry: Err(why) });
    }

    /// The rules of a chain in order, each with a verdict. What cannot be said so is left out.
    pub(super) fn flattened(&self, chain: &str, left_out: &mut Vec<LeftOut>) -> Vec<(Entry, Verdict)> {
        let mut found = Vec::new();
        self.follow(chain, &[], None, 0, &mut found, left_out);
        found
    }

    /// Goes through a chain that is reached where all of `conditions` hold.
    fn follow(
        &self,
        chain: &str,
        conditions: &[Predicate],
        comment: Option<&Comment>,
        depth: usize,
        found: &mut Vec<(Entry, Verdict)>,
        left_out: &mut Vec<LeftOut>,
    ) {
        let lines = self.0.get(chain).map(Vec::as_slice).unwrap_or_default();
        for (index, Line { number, text, entry }) in lines.iter().enumerate() {
            let mut leave = |why: &str| left_out.push(LeftOut { line: *number, text: text.clone(), why: why.into() });
            let entry = match entry {
                Ok(entry) => entry,
                Err(why) => {
                    leave(why);
                    continue;
                }
            };
            let predicates = match both(conditions, &entry.predicates) {
                Both::Predicates(predicates) => predicates,
                // No packet gets here by this way.
                Both::Never => continue,
                Both::Unknown(why) => {
                    leave(why);
                    continue;
                }
            };
            match &entry.target {
                Target::Verdict(_) if found.len() >= MOST => leave("jumps make too many rules of it"),
                Target::Verdict(verdict) => {
                    let comment = entry.comment.clone().or_else(|| comment.cloned());
                    found.push((Entry { predicates, target: entry.target.clone(), comment }, *verdict));
                }
                Target::None => {}
                // At the end of a chain it says what happens anyhow.
                Target::Return if index + 1 == lines.len() && depth > 0 => {}
                Target::Return => leave("RETURN has no counterpart"),
                Target::Jump(name) if !self.0.contains_key(name) => leave(&format!("-j {name} has no counterpart")),
                Target::Jump(_) if depth >= DEEPEST => leave("jumps go too deep"),
                Target::Jump(_) if entry.predicates.iter().any(|other| matches!(other.on, Match::Limit(_))) => {
                    leave("a jump with a limit has no counterpart");
                }
                Target::Jump(name) if self.returns(name) => {
                    leave(&format!("the chain {name} returns in its middle, which has no counterpart"));
                }
                Target::Jump(name) => {
                    let comment = entry.comment.as_ref().or(comment);
                    self.follow(name, &predicates, comment, depth + 1, found, left_out);
                }
            }
        }
    }

    /// Whether a chain has a RETURN before its end: then what follows it cannot be said alone.
    fn returns(&self, chain: &str) -> bool {
        let lines = self.0.get(chain).map(Vec::as_slice).unwrap_or_default();
        let is_return = |line: &Line| line.entry.as_ref().is_ok_and(|entry| entry.target == Target::Return);
        lines.iter().rev().skip(1).any(is_return)
    }
}

/// What two lists of predicates ask together.
enum Both {
    Predicates(Vec<Predicate>),
    Never,
    Unknown(&'static str),
}

fn both(outer: &[Predicate], inner: &[Predicate]) -> Both {
    let mut together = outer.to_vec();
    for predicate in inner {
        let is_same =
            |other: &&mut Predicate| other.on.option() == predicate.on.option() && other.negated == predicate.negated;
        let Some(same) = together.iter_mut().find(is_same) else {
            together.push(predicate.clone());
            continue;
        };
        if predicate.negated {
            // None of these and none of those: none of all.
            if predicate.clone().add_to(&mut together).is_err() {
                return Both::Unknown("two negated matches of one kind have no counterpart");
            }
            continue;
        }
        match common(&same.on, &predicate.on) {
            Some(on) => same.on = on,
            None if same.on == predicate.on => {}
            None => return Both::Unknown("two matches of one kind, by a jump, have no counterpart"),
        }
        if is_empty(&same.on) {
            return Both::Never;
        }
    }
    Both::Predicates(together)
}

/// What is in both; `None` if that cannot be said.
fn common(a: &Match, b: &Match) -> Option<Match> {
    fn pairs<T: Clone + PartialEq>(a: &List<T>, b: &List<T>, common: impl Fn(&T, &T) -> Option<T>) -> Option<List<T>> {
        let mut found = Vec::new();
        for x in &a.0 {
            for y in &b.0 {
                let (Item::One(x), Item::One(y)) = (x, y) else { return None };
                found.extend(common(x, y).map(Item::One));
            }
        }
        Some(List(found))
    }
    let nets = |x: &Net, y: &Net| match (x.0.contains(&y.0), y.0.contains(&x.0)) {
        (true, _) => Some(*y),
        (_, true) => Some(*x),
        _ => None,
    };
    let ports = |x: &PortRange, y: &PortRange| {
        let (first, last) = (x.first.max(y.first), x.last.min(y.last));
        (first <= last).then_some(PortRange { first, last })
    };
    let ids = |x: &IdRange, y: &IdRange| {
        let (first, last) = (x.first.max(y.first), x.last.min(y.last));
        (first <= last).then_some(IdRange { first, last })
    };
    let protocols = |x: &Protocol, y: &Protocol| (x == y).then_some(*x);
    let interfaces = |x: &Interface, y: &Interface| match (x.exact(), y.exact()) {
        (Some(name), _) => y.matches(name).then(|| x.clone()),
        (_, Some(name)) => x.matches(name).then(|| y.clone()),
        (None, None) => {
            let (long, short) = if x.to_string().len() > y.to_string().len() { (x, y) } else { (y, x) };
            let beginning = short.to_string();
            long.to_string().starts_with(beginning.trim_end_matches('+')).then(|| long.clone())
        }
    };
    Some(match (a, b) {
        (Match::Source(a), Match::Source(b)) => Match::Source(pairs(a, b, nets)?),
        (Match::Destination(a), Match::Destination(b)) => Match::Destination(pairs(a, b, nets)?),
        (Match::SourcePort(a), Match::SourcePort(b)) => Match::SourcePort(pairs(a, b, ports)?),
        (Match::DestinationPort(a), Match::DestinationPort(b)) => Match::DestinationPort(pairs(a, b, ports)?),
        (Match::Uid(a), Match::Uid(b)) => Match::Uid(pairs(a, b, ids)?),
        (Match::Gid(a), Match::Gid(b)) => Match::Gid(pairs(a, b, ids)?),
        (Match::Protocol(a), Match::Protocol(b)) => Match::Protocol(pairs(a, b, protocols)?),
        (Match::InInterface(a), Match::InInterface(b)) => Match::InInterface(pairs(a, b, interfaces)?),
        (Match::OutInterface(a), Match::OutInterface(b)) => Match::OutInterface(pairs(a, b, interfaces)?),
        _ => return None,
    })
}

fn is_empty(on: &Match) -> bool {
    match on {
        Match::Source(list) | Match::Destination(list) => list.0.is_empty(),
        Match::SourcePort(list) | Match::DestinationPort(list) => list.0.is_empty(),
        Match::Uid(list) | Match::Gid(list) => list.0.is_empty(),
        Match::Protocol(list) => list.0.is_empty(),
        Match::InInterface(list) | Match::OutInterface(list) => list.0.is_empty(),
        _ => false,
    }
}
