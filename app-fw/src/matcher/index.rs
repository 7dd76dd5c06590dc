//! Rules by what they ask of a packet's headers, so that only those are asked that may hold.
//!
//! Each rule is filed under one of the things it asks for: an address, a port, a protocol, whichever it shares with the
//! fewest others. Those that are filed under the same thing are filed again by the others, and so on. Prefixes, and ranges
//! of ports cut into prefixes, are looked up one length after another.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use shared::rule::{Net, PortRange};
use shared::{Ports, Protocol};
use smallvec::SmallVec;

use super::rule::keys::{self, Keys};
use super::rule::{ActiveRule, Asking, Sets};
use super::{Dependence, Facts};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// So few rules are asked one by one.
const FEW: usize = 8;

/// Rules, filed. The same rule may be in several places of it.
#[derive(Debug)]
pub(super) struct Index {
    /// The smallest rank in it; `u64::MAX` if it is empty.
    least: u64,
    /// What whether its rules hold depends on, for TCP and for UDP.
    depends: [Dependence; 2],
    /// Asked one by one, by rank.
    plain: Rules,
    filed: Box<[Filed]>,
}

/// Most files hold a single rule.
type Rules = SmallVec<[Arc<ActiveRule>; 1]>;

/// What rules are filed by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum By {
    Source,
    Destination,
    SourcePort,
    DestinationPort,
    Protocol,
}

const WAYS: [By; 5] = [By::Destination, By::DestinationPort, By::Source, By::SourcePort, By::Protocol];

#[derive(Debug)]
enum Filed {
    Address {
        source: bool,
        v4: Prefixes<u32>,
        v6: Prefixes<u128>,
    },
    /// `unknown`: the same rules by other things, for packets that do not carry their ports.
    Port {
        source: bool,
        ports: Prefixes<u16>,
        unknown: Box<Index>,
    },
    Protocol(Map<u8, Index>),
}

/// A key under which a rule is filed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Key {
    V4(Prefix<u32>),
    V6(Prefix<u128>),
    Port(Prefix<u16>),
    Protocol(u8),
}

/// The first bits of a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Prefix<T> {
    length: u8,
    bits: T,
}

/// What is filed under prefixes.
#[derive(Debug)]
struct Prefixes<T> {
    /// Which lengths there are, each once.
    lengths: Vec<u8>,
    map: Map<Prefix<T>, Index>,
}

/// A number of which prefixes are taken.
trait Bits: Copy + Eq + Hash {
    /// Without the bits after the first `length`.
    fn first(self, length: u8) -> Self;
}

macro_rules! bits {
    ($($number:ty),+) => {$(
        impl Bits for $number {
            fn first(self, length: u8) -> $number {
                self & <$number>::MAX.checked_shl(<$number>::BITS - u32::from(length)).unwrap_or(0)
            }
        }
    )+};
}

bits!(u16, u32, u128);

impl<T: Bits> Prefixes<T> {
    fn new(entries: impl IntoIterator<Item = (Prefix<T>, Index)>) -> Prefixes<T> {
        let map: Map<Prefix<T>, Index> = entries.into_iter().collect();
        let mut lengths: Vec<u8> = map.keys().map(|prefix| prefix.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Prefixes { lengths, map }
    }

    fn of(&self, number: T) -> impl Iterator<Item = &Index> {
        self.lengths.iter().filter_map(move |&length| self.map.get(&Prefix { length, bits: number.first(length) }))
    }
}

impl Default for Index {
    fn default() -> Index {
        Index { least: u64::MAX, depends: [Dependence::Nothing; 2], plain: Rules::new(), filed: Box::default() }
    }
}

impl Index {
    /// Files rules that are sorted by rank.
    pub(super) fn new(rules: Vec<Arc<ActiveRule>>, sets: &Sets) -> Index {
        let depends = [Protocol::TCP, Protocol::UDP].map(|protocol| {
            let of_rule = |rule: &Arc<ActiveRule>| match rule.asking(protocol) {
                Asking::Of(dependence) => dependence,
                Asking::OfNone | Asking::OfAll => Dependence::Nothing,
            };
            rules.iter().map(of_rule).max().unwrap_or(Dependence::Nothing)
        });
        Index { depends, ..Index::by(rules.into(), sets, &WAYS) }
    }

    /// What of a packet of TCP or UDP it depends on which of the rules before `end` hold, by rank.
    pub(super) fn dependence(&self, is_udp: bool, end: u64) -> Dependence {
        if self.least < end { self.depends[usize::from(is_udp)] } else { Dependence::Nothing }
    }

    fn by(rules: Rules, sets: &Sets, ways: &[By]) -> Index {
        let least = rules.first().map_or(u64::MAX, |rule| rule.rank);
        let count = rules.len();
        if count <= FEW || ways.is_empty() {
            return Index { least, plain: rules, ..Index::default() };
        }
        // What each rule can be filed by, and under which keys; all in one list, and where each rule's part of it ends.
        struct Drawer {
            way: By,
            keys: Keys<Key>,
            hashes: Keys<u64>,
        }
        let hasher = ahash::RandomState::new();
        let (mut drawers, mut ends) = (Vec::with_capacity(2 * count), Vec::with_capacity(count));
        // By hashes of the keys: two that are taken for one are only filed less well.
        let mut shared_by: Map<u64, usize> = Map::default();
        for rule in &rules {
            for way in ways {
                let Some(keys) = way.keys(rule, sets) else { continue };
                let hashes: Keys<u64> = keys.iter().map(|key| hasher.hash_one((way, key))).collect();
                hashes.iter().for_each(|hash| *shared_by.entry(*hash).or_default() += 1);
                drawers.push(Drawer { way: *way, keys, hashes });
            }
            ends.push(drawers.len());
        }
        let mut plain = Rules::new();
        let mut filed: Map<By, Map<Key, Rules>> = Map::default();
        let mut start = 0;
        for (rule, end) in rules.into_iter().zip(ends) {
            let crowd = |drawer: &Drawer| drawer.hashes.iter().map(|hash| shared_by[hash]).max();
            let best = drawers[start..end].iter().map(|drawer| (crowd(drawer), drawer)).min_by_key(|(crowd, _)| *crowd);
            start = end;
            match best {
                // Filed with all others it would not be found any sooner.
                Some((crowd, best)) if crowd < Some(count) => {
                    let cabinet = filed.entry(best.way).or_default();
                    best.keys.iter().for_each(|key| cabinet.entry(*key).or_default().push(rule.clone()));
                }
                _ => plain.push(rule),
            }
        }
        let filed = filed.into_iter().map(|(way, cabinet)| way.file(cabinet, sets, ways)).collect();
        Index { least, plain, filed, ..Index::default() }
    }

    /// Its rules by rank, if there are at most `most` and they are asked one by one anyway; or else `None`.
    pub(super) fn few(&self, most: usize) -> Option<&[Arc<ActiveRule>]> {
        (self.filed.is_empty() && self.plain.len() <= most).then_some(&self.plain[..])
    }

    /// Finds the rule of the smallest rank above `after` for which `fires` says so. `best` is such a rule of elsewhere, and
    /// is replaced by one that comes before it. `fires` is asked of no rule that comes after the best.
    pub(super) fn first<'a, T>(
        &'a self,
        facts: &Facts<'_>,
        after: Option<u64>,
        best: &mut Option<(&'a Arc<ActiveRule>, T)>,
        fires: &mut impl FnMut(&ActiveRule) -> Option<T>,
    ) {
        let is_late =
            |rank: u64, best: &Option<(&Arc<ActiveRule>, T)>| best.as_ref().is_some_and(|(rule, _)| rule.rank <= rank);
        if is_late(self.least, best) {
            return;
        }
        let start = after.map_or(0, |after| self.plain.partition_point(|rule| rule.rank <= after));
        for rule in &self.plain[start..] {
            if is_late(rule.rank, best) {
                break;
            }
            if let Some(answer) = fires(rule) {
                *best = Some((rule, answer));
                break;
            }
        }
        for filed in &self.filed {
            match filed {
                Filed::Address { source, v4, v6 } => {
                    match if *source { facts.flow.source } else { facts.flow.destination } {
                        IpAddr::V4(address) => {
                            v4.of(address.to_bits()).for_each(|index| index.first(facts, after, best, fires));
                        }
                        IpAddr::V6(address) => {
                            v6.of(address.to_bits()).for_each(|index| index.first(facts, after, best, fires));
                        }
                    }
                }
                Filed::Port { source: of_source, ports, unknown } => match facts.flow.ports {
                    Ports::Known { source, destination } => {
                        let port = if *of_source { source } else { destination };
                        ports.of(port).for_each(|index| index.first(facts, after, best, fires));
                    }
                    Ports::Absent => {}
                    Ports::Unknown => unknown.first(facts, after, best, fires),
                },
                Filed::Protocol(map) => {
                    if let Some(index) = map.get(&facts.flow.protocol.0) {
                        index.first(facts, after, best, fires);
                    }
                }
            }
        }
    }
}

impl By {
    /// `None`: the rule asks for no such thing, or for too many.
    fn keys(self, rule: &ActiveRule, sets: &Sets) -> Option<Keys<Key>> {
        let nets = |nets: Keys<Net>| nets.into_iter().map(|net| address_key(net.0)).collect();
        let ports = |ranges: Keys<PortRange>| {
            ranges.into_iter().flat_map(|range| port_prefixes(range.first, range.last)).map(Key::Port).collect()
        };
        match self {
            By::Source => keys::sources(rule, sets).map(nets),
            By::Destination => keys::destinations(rule, sets).map(nets),
            By::SourcePort => keys::source_ports(rule, sets).map(ports),
            By::DestinationPort => keys::destination_ports(rule, sets).map(ports),
            By::Protocol => keys::protocols(rule).map(|protocols| protocols.into_iter().map(Key::Protocol).collect()),
        }
    }

    fn file(self, cabinet: Map<Key, Rules>, sets: &Sets, ways: &[By]) -> Filed {
        let is_port = |way: &By| matches!(way, By::SourcePort | By::DestinationPort);
        let others: Vec<By> = ways.iter().copied().filter(|way| *way != self).collect();
        let filed_under = |rules: Rules| Index::by(rules, sets, &others);
        match self {
            By::Source | By::Destination => {
                let (mut v4, mut v6) = (Vec::new(), Vec::new());
                for (key, rules) in cabinet {
                    match key {
                        Key::V4(prefix) => v4.push((prefix, filed_under(rules))),
                        Key::V6(prefix) => v6.push((prefix, filed_under(rules))),
                        Key::Port(_) | Key::Protocol(_) => {}
                    }
                }
                Filed::Address { source: self == By::Source, v4: Prefixes::new(v4), v6: Prefixes::new(v6) }
            }
            By::SourcePort | By::DestinationPort => {
                let mut all: Rules = cabinet.values().flatten().cloned().collect();
                all.sort_unstable_by_key(|rule| rule.rank);
                all.dedup_by_key(|rule| rule.rank);
                let portless: Vec<By> = ways.iter().copied().filter(|way| !is_port(way)).collect();
                let ports = cabinet.into_iter().filter_map(|(key, rules)| match key {
                    Key::Port(prefix) => Some((prefix, filed_under(rules))),
                    _ => None,
                });
                let ports = Prefixes::new(ports);
                let unknown = Box::new(Index::by(all, sets, &portless));
                Filed::Port { source: self == By::SourcePort, ports, unknown }
            }
            By::Protocol => Filed::Protocol(
                cabinet
                    .into_iter()
                    .filter_map(|(key, rules)| match key {
                        Key::Protocol(protocol) => Some((protocol, filed_under(rules))),
                        _ => None,
                    })
                    .collect(),
            ),
        }
    }
}

fn address_key(net: IpNet) -> Key {
    match net {
        IpNet::V4(net) => Key::V4(Prefix { length: net.prefix_len(), bits: net.network().to_bits() }),
        IpNet::V6(net) => Key::V6(Prefix { length: net.prefix_len(), bits: net.network().to_bits() }),
    }
}

/// Cuts a range into prefixes, at most 30.
fn port_prefixes(first: u16, last: u16) -> Keys<Prefix<u16>> {
    let mut prefixes = Keys::new();
    let (mut from, end) = (u32::from(first), u32::from(last) + 1);
    while from < end {
        // The largest block that begins here and does not reach beyond the end.
        let aligned = if from == 0 { 16 } else { from.trailing_zeros().min(16) };
        let fits = (end - from).ilog2();
        let size = aligned.min(fits);
        prefixes.push(Prefix { length: 16 - size as u8, bits: from as u16 });
        from += 1 << size;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_is_its_prefixes(a in any::<u16>(), b in any::<u16>(), number in any::<u16>()) {
            let (first, last) = (a.min(b), a.max(b));
            let prefixes = port_prefixes(first, last);
            prop_assert!(prefixes.len() <= 30);
            for number in [number, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let covered = prefixes.iter().filter(|prefix| number.first(prefix.length) == prefix.bits).count();
                prop_assert_eq!(covered, usize::from((first..=last).contains(&number)));
            }
        }
    }

    #[test]
    fn prefixes_of_all_lengths() {
        assert_eq!(0xffff_u16.first(0), 0);
        assert_eq!(0xffff_u16.first(16), 0xffff);
        assert_eq!(0x1234_5678_u32.first(8), 0x1200_0000);
        assert_eq!(u128::MAX.first(1), 1 << 127);
        assert_eq!(port_prefixes(0, u16::MAX)[..], [Prefix { length: 0, bits: 0 }]);
    }
}
