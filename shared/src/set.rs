//! Named sets: lists that rules name, and that change without touching the rules.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;
use crate::rule::{Labelled, Net, PortRange};

/// Names a set, as `@NAME` in a rule: letters, digits, `_`, `-` and `.`, at most 64 of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SetName(String);

/// Why a text is no name of a set, or no kind of set, or no element.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Not a name.
    #[error("{0:?} is no name of a set: letters, digits, _ - and ., at most 64")]
    Name(String),
    /// Not a kind.
    #[error("{0:?} is no kind of set: addresses, ports or digests")]
    Kind(String),
    /// Not an element of that kind.
    #[error("{0}")]
    Element(String),
}

impl SetName {
    /// Without the `@`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SetName {
    type Err = SetError;

    fn from_str(text: &str) -> Result<SetName, SetError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if (1..=64).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(SetName(text.into()))
        } else {
            Err(SetError::Name(text.into()))
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is in a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetKind {
    /// Addresses and prefixes, of both families.
    Addresses,
    /// Ports and ranges of ports.
    Ports,
    /// Digests.
    Digests,
}

impl SetKind {
    /// All of them.
    pub const ALL: [SetKind; 3] = [SetKind::Addresses, SetKind::Ports, SetKind::Digests];

    /// Stable token.
    pub fn token(self) -> &'static str {
        match self {
            SetKind::Addresses => "addresses",
            SetKind::Ports => "ports",
            SetKind::Digests => "digests",
        }
    }
}

impl fmt::Display for SetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.token())
    }
}

impl FromStr for SetKind {
    type Err = SetError;

    fn from_str(text: &str) -> Result<SetKind, SetError> {
        SetKind::ALL.into_iter().find(|kind| kind.token() == text).ok_or_else(|| SetError::Kind(text.into()))
    }
}

/// Elements of one kind, in order and each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elements {
    /// Of [`SetKind::Addresses`].
    Addresses(Vec<Net>),
    /// Of [`SetKind::Ports`].
    Ports(Vec<PortRange>),
    /// Of [`SetKind::Digests`].
    Digests(Vec<Digest>),
}

impl Elements {
    /// None yet.
    pub fn none(kind: SetKind) -> Elements {
        match kind {
            SetKind::Addresses => Elements::Addresses(Vec::new()),
            SetKind::Ports => Elements::Ports(Vec::new()),
            SetKind::Digests => Elements::Digests(Vec::new()),
        }
    }

    /// Reads elements from their texts.
    ///
    /// # Errors
    /// One is none of this kind.
    pub fn parse<'a>(kind: SetKind, texts: impl IntoIterator<Item = &'a str>) -> Result<Elements, SetError> {
        fn all<'a, T: FromStr<Err: fmt::Display> + Ord>(
            texts: impl Iterator<Item = &'a str>,
        ) -> Result<Vec<T>, SetError> {
            let read = |text: &str| text.parse().map_err(|error: T::Err| SetError::Element(error.to_string()));
            let mut elements: Vec<T> = texts.map(read).collect::<Result<_, _>>()?;
            elements.sort_unstable();
            elements.dedup();
            Ok(elements)
        }
        let texts = texts.into_iter();
        Ok(match kind {
            SetKind::Addresses => Elements::Addresses(all(texts)?),
            SetKind::Ports => Elements::Ports(all(texts)?),
            SetKind::Digests => Elements::Digests(all(texts)?),
        })
    }

    /// Their kind.
    pub fn kind(&self) -> SetKind {
        match self {
            Elements::Addresses(_) => SetKind::Addresses,
            Elements::Ports(_) => SetKind::Ports,
            Elements::Digests(_) => SetKind::Digests,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Elements::Addresses(nets) => nets.len(),
            Elements::Ports(ports) => ports.len(),
            Elements::Digests(digests) => digests.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their texts, in order.
    pub fn texts(&self) -> Vec<String> {
        fn all<T: fmt::Display>(elements: &[T]) -> Vec<String> {
            elements.iter().map(T::to_string).collect()
        }
        match self {
            Elements::Addresses(nets) => all(nets),
            Elements::Ports(ports) => all(ports),
            Elements::Digests(digests) => all(digests),
        }
    }
}

/// A named set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its name.
    pub name: SetName,
    /// What is in it.
    pub elements: Elements,
}

impl fmt::Display for Set {
    /// The command line that makes it: `set create NAME KIND [ELEMENT,...]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set create {} {}", self.name, self.elements.kind())?;
        if self.elements.is_empty() { Ok(()) } else { write!(f, " {}", self.elements.texts().join(",")) }
    }
}

/// As JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    name: SetName,
    kind: SetKind,
    #[serde(default)]
    elements: Vec<String>,
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, kind) = (self.name.clone(), self.elements.kind());
        Form { name, kind, elements: self.elements.texts() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Set, D::Error> {
        let Form { name, kind, elements } = Form::deserialize(deserializer)?;
        let elements = Elements::parse(kind, elements.iter().map(String::as_str)).map_err(serde::de::Error::custom)?;
        Ok(Set { name, elements })
    }
}

impl Serialize for SetName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SetName, D::Error> {
        crate::rule::from_text(deserializer)
    }
}

impl From<Digest> for crate::rule::Item<Labelled<Digest>> {
    fn from(digest: Digest) -> Self {
        crate::rule::Item::One(Labelled::from(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_round_trip_and_are_in_order() {
        let elements = Elements::parse(SetKind::Addresses, ["::1", "10.1.2.3/8", "10.0.0.0/8"]).unwrap();
        let set = Set { name: "lan".parse().unwrap(), elements };
        assert_eq!(set.to_string(), "set create lan addresses 10.0.0.0/8,::1/128");
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(json, r#"{"name":"lan","kind":"addresses","elements":["10.0.0.0/8","::1/128"]}"#);
        assert_eq!(serde_json::from_str::<Set>(&json).unwrap(), set);
        let empty = Set { name: "none".parse().unwrap(), elements: Elements::none(SetKind::Ports) };
        assert_eq!(empty.to_string(), "set create none ports");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Elements::parse(SetKind::Ports, ["80", "http"]).is_err());
        assert!(serde_json::from_str::<Set>(r#"{"name":"a","kind":"digests","elements":["abc"]}"#).is_err());
        for bad in ["", "a b", "@a", "a/b", &"x".repeat(65)] {
            assert!(bad.parse::<SetName>().is_err(), "{bad}");
        }
        assert!("port".parse::<SetKind>().is_err());
    }
}
