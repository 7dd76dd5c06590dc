//! Rules: what they can say, and their text form.
//!
//! The text form is the command line that makes the rule: `-A -c OUTPUT -n host -v DROP -p tcp ! --dport 80`.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Chain, Digest, Protocol, Selector, Verdict};

/// One thing a rule asks of a packet, or of the processes behind it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "match", content = "value", rename_all = "kebab-case")]
pub enum Match {
    /// `-s`: the source address is in this network.
    Source(IpNet),
    /// `-d`: the destination address is in this network.
    Destination(IpNet),
    /// `-p`: the layer-4 protocol.
    Protocol(Protocol),
    /// `--sport`, host byte order. A protocol without ports never matches.
    SourcePort(u16),
    /// `--dport`, host byte order. A protocol without ports never matches.
    DestinationPort(u16),
    /// `--sng-hash`: some object of the image has this digest.
    SngHash(Digest),
    /// `--agg-hash`: the image's aggregate digest is this.
    AggHash(Digest),
    /// `--anon-exec`: the process has executable memory whose content no file holds.
    AnonExec,
    /// `--traced`: another process traces it (ptrace).
    Traced,
}

impl Match {
    /// The long option that makes this match on the command line, and the short one where there is one.
    pub fn option(&self) -> &'static str {
        match self {
            Match::Source(_) => "-s",
            Match::Destination(_) => "-d",
            Match::Protocol(_) => "-p",
            Match::SourcePort(_) => "--sport",
            Match::DestinationPort(_) => "--dport",
            Match::SngHash(_) => "--sng-hash",
            Match::AggHash(_) => "--agg-hash",
            Match::AnonExec => "--anon-exec",
            Match::Traced => "--traced",
        }
    }

    /// The match of an option that takes no value. `None` if `option` is not one.
    fn flag(option: &str) -> Option<Match> {
        Some(match option {
            "--anon-exec" => Match::AnonExec,
            "--traced" => Match::Traced,
            _ => return None,
        })
    }

    /// Reads the value of a match option. `None` if `option` is not one that takes a value.
    fn parse(option: &str, value: &str) -> Option<Result<Match, String>> {
        fn read<T: FromStr<Err: fmt::Display>>(value: &str, make: fn(T) -> Match) -> Result<Match, String> {
            value.parse().map(make).map_err(|error: T::Err| error.to_string())
        }
        Some(match option {
            "-s" | "--source" => parse_net(value).map(Match::Source),
            "-d" | "--destination" => parse_net(value).map(Match::Destination),
            "-p" | "--protocol" => read(value, Match::Protocol),
            "--sport" => parse_port(value).map(Match::SourcePort),
            "--dport" => parse_port(value).map(Match::DestinationPort),
            "--sng-hash" => read(value, Match::SngHash),
            "--agg-hash" => read(value, Match::AggHash),
            _ => return None,
        })
    }

    /// Whether the answer depends on who sends, not only on the packet's headers.
    pub fn is_identity(&self) -> bool {
        matches!(self, Match::SngHash(_) | Match::AggHash(_)) || self.is_beyond_files()
    }

    /// Whether the answer depends on more of a process than the files it has mapped.
    pub fn is_beyond_files(&self) -> bool {
        matches!(self, Match::AnonExec | Match::Traced)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = self.option();
        match self {
            Match::Source(net) | Match::Destination(net) => write!(f, "{option} {net}"),
            Match::Protocol(protocol) => write!(f, "{option} {protocol}"),
            Match::SourcePort(port) | Match::DestinationPort(port) => write!(f, "{option} {port}"),
            Match::SngHash(digest) | Match::AggHash(digest) => write!(f, "{option} {digest}"),
            Match::AnonExec | Match::Traced => f.write_str(option),
        }
    }
}

/// Reads `ADDR[/LEN]`. Bits beyond the length are cleared, as iptables does.
pub fn parse_net(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => Ok(net),
        Err(_) => text.parse::<std::net::IpAddr>().map(IpNet::from),
    };
    net.map(|net| net.trunc())
        .map_err(|_| format!("{text:?} is no address or prefix: 192.0.2.0/24, 2001:db8::/32 or a single address"))
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port: a number from 0 to 65535"))
}

/// A match, or its opposite.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Predicate {
    /// The predicate holds where `on` does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub negated: bool,
    /// What is asked.
    #[serde(flatten)]
    pub on: Match,
}

impl Predicate {
    /// A match option that takes no value. `None` if `option` is not one.
    pub fn flag(negated: bool, option: &str) -> Option<Predicate> {
        Match::flag(option).map(|on| Predicate { negated, on })
    }

    /// Reads one match option as the command line has it. `None` if `option` is not one that takes a value.
    ///
    /// # Errors
    /// A sentence about the value.
    pub fn parse(negated: bool, option: &str, value: &str) -> Option<Result<Predicate, String>> {
        Match::parse(option, value).map(|on| on.map(|on| Predicate { negated, on }))
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.negated {
            f.write_str("! ")?;
        }
        self.on.fmt(f)
    }
}

/// `-l`: which header carries the signature of packets this rule accepts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureLayer {
    /// An IP option.
    L3,
    /// A TCP or UDP option.
    L4,
}

impl fmt::Display for SignatureLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SignatureLayer::L3 => "l3",
            SignatureLayer::L4 => "l4",
        })
    }
}

impl FromStr for SignatureLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<SignatureLayer, String> {
        match text {
            "l3" => Ok(SignatureLayer::L3),
            "l4" => Ok(SignatureLayer::L4),
            _ => Err(format!("{text:?} is not l3 or l4")),
        }
    }
}

/// A rule: where it holds, what it asks, and what happens then. A rule without predicates matches every packet.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The chain.
    pub chain: Chain,
    /// The namespaces.
    pub namespace: Selector,
    /// What happens to a packet for which every predicate holds.
    pub verdict: Verdict,
    /// All must hold.
    #[serde(default)]
    pub predicates: Vec<Predicate>,
    /// Where the signature of an accepted packet goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_layer: Option<SignatureLayer>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-A -c {} -n {} -v {}", self.chain, self.namespace, self.verdict)?;
        for predicate in &self.predicates {
            write!(f, " {predicate}")?;
        }
        match self.signature_layer {
            Some(layer) => write!(f, " -l {layer}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with a rule's text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct RuleError {
    /// Byte offset of the offending word, from 1.
    pub column: usize,
    /// A sentence.
    pub message: String,
}

impl FromStr for Rule {
    type Err = RuleError;

    /// Reads what `Display` writes. The leading `-A` may be missing; `-!` is the same as `!`.
    fn from_str(text: &str) -> Result<Rule, RuleError> {
        let mut words = Words { text, at: 0 };
        let (mut chain, mut namespace, mut verdict, mut signature_layer) = (None, None, None, None);
        let mut predicates = Vec::new();
        let mut negation: Option<usize> = None;
        while let Some((column, option)) = words.next() {
            let fail = |message: String| RuleError { column, message };
            match option {
                "-A" if column == 1 => continue,
                "!" | "-!" if negation.is_none() => {
                    negation = Some(column);
                    continue;
                }
                _ => {}
            }
            if let Some(predicate) = Predicate::flag(negation.is_some(), option) {
                negation = None;
                predicates.push(predicate);
                continue;
            }
            let (value_column, value) = words.next().ok_or_else(|| fail(format!("{option} wants a value")))?;
            let at_value = |message: String| RuleError { column: value_column, message };
            if let Some(predicate) = Predicate::parse(negation.take().is_some(), option, value) {
                predicates.push(predicate.map_err(at_value)?);
                continue;
            }
            if words.before(column).is_some_and(|word| matches!(word, "!" | "-!")) {
                return Err(fail(format!("{option} cannot be negated")));
            }
            match option {
                "-c" => set(&mut chain, value).map_err(at_value)?,
                "-n" => set(&mut namespace, value).map_err(at_value)?,
                "-v" => set(&mut verdict, value).map_err(at_value)?,
                "-l" => set(&mut signature_layer, value).map_err(at_value)?,
                _ => return Err(fail(format!("unknown option {option:?}"))),
            }
        }
        let missing = |what: &str| RuleError { column: text.len() + 1, message: format!("{what} is missing") };
        if let Some(column) = negation {
            return Err(RuleError { column, message: "nothing follows the negation".into() });
        }
        Ok(Rule {
            chain: chain.ok_or_else(|| missing("the chain (-c)"))?,
            namespace: namespace.ok_or_else(|| missing("the namespace (-n)"))?,
            verdict: verdict.ok_or_else(|| missing("the verdict (-v)"))?,
            predicates,
            signature_layer,
        })
    }
}

fn set<T: FromStr<Err: fmt::Display>>(slot: &mut Option<T>, value: &str) -> Result<(), String> {
    match slot.replace(value.parse().map_err(|error: T::Err| error.to_string())?) {
        None => Ok(()),
        Some(_) => Err("given twice".into()),
    }
}

/// Words with the column each starts at.
struct Words<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<(usize, &'a str)> {
        let rest = &self.text[self.at..];
        let start = self.at + (rest.len() - rest.trim_start().len());
        let rest = &self.text[start..];
        let word = &rest[..rest.find(char::is_whitespace).unwrap_or(rest.len())];
        self.at = start + word.len();
        (!word.is_empty()).then_some((start + 1, word))
    }

    /// The word that ends before `column`.
    fn before(&self, column: usize) -> Option<&'a str> {
        self.text[..column - 1].split_whitespace().next_back()
    }
}

/// Deserialises what `Display` wrote.
pub(crate) fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_match() -> impl Strategy<Value = Match> {
        let net4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, l)| IpNet::new(a.into(), l).unwrap().trunc());
        let net6 = (any::<[u8; 16]>(), 0..=128u8).prop_map(|(a, l)| IpNet::new(a.into(), l).unwrap().trunc());
        let net = prop_oneof![net4, net6].boxed();
        prop_oneof![
            net.clone().prop_map(Match::Source),
            net.prop_map(Match::Destination),
            any::<u8>().prop_map(|p| Match::Protocol(Protocol(p))),
            any::<u16>().prop_map(Match::SourcePort),
            any::<u16>().prop_map(Match::DestinationPort),
            any::<[u8; 32]>().prop_map(|d| Match::SngHash(Digest(d))),
            any::<[u8; 32]>().prop_map(|d| Match::AggHash(Digest(d))),
            Just(Match::AnonExec),
            Just(Match::Traced),
        ]
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let namespace = prop_oneof![
            Just(Selector::Any),
            Just(Selector::Host),
            "[a-zA-Z0-9_.-]{1,20}x".prop_map(Selector::Named),
            any::<u64>()
                .prop_map(|cookie| Selector::Lifetime { cookie, boot: "6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11".into() }),
        ];
        let chain = prop_oneof![Just(Chain::Output), Just(Chain::Input), Just(Chain::Forward)];
        let verdict = prop_oneof![Just(Verdict::Accept), Just(Verdict::Drop)];
        let predicate = (any::<bool>(), any_match()).prop_map(|(negated, on)| Predicate { negated, on });
        let layer = prop_oneof![Just(None), Just(Some(SignatureLayer::L3)), Just(Some(SignatureLayer::L4))];
        (chain, namespace, verdict, prop::collection::vec(predicate, 0..6), layer).prop_map(
            |(chain, namespace, verdict, predicates, signature_layer)| Rule {
                chain,
                namespace,
                verdict,
                predicates,
                signature_layer,
            },
        )
    }

    proptest! {
        #[test]
        fn text_round_trips(rule in any_rule()) {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }

        #[test]
        fn json_round_trips(rule in any_rule()) {
            let json = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
        }

        #[test]
        fn no_text_panics(text in "[ !a-z0-9./:-]{0,80}") {
            let _ = text.parse::<Rule>();
        }
    }

    #[test]
    fn errors_name_the_word() {
        let error = |text: &str| text.parse::<Rule>().unwrap_err();
        assert_eq!(error("-A -c OUTPUT -n any -v DROP --dport 65536").column, 37);
        assert_eq!(error("-A -c SIDEWAYS").column, 7);
        assert_eq!(error("-A -c OUTPUT -v DROP").message, "the namespace (-n) is missing");
        assert_eq!(error("-c OUTPUT ! -v DROP").message, "-v cannot be negated");
        assert_eq!(error("-c OUTPUT -c INPUT").message, "given twice");
        assert_eq!(error("-c OUTPUT -n any -v DROP !").message, "nothing follows the negation");
        assert!(error("-c OUTPUT -n any -v DROP --sng-hash abc").message.contains("64 hex digits"));
        assert!(error("--frobnicate 1").message.contains("unknown option"));
        assert_eq!(error("-s").message, "-s wants a value");
        assert_eq!(error("-c OUTPUT -n any -v DROP ! --traced !").message, "nothing follows the negation");
    }

    #[test]
    fn flags_take_no_value() {
        let rule: Rule = "-c OUTPUT -n any -v DROP --anon-exec -! --traced -p tcp".parse().unwrap();
        let texts: Vec<_> = rule.predicates.iter().map(Predicate::to_string).collect();
        assert_eq!(texts, ["--anon-exec", "! --traced", "-p tcp"]);
        let json = serde_json::to_value(&rule.predicates).unwrap();
        assert_eq!(json[0], serde_json::json!({ "match": "anon-exec" }));
        assert_eq!(json[1], serde_json::json!({ "match": "traced", "negated": true }));
    }

    #[test]
    fn networks_are_truncated_and_addresses_are_whole() {
        assert_eq!(parse_net("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_net("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(parse_net("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
        for bad in ["", "10.1.2", "10.1.2.3/33", "::/129", "10.0.0.0/", "a.b"] {
            assert!(parse_net(bad).is_err(), "{bad}");
        }
    }
}
