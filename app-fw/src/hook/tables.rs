//! iptables, as a program.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::child::{self, Ended};
use super::rules::{self, Instance, Listing, TABLE};

/// iptables waits so many seconds for others that change the tables.
const LOCK: &str = "--wait=10";

/// What could not be done with iptables; a sentence each.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// There is no such program.
    #[error("there is no program {0}: --hook needs iptables (apt-get install iptables), or name one with --iptables")]
    Missing(String),
    /// It could not be run.
    #[error("{program}: {error}")]
    Run {
        /// Its name.
        program: String,
        /// Why not.
        error: io::Error,
    },
    /// It said no.
    #[error("{program}: {said}")]
    Refused {
        /// Its name.
        program: String,
        /// What it said.
        said: String,
    },
    /// It said yes, and they are still there.
    #[error("{program} took rules away that are still there when they are read back")]
    StillThere {
        /// Its name.
        program: String,
    },
    /// It said yes, and nothing came of it.
    #[error("{program} put rules in place that are not there when they are read back")]
    NotThere {
        /// Its name.
        program: String,
    },
}

/// Internet protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Version 4.
    Ipv4,
    /// Version 6.
    Ipv6,
}

impl Family {
    /// For people and machines.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        }
    }
}

/// Which of the kernel's two rule stores a program writes to. They know nothing of each other; packets meet both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// nf_tables.
    Nft,
    /// ip_tables.
    Legacy,
}

impl Variant {
    fn other(self) -> Variant {
        match self {
            Variant::Nft => Variant::Legacy,
            Variant::Legacy => Variant::Nft,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        }
    }
}

/// One family's iptables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tables {
    /// Its packets.
    pub family: Family,
    /// Its rules.
    pub variant: Variant,
    /// `iptables`, or a path of it.
    program: PathBuf,
}

impl Tables {
    /// Asks a program what it is.
    ///
    /// # Errors
    /// There is none, or it does not say.
    pub fn ask(family: Family, program: &Path) -> Result<Tables, TablesError> {
        let mut tables = Tables { family, variant: Variant::Legacy, program: program.into() };
        let version = tables.run("", &["--version"], "")?.output;
        // Before 1.8 there was one kind, and no word for it.
        tables.variant = if version.contains("(nf_tables)") { Variant::Nft } else { Variant::Legacy };
        Ok(tables)
    }

    /// The same family's with the other kind of rules, as distributions call it.
    pub fn other_variant(&self) -> Option<Tables> {
        let stem = match self.family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        };
        let name = format!("{stem}-{}", self.variant.other().name());
        let other = Tables::ask(self.family, &self.program.with_file_name(name)).ok()?;
        (other.variant != self.variant).then_some(other)
    }

    /// For people.
    pub fn name(&self) -> String {
        format!("{} ({})", self.program.display(), self.variant.name())
    }

    /// All rules of all tables, as iptables-save prints them. Where there never was one this makes none.
    ///
    /// # Errors
    /// See [`TablesError`].
    pub fn everything(&self) -> Result<String, TablesError> {
        if self.variant == Variant::Legacy && !self.legacy_is_used() {
            return Ok(String::new());
        }
        Ok(self.run("-save", &[], "")?.output)
    }

    /// Tables of the legacy kind are made when they are first looked at, and stay.
    fn legacy_is_used(&self) -> bool {
        let names = match self.family {
            Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
            Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
        };
        std::fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty())
    }

    /// The table that our rules are in.
    ///
    /// # Errors
    /// See [`TablesError`].
    pub fn listing(&self) -> Result<Listing, TablesError> {
        Ok(Listing::read(&self.run("-save", &["-t", TABLE], "")?.output))
    }

    /// Carries out a transaction: all of it or nothing.
    ///
    /// # Errors
    /// See [`TablesError`].
    pub fn restore(&self, script: &str) -> Result<(), TablesError> {
        self.run("-restore", &["--noflush", LOCK], script).map(drop)
    }

    /// Takes away what app-fws left that are gone.
    ///
    /// # Errors
    /// See [`TablesError`].
    pub fn remove(&self, gone: impl Fn(&Listing) -> Vec<Instance>) -> Result<(), TablesError> {
        attempt(|| {
            let listing = self.listing()?;
            rules::to_remove(&listing, &gone(&listing)).map_or(Ok(()), |script| self.restore(&script))
        })
    }

    fn run(&self, suffix: &str, arguments: &[&str], input: &str) -> Result<Ended, TablesError> {
        let mut program: OsString = self.program.clone().into();
        program.push(suffix);
        let name = || program.to_string_lossy().into_owned();
        let ended = child::run(OsStr::new(&program), arguments, input).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TablesError::Missing(name()),
            io::ErrorKind::TimedOut => {
                let error = io::Error::new(error.kind(), format!("it did not end within {:?}", child::PATIENCE));
                TablesError::Run { program: name(), error }
            }
            _ => TablesError::Run { program: name(), error },
        })?;
        if ended.status.success() {
            return Ok(ended);
        }
        let said: Vec<_> = ended.complaint.lines().map(str::trim).filter(|line| says_something(line)).collect();
        let said = if said.is_empty() { ended.status.to_string() } else { said.join("; ") };
        Err(TablesError::Refused { program: name(), said })
    }
}

/// iptables ends its complaints with advice about its own options.
fn says_something(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("Try `") && !line.starts_with('#')
}

/// Others may change a table between our look and our change, which then fails as a whole. Then it is looked at again.
const ATTEMPTS: usize = 3;

/// Does something again that failed because others came in between.
///
/// # Errors
/// As the last attempt.
pub fn attempt<T>(mut work: impl FnMut() -> Result<T, TablesError>) -> Result<T, TablesError> {
    for _ in 1..ATTEMPTS {
        match work() {
            Err(TablesError::Refused { .. } | TablesError::NotThere { .. }) => {}
            done => return done,
        }
    }
    work()
}

/// Both families' programs, and what is to be said of them.
pub struct Found {
    /// IPv4's, and IPv6's if there is one.
    pub tables: Vec<Tables>,
    /// For the log and the status.
    pub warnings: Vec<String>,
}

/// Finds the programs: those named, or else `iptables` and `ip6tables`, unless all rules of this namespace are of the other
/// kind than those write.
///
/// # Errors
/// There is no iptables.
pub fn find(named: Option<&Path>) -> Result<Found, TablesError> {
    let mut warnings = Vec::new();
    let program = named.unwrap_or(Path::new("iptables"));
    let ipv4 = choose(Tables::ask(Family::Ipv4, program)?, named.is_some(), &mut warnings)?;
    let mut tables = vec![ipv4];
    if !Path::new("/proc/sys/net/ipv6").exists() {
        warnings.push("the kernel has no IPv6: there are rules for IPv4 only".into());
        return Ok(Found { tables, warnings });
    }
    match Tables::ask(Family::Ipv6, &of_ipv6(program)) {
        Ok(ipv6) => tables.push(choose(ipv6, named.is_some(), &mut warnings)?),
        Err(error) => warnings.push(format!("IPv6 packets are not judged: {error}")),
    }
    Ok(Found { tables, warnings })
}

/// `ip6tables-nft` for `iptables-nft`.
fn of_ipv6(program: &Path) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    program.with_file_name(name.replacen("iptables", "ip6tables", 1))
}

fn choose(tables: Tables, is_named: bool, warnings: &mut Vec<String>) -> Result<Tables, TablesError> {
    let Some(other) = tables.other_variant() else { return Ok(tables) };
    // What cannot be read there need not be: it is not where our rules go, unless it is where all others are.
    let elsewhere = other.everything().map_or(0, |text| rules::count(&text));
    if elsewhere == 0 {
        return Ok(tables);
    }
    if !is_named && rules::count(&tables.everything()?) == 0 {
        return Ok(other);
    }
    warnings.push(format!(
        "{}: {elsewhere} rules are in {} and not in {}; packets meet both",
        tables.family.name(),
        other.name(),
        tables.name()
    ));
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_after_each_other() {
        for (four, six) in [
            ("iptables", "ip6tables"),
            ("/usr/sbin/iptables-legacy", "/usr/sbin/ip6tables-legacy"),
            ("/opt/iptables/iptables-nft", "/opt/iptables/ip6tables-nft"),
        ] {
            assert_eq!(of_ipv6(Path::new(four)), Path::new(six));
        }
    }

    #[test]
    fn a_missing_program_is_named_with_what_helps() {
        let error = find(Some(Path::new("/nonexistent/iptables"))).err().unwrap().to_string();
        assert!(error.contains("/nonexistent/iptables") && error.contains("apt-get install iptables"), "{error}");
    }
}
