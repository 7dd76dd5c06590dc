//! Which network namespace a rule is about, in words that survive the namespace.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names network namespaces. A selector that matches nothing now is dormant, not wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Selector {
    /// Every namespace.
    Any,
    /// The namespace of process 1.
    Host,
    /// The namespace that `ip netns` knows by this name: a file in /run/netns.
    Named(String),
    /// One namespace until it ends: its cookie (`SO_NETNS_COOKIE`, never reused while the machine runs) and the boot id
    /// (/proc/sys/kernel/random/boot_id) in which the cookie means something.
    Lifetime {
        /// `SO_NETNS_COOKIE`.
        cookie: u64,
        /// Boot id, a lower-case UUID.
        boot: String,
    },
    /// A namespace file as somebody typed it, e.g. `/proc/1234/ns/net`. The daemon resolves it to one of the others
    /// before it stores a rule; it is never stored.
    File(PathBuf),
}

/// Why a text names no namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no network namespace: a file such as /proc/1234/ns/net, a name under /run/netns (netns:NAME or NAME), host, or any"
)]
pub struct SelectorError(String);

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Any => f.pad("any"),
            Selector::Host => f.pad("host"),
            Selector::Named(name) => write!(f, "netns:{name}"),
            Selector::Lifetime { cookie, boot } => write!(f, "lifetime:{cookie}@{boot}"),
            Selector::File(path) => path.display().fmt(f),
        }
    }
}

/// A file name that `ip netns add` would take, without characters that would need quoting in a rule's text.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'"' | b'\'' | b'\\' | b'!'))
}

impl FromStr for Selector {
    type Err = SelectorError;

    /// Reads what `Display` writes, and a bare name for `netns:NAME`.
    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        let error = || SelectorError(text.into());
        match text {
            "any" => return Ok(Selector::Any),
            "host" => return Ok(Selector::Host),
            _ => {}
        }
        if text.starts_with('/') {
            return Ok(Selector::File(text.into()));
        }
        if let Some(rest) = text.strip_prefix("lifetime:") {
            let (cookie, boot) = rest.split_once('@').ok_or_else(error)?;
            let is_boot_id = boot.len() == 36 && boot.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
            return match cookie.parse() {
                Ok(cookie) if is_boot_id => Ok(Selector::Lifetime { cookie, boot: boot.to_ascii_lowercase() }),
                _ => Err(error()),
            };
        }
        let name = text.strip_prefix("netns:").unwrap_or(text);
        if is_plain_name(name) { Ok(Selector::Named(name.into())) } else { Err(error()) }
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Selector, D::Error> {
        crate::rule::from_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_round_trip() {
        for text in ["any", "host", "netns:blue", "/proc/12/ns/net", "lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11"]
        {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        assert_eq!("blue".parse(), Ok(Selector::Named("blue".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "netns:", "netns:a/b", "..", "a b", "lifetime:x@y", "lifetime:1", "a'b"] {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
    }
}
