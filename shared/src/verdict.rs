//! Chains, verdicts, and why a packet got its verdict.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which list of rules a packet meets. Decided by the queue it arrived on, not by the netfilter hook.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Chain {
    /// Packets that leave a process.
    Output,
    /// Packets that reach a process.
    Input,
    /// Packets that pass through.
    Forward,
}

impl Chain {
    /// All chains, in the order of their default queue numbers.
    pub const ALL: [Chain; 3] = [Chain::Output, Chain::Input, Chain::Forward];

    /// The name used in rules.
    pub fn name(self) -> &'static str {
        match self {
            Chain::Output => "OUTPUT",
            Chain::Input => "INPUT",
            Chain::Forward => "FORWARD",
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a text is not one of a few words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not one of {wanted}")]
pub struct WordError {
    found: String,
    wanted: &'static str,
}

impl FromStr for Chain {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Chain, WordError> {
        Chain::ALL
            .into_iter()
            .find(|chain| chain.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| WordError { found: text.into(), wanted: "OUTPUT, INPUT, FORWARD" })
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It vanishes.
    Drop,
    /// It vanishes, and the program that sent it is told at once: a reset for TCP, unreachable for the rest.
    Reject,
}

impl Verdict {
    /// Whether the packet passes.
    pub fn lets_pass(self) -> bool {
        self == Verdict::Accept
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Accept => "ACCEPT",
            Verdict::Drop => "DROP",
            Verdict::Reject => "REJECT",
        })
    }
}

impl FromStr for Verdict {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Verdict, WordError> {
        match text.to_ascii_uppercase().as_str() {
            "ACCEPT" => Ok(Verdict::Accept),
            "DROP" => Ok(Verdict::Drop),
            "REJECT" => Ok(Verdict::Reject),
            _ => Err(WordError { found: text.into(), wanted: "ACCEPT, DROP, REJECT" }),
        }
    }
}

macro_rules! tokens {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $token:literal, $sentence:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub enum $name {
            $(#[doc = $sentence] #[serde(rename = $token)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// For machines: stable.
            pub fn token(self) -> &'static str {
                match self { $($name::$variant => $token),+ }
            }

            /// For people: may change.
            pub fn sentence(self) -> &'static str {
                match self { $($name::$variant => $sentence),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.token())
            }
        }
    };
}

tokens! {
    /// Why a packet got its verdict: the closed list.
    Reason {
        Rule = "rule", "A rule fired.";
        Policy = "policy", "No rule fired; the chain's policy decided.";
        Undetermined = "undetermined", "An owner could not be identified, so no ACCEPT rule by identity could hold and a DROP rule by identity had to.";
        Malformed = "malformed", "The packet's headers contradict themselves or end too early.";
        HeadersTooLong = "headers-too-long", "The packet's headers do not fit into the bytes the kernel was asked to copy.";
        SignatureMissing = "signature-missing", "Signatures are checked on this chain and the packet carries none.";
        SignatureWrong = "signature-wrong", "The packet's signature does not fit its content and the key.";
        SignatureNoRoom = "signature-no-room", "The packet cannot carry a signature: it is no IPv4 packet, a fragment, or already at full length.";
    }
}

tokens! {
    /// Why an owner is undetermined: the closed list.
    Cause {
        SocketGone = "socket-gone", "A process sent the packet, but its socket was gone when the packet was judged.";
        HoldersGone = "holders-gone", "The socket is there, but no process that holds or held it is known.";
        NamespaceUnknown = "namespace-unknown", "The network namespace the packet came from could not be found.";
        NoDiagnostics = "no-diagnostics", "The kernel did not answer a question about sockets.";
        ProcessGone = "process-gone", "The process ended before its mappings could be read.";
        OtherProgram = "other-program", "The process became another program lately, or sent a datagram that others had begun: the packet may be another's.";
        ImageChanged = "image-changed", "The process got rid of a mapped file or of its tracer after it sent the packet; what it was made of then is not known.";
        MapsUnreadable = "maps-unreadable", "The process's mappings could not be read or made no sense.";
        MapsChanging = "maps-changing", "The process changed its mappings faster than they could be read.";
        ObjectUnreadable = "object-unreadable", "A mapped file could not be read.";
        ObjectTooLarge = "object-too-large", "A mapped file is larger than 4 GiB.";
        ObjectChanging = "object-changing", "A mapped file changed while it was being hashed.";
        Overload = "overload", "Too many packets were waiting for digests already.";
        Stopping = "stopping", "The daemon was stopping and could not wait for a digest.";
        LaterFragment = "later-fragment", "A fragment without ports cannot be traced to a socket.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_unique_and_serialised_as_such() {
        let tokens: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.token()).collect();
        assert_eq!(tokens.len(), Reason::ALL.len());
        let tokens: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|c| c.token()).collect();
        assert_eq!(tokens.len(), Cause::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.token());
        }
    }

    #[test]
    fn words_are_read_in_any_case() {
        assert_eq!("output".parse(), Ok(Chain::Output));
        assert_eq!("Drop".parse(), Ok(Verdict::Drop));
        assert!("REJECTED".parse::<Verdict>().is_err());
        for chain in Chain::ALL {
            assert_eq!(chain.name().parse(), Ok(chain));
            assert_eq!(serde_json::to_value(chain).unwrap(), chain.name());
        }
    }
}
