//! `save`, `restore`, `check`: everything at once.

use std::io::Write;
use std::path::{Path, PathBuf};

use shared::control::{Answer, Changed, FailureKind, Listing, Request};
use shared::document::{Document, DocumentError, NumberedRule, Policy};

use crate::Exit;
use crate::ruleset::{Ruleset, read_file, shown};
use crate::session::{self, Session};
use crate::style::count;
use crate::trouble::Trouble;

/// `save`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct SaveArgs {
    /// The file; the standard output if absent or -. With --json, the JSON form.
    pub file: Option<PathBuf>,
}

/// `restore`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct RestoreArgs {
    /// What save wrote, text or JSON; the standard input if absent or -.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Only if this is still the newest revision.
    #[arg(long, value_name = "REVISION")]
    pub if_revision: Option<u64>,
}

/// `check`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct CheckArgs {
    /// Files that restore would read; - is the standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

/// What of a listing is stored.
pub(super) fn document(listing: Listing) -> Document {
    Document {
        sets: listing.sets.into_iter().map(|listed| listed.set).collect(),
        policies: listing
            .policies
            .into_iter()
            .filter(|policy| policy.stored)
            .map(|policy| Policy { chain: policy.chain, namespace: policy.namespace, verdict: policy.verdict })
            .collect(),
        rules: listing
            .rules
            .into_iter()
            .map(|listed| NumberedRule { id: Some(listed.id), rule: listed.rule })
            .collect(),
    }
}

impl SaveArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let listing = session.listing()?;
        let revision = listing.revision;
        let document = document(listing);
        let text = if session.style.json {
            serde_json::to_string_pretty(&document).map_err(std::io::Error::from)? + "\n"
        } else {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
            format!("# Saved by ctl-fw at {now}, revision {revision}\n{document}")
        };
        match &self.file {
            Some(path) if path != Path::new("-") => {
                replace(path, text.as_bytes()).map_err(|source| Trouble::Write { path: path.clone(), source })?;
            }
            _ => session.out().write_all(text.as_bytes())?,
        }
        Ok(Exit::Done)
    }
}

/// Writes a file anew: whoever reads it sees the old content or the new, also after a power cut. What is no regular file is
/// written to as it is.
pub(super) fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let former = std::fs::metadata(path).ok();
    if former.as_ref().is_some_and(|file| !file.is_file()) {
        return std::fs::write(path, content);
    }
    // Through a link, to where it leads.
    let path = if former.is_some() { std::fs::canonicalize(path)? } else { path.into() };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    let mode = former.map_or(0o600, |file| file.permissions().mode() & 0o777);
    file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    std::fs::File::open(dir)?.sync_all()
}

impl RestoreArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let bytes = read_file(&self.file)?;
        let name = shown(&self.file);
        let ruleset = match Ruleset::parse(&bytes) {
            Ok(ruleset) => ruleset,
            Err(errors) => {
                for error in &errors {
                    session.say(&place(&name, error));
                }
                let errors = count(errors.len(), "error");
                return Err(Trouble::Other(format!("{} has {errors}; nothing was changed", name.display())));
            }
        };
        let places: Vec<_> = (0..ruleset.document.rules.len()).map(|index| ruleset.place(index)).collect();
        let document = ruleset.form(bytes);
        let request = Request::Restore { document, note: session.note(), expected: self.if_revision };
        let answer = session.connect()?.call(&request)?;
        if let Answer::Error(failure) = &answer
            && let Some(&Some((line, column))) = failure.index.and_then(|index| places.get(index))
            && failure.kind != FailureKind::Conflict
        {
            let error = DocumentError { line, column, message: failure.message.clone() };
            session.say(&place(&name, &error));
        }
        let Answer::Changed(changed) = session::answer(answer)? else { return Err(Trouble::OtherAnswer) };
        show_changed(&changed, session)
    }
}

/// Says what the ruleset has become.
pub(super) fn show_changed(changed: &Changed, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    if session.style.json {
        return session.json(changed);
    }
    writeln!(session.out(), "revision {}: {}", changed.revision, count(changed.rules, "rule"))?;
    Ok(Exit::Done)
}

/// As compilers say it, so that editors find it.
fn place(file: &Path, error: &DocumentError) -> String {
    format!("{}:{}:{}: {}", file.display(), error.line, error.column, error.message)
}

impl CheckArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let mut exit = Exit::Done;
        let mut results = Vec::new();
        for path in &self.files {
            let name = shown(path);
            let (rules, errors) = match Ruleset::parse(&read_file(path)?) {
                Ok(ruleset) => (Some(ruleset.document.rules.len()), Vec::new()),
                Err(errors) => (None, errors),
            };
            if !errors.is_empty() {
                exit = Exit::Negative;
            }
            if session.style.json {
                results.push(serde_json::json!({ "file": name.to_string_lossy(), "rules": rules, "errors": errors }));
                continue;
            }
            for error in &errors {
                writeln!(session.out(), "{}", place(&name, error))?;
            }
            if let Some(rules) = rules {
                writeln!(session.out(), "{}: {}, no errors", name.display(), count(rules, "rule"))?;
            }
        }
        if session.style.json {
            session.json(&serde_json::json!({ "files": results }))?;
        }
        Ok(exit)
    }
}
