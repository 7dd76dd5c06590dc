//! Sets of numbers, as sorted ranges: one look costs the logarithm of their number.

use std::net::IpAddr;

use ipnet::IpNet;

/// Numbers in ranges. Ranges do not touch each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ranges<T>(Box<[(T, T)]>);

/// A number whose successor can be asked for.
pub(super) trait Number: Copy + Ord {
    /// The next one; `None` after the last.
    fn next(self) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Number for $number {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
        }
    )+};
}

numbers!(u16, u32, u128);

impl<T: Number> Ranges<T> {
    /// Those from the first to the last of each pair, both included.
    pub(super) fn new(pairs: impl IntoIterator<Item = (T, T)>) -> Ranges<T> {
        let mut pairs: Vec<(T, T)> = pairs.into_iter().collect();
        pairs.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(pairs.len());
        for (first, last) in pairs {
            match merged.last_mut() {
                Some((_, end)) if end.next().is_none_or(|next| first <= next) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged.into())
    }

    /// Whether `number` is one of them.
    pub(super) fn contains(&self, number: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= self.0[after - 1].1
    }
}

/// Addresses of both families.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Nets {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Nets {
    /// All in these networks.
    pub(super) fn new(nets: impl IntoIterator<Item = IpNet>) -> Nets {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Nets { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    /// Whether `address` is in one of them.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address.to_bits()),
            IpAddr::V6(address) => self.v6.contains(address.to_bits()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_merge() {
        assert_eq!(Ranges::new([(5u16, 9), (1, 3), (4, 4), (20, 30), (25, 26)]), Ranges([(1, 9), (20, 30)].into()));
        assert_eq!(Ranges::new([(0u16, u16::MAX), (7, 9)]), Ranges([(0, u16::MAX)].into()));
        assert!(!Ranges::<u16>::default().contains(0));
    }

    #[test]
    fn networks_of_both_families() {
        let nets = Nets::new(["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"].map(|net| net.parse().unwrap()));
        for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8:ffff::1"] {
            assert!(nets.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.0.0.0", "192.0.2.8", "2001:db9::", "::10.0.0.1"] {
            assert!(!nets.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(Nets::new(["0.0.0.0/0".parse().unwrap()]).contains("255.255.255.255".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn as_any_of_them(pairs in prop::collection::vec((0..50u16, 0..50u16), 0..8), number in 0..60u16) {
            let pairs: Vec<_> = pairs.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let expected = pairs.iter().any(|(first, last)| (*first..=*last).contains(&number));
            prop_assert_eq!(Ranges::new(pairs).contains(number), expected);
        }
    }
}
