//! Why the probe as a whole could not be loaded.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use aya::{BtfError, EbpfError};

/// Nothing of the probe can work. Each message is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The daemon runs in a pid namespace of its own: the programs see the kernel's process ids, the daemon others.
    #[error(
        "the daemon runs in a pid namespace of its own, where process ids are not those that the kernel reports; \
         run it in the initial one (docker: --pid=host)"
    )]
    PidNamespace,
    /// The process may not load eBPF programs.
    #[error(
        "the kernel does not allow this process to load eBPF programs; \
         it needs root (CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)"
    )]
    NotPermitted(#[source] Box<EbpfError>),
    /// The kernel does not describe its types.
    #[error("the kernel has no type information in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)")]
    NoTypes(#[source] Box<BtfError>),
    /// The object file given cannot be read.
    #[error("cannot read the eBPF object file {path}", path = .path.display())]
    ReadObject {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The object is not one that this kernel and this version can use.
    #[error("the eBPF object cannot be used on this kernel")]
    BadObject(#[source] Box<EbpfError>),
    /// The object lacks a map or gives it another layout: it belongs to another version of this program.
    #[error("the eBPF object's map {name} is not the one this version expects: {found}")]
    MapLayout {
        /// Name of the map.
        name: &'static str,
        /// What is there instead.
        found: String,
    },
    /// A map cannot be mapped into memory.
    #[error("cannot map the eBPF map {name} into memory")]
    MapMemory {
        /// Name of the map.
        name: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not a single hook could be attached.
    #[error("no hook could be attached; the first, {hook}, because {reason}")]
    NoHook {
        /// The first hook that was tried.
        hook: crate::Hook,
        /// Why it failed.
        reason: String,
    },
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> LoadError {
        if is_denied(&error) { LoadError::NotPermitted(Box::new(error)) } else { LoadError::BadObject(Box::new(error)) }
    }
}

/// Whether some cause of the error is the kernel's EPERM or EACCES.
fn is_denied(error: &EbpfError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if current.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = current.source();
    }
    false
}

/// The error and its causes in one line. A verifier's log has thousands of lines, of which the last
/// before its statistics says what is wrong.
pub(crate) fn describe(error: &aya::programs::ProgramError) -> String {
    if let aya::programs::ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let statistics = ["processed ", "verification time ", "stack depth "];
        let is_verdict = |line: &&str| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start));
        let verdict = log.lines().rev().map(str::trim).find(is_verdict);
        return match verdict {
            Some(verdict) => format!("the kernel refused the program: {io_error} ({verdict})"),
            None => format!("the kernel refused the program: {io_error}"),
        };
    }
    with_causes(error)
}

/// The error and its causes in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}
