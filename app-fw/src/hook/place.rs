//! Where packets are taken from: what `--hook` says.

use std::fmt;
use std::str::FromStr;

use shared::Chain;

/// A place in netfilter from which packets go to the queues.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Place {
    /// What local processes send: to the OUTPUT queue.
    Output,
    /// What local processes get: to the INPUT queue.
    Input,
    /// What passes through this device: what comes out of it goes to the OUTPUT queue, what goes into it to the INPUT queue,
    /// because containers behind it are judged as if they were here.
    Behind(Device),
    /// All that passes through, but for what a place with a device takes first: to the FORWARD queue.
    Forward,
}

/// The name of a network device as rules have it; with `+` at its end, all names that begin so.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Device(String);

/// `IFNAMSIZ`, without the final zero.
const LONGEST_NAME: usize = 15;

impl Device {
    /// As it stands in a rule.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        // The kernel takes stranger names, but then iptables-restore would have to be asked nicely.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@:".contains(&byte);
        let name = text.strip_suffix('+').unwrap_or(text);
        if text.is_empty() || text.starts_with('-') || text.len() > LONGEST_NAME || !name.bytes().all(is_plain) {
            return Err(format!("{text:?} is no name of a network device"));
        }
        Ok(Device(text.into()))
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let (chain, device) = match text.split_once(':') {
            Some((chain, device)) => (chain, Some(device)),
            None => (text, None),
        };
        match (chain.to_ascii_uppercase().as_str(), device) {
            ("OUTPUT", None) => Ok(Place::Output),
            ("INPUT", None) => Ok(Place::Input),
            ("FORWARD", None) => Ok(Place::Forward),
            ("FORWARD", Some(device)) => device.parse().map(Place::Behind),
            ("OUTPUT" | "INPUT", Some(_)) => Err(format!("{text}: only FORWARD takes a device")),
            _ => Err(format!("{text:?} is none of OUTPUT, INPUT, FORWARD, FORWARD:DEVICE")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Output => f.write_str("OUTPUT"),
            Place::Input => f.write_str("INPUT"),
            Place::Forward => f.write_str("FORWARD"),
            Place::Behind(device) => write!(f, "FORWARD:{}", device.as_str()),
        }
    }
}

/// A rule that sends packets to one of the daemon's own chains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turning {
    /// The built-in chain it stands in.
    pub from: Chain,
    /// What packets it takes, as iptables has it; empty: all.
    pub of: String,
    /// By whose queue and programs they are judged.
    pub to: Chain,
}

impl Place {
    /// The rules that make it, in their order.
    pub fn turnings(&self) -> Vec<Turning> {
        let all = |chain| vec![Turning { from: chain, of: String::new(), to: chain }];
        match self {
            Place::Output => all(Chain::Output),
            Place::Input => all(Chain::Input),
            Place::Forward => all(Chain::Forward),
            // From one container to another both are true. The sender's side is asked: it can be known exactly.
            Place::Behind(device) => vec![
                Turning { from: Chain::Forward, of: format!("-i {}", device.as_str()), to: Chain::Output },
                Turning { from: Chain::Forward, of: format!("-o {}", device.as_str()), to: Chain::Input },
            ],
        }
    }

    /// Each place once, and plain FORWARD behind those that take a part of it.
    pub fn in_order(places: &[Place]) -> Vec<Place> {
        let mut places = places.to_vec();
        places.sort();
        places.dedup();
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_shown() {
        for (text, place) in [
            ("OUTPUT", Place::Output),
            ("INPUT", Place::Input),
            ("FORWARD", Place::Forward),
            ("FORWARD:docker0", Place::Behind(Device("docker0".into()))),
            ("FORWARD:br-+", Place::Behind(Device("br-+".into()))),
            ("FORWARD:eth0:1", Place::Behind(Device("eth0:1".into()))),
        ] {
            assert_eq!(text.parse(), Ok(place.clone()));
            assert_eq!(place.to_string(), text);
        }
        assert_eq!("output".parse(), Ok(Place::Output));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "PREROUTING",
            "OUTPUT:eth0",
            "INPUT:",
            "FORWARD:",
            "FORWARD:a b",
            "FORWARD:a\n-j",
            "FORWARD:-j",
            "FORWARD:\"x\"",
            "FORWARD:longer-than-names-are",
            "FORWARD:a+b",
            "OUTPUT,INPUT",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn plain_forward_comes_after_its_parts() {
        let places: Vec<Place> =
            ["FORWARD", "FORWARD:b", "INPUT", "FORWARD:a", "FORWARD"].map(|text| text.parse().unwrap()).into();
        let ordered: Vec<_> = Place::in_order(&places).iter().map(Place::to_string).collect();
        assert_eq!(ordered, ["INPUT", "FORWARD:a", "FORWARD:b", "FORWARD"]);
    }
}
