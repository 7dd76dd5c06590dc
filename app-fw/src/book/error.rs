//! Why a change of the ruleset makes no sense.

use shared::control::{Failure, FailureKind};
use shared::set::{SetKind, SetName};
use shared::{Chain, Selector};

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// A rule was to be put beyond the end of its chain.
    #[error("position {position} is beyond the end: {chain} of {namespace} has {length} rules")]
    OutOfRange {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Selector,
        /// The position asked for.
        position: usize,
        /// How many rules there are.
        length: usize,
    },
    /// There is no rule at a position.
    #[error("there is no rule at position {position}: {chain} of {namespace} has {length} rules")]
    NoRuleAt {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Selector,
        /// The position asked for.
        position: usize,
        /// How many rules there are.
        length: usize,
    },
    /// There is no rule with an id.
    #[error("there is no rule with the id {0}")]
    NoSuchRule(u64),
    /// A namespace that is only a file name means nothing tomorrow.
    #[error("{0} must be resolved before it is stored")]
    Unresolved(Selector),
    /// A match that would not survive as text.
    #[error("{0} is there twice: give all values in one list")]
    Twice(&'static str),
    /// A policy cannot reject.
    #[error("a policy is ACCEPT or DROP")]
    PolicyRejects,
    /// A set's name is taken.
    #[error("there is a set {0} already")]
    SetExists(SetName),
    /// There is no such set.
    #[error("there is no set {0}")]
    NoSuchSet(SetName),
    /// A rule names a set that is not there.
    #[error("{option} @{name}: there is no such set")]
    UnknownSet {
        /// The match option.
        option: &'static str,
        /// The set.
        name: SetName,
    },
    /// A rule names a set that holds something else.
    #[error("{option} @{name}: a set of {wanted} is wanted, this is one of {kind}")]
    WrongKind {
        /// The match option.
        option: &'static str,
        /// The set.
        name: SetName,
        /// What the option takes.
        wanted: SetKind,
        /// What the set holds.
        kind: SetKind,
    },
    /// Rules name the set.
    #[error("the set {name} is in use: {rules} rules name it")]
    SetInUse {
        /// The set.
        name: SetName,
        /// How many rules name it.
        rules: usize,
    },
    /// An element is none of the set's kind.
    #[error("{0}")]
    Element(String),
    /// An element is not in the set.
    #[error("{element} is not in the set {name}")]
    NotInSet {
        /// The set.
        name: SetName,
        /// The element.
        element: String,
    },
    /// A document contradicts itself.
    #[error("{0}")]
    Contradiction(String),
    /// No id is left.
    #[error("the highest id of a rule is {}", super::MAX_ID)]
    TooHigh,
}

impl BookError {
    /// What a client is told of it.
    pub fn failure(&self, index: Option<usize>) -> Failure {
        let kind = match self {
            BookError::OutOfRange { .. }
            | BookError::NoRuleAt { .. }
            | BookError::NoSuchRule(_)
            | BookError::NoSuchSet(_)
            | BookError::UnknownSet { .. }
            | BookError::NotInSet { .. } => FailureKind::NotFound,
            _ => FailureKind::Invalid,
        };
        Failure { kind, message: self.to_string(), index }
    }
}
