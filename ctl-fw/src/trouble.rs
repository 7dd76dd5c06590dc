//! Why a task could not be done.

use std::io;
use std::path::PathBuf;

use crate::client::ClientError;
use crate::hash::HashError;
use crate::lookup::LookupError;
use crate::namespace::NamespaceError;
use crate::program::ProgramError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The answer is no.
    #[error("{0}")]
    Missing(String),
    #[error("app-fw refuses: {0}")]
    Refused(String),
    #[error("app-fw answered something that was not asked: do ctl-fw and app-fw have the same version?")]
    OtherAnswer,
    #[error("{0}")]
    Other(String),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl Trouble {
    /// Its kind, for programs: stable.
    pub(crate) fn token(&self) -> &'static str {
        match self {
            Trouble::Client(_) => "no-answer",
            Trouble::OtherAnswer => "protocol",
            Trouble::Missing(_) => "not-found",
            Trouble::Refused(_) => "refused",
            Trouble::Namespace(_) | Trouble::Lookup(_) | Trouble::Program(_) | Trouble::Hash(_) => "lookup",
            Trouble::Read { .. } | Trouble::Write { .. } | Trouble::Output(_) => "io",
            Trouble::Other(_) => "invalid",
        }
    }

    /// The reader has seen enough: `ctl-fw -L | head`.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Trouble::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
