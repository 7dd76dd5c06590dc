//! `refresh`: rules follow the files they were made of.

mod dpkg;
mod hook;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shared::control::{Edit, Listing};
use shared::rule::{Item, Label, LabelKind, Labelled, List};
use shared::{Digest, Match, Rule};

use super::listing::digest as shown;
use crate::client::ClientError;
use crate::progress::Progress;
use crate::session::Session;
use crate::style::{Cell, Style, Tone, count, plain, table};
use crate::trouble::Trouble;
use crate::{Exit, program};
use dpkg::{Dpkg, Record};

/// `refresh`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct RefreshArgs {
    /// Show what would be updated, and update nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Update only files that dpkg's record confirms.
    #[arg(long)]
    pub dpkg: bool,
    /// Update also files that dpkg's record contradicts.
    #[arg(long, conflicts_with = "dpkg")]
    pub force: bool,
    /// Say nothing but errors; it is none that app-fw does not run.
    #[arg(long)]
    pub quiet: bool,
    /// Run this after each transaction of dpkg or apt: writes /etc/apt/apt.conf.d/90app-fw.
    #[arg(long, conflicts_with_all = ["dry_run", "dpkg", "force", "quiet"])]
    pub install_hook: bool,
    /// Remove that file.
    #[arg(long, conflicts_with_all = ["dry_run", "dpkg", "force", "quiet", "install_hook"])]
    pub remove_hook: bool,
    /// Where apt has its configuration.
    #[arg(long, hide = true, default_value = hook::DIRECTORY)]
    pub hook_dir: PathBuf,
    /// Where dpkg has its records.
    #[arg(long, hide = true, default_value = dpkg::ADMIN)]
    pub admin_dir: PathBuf,
}

/// A digest of a rule whose file has another one now.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Stale {
    rule: u64,
    label: Label,
    from: Digest,
    to: Digest,
    #[serde(flatten)]
    record: Record,
    /// It is put into the rule.
    update: bool,
}

/// What a label stands for now.
#[derive(Debug)]
struct Now {
    digest: Digest,
    /// The files, and what they hold.
    files: Vec<(PathBuf, Digest)>,
}

/// A label that could not be looked up again.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Lost {
    label: Label,
    why: String,
}

impl RefreshArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        if self.install_hook || self.remove_hook {
            let path = if self.install_hook { hook::install(&self.hook_dir)? } else { hook::remove(&self.hook_dir)? };
            let what = if self.install_hook { "wrote" } else { "removed" };
            writeln!(session.out(), "{what} {}", path.display())?;
            return Ok(Exit::Done);
        }
        let listing = match session.listing() {
            Err(Trouble::Client(ClientError::NoSocket(_) | ClientError::NotRunning(_))) if self.quiet => {
                return Ok(Exit::Done);
            }
            listing => listing?,
        };
        let (stale, lost) = self.look(&listing, &mut session.progress());
        let edits = edits(&listing, &stale);
        let updated = stale.iter().filter(|stale| stale.update).count();
        if !self.dry_run && !edits.is_empty() {
            session.change_if(edits, Some(listing.revision))?;
        }
        self.show(&stale, &lost, updated, session)?;
        Ok(if updated == stale.len() && lost.is_empty() || self.quiet { Exit::Done } else { Exit::Negative })
    }

    /// Looks at the files of all labels.
    fn look(&self, listing: &Listing, progress: &mut Progress<'_>) -> (Vec<Stale>, Vec<Lost>) {
        let (mut now, mut lost): (BTreeMap<String, Now>, Vec<Lost>) = (BTreeMap::new(), Vec::new());
        let mut old = Vec::new();
        for listed in &listing.rules {
            each_labelled(&listed.rule, |labelled| {
                if let Some(label) = &labelled.from {
                    old.push((listed.id, label.clone(), labelled.value));
                }
            });
        }
        let mut known: Vec<&Label> = Vec::new();
        for (_, label, _) in &old {
            if known.contains(&label) {
                continue;
            }
            known.push(label);
            match look_up(label, progress) {
                None => {}
                Some(Ok(found)) => drop(now.insert(label.to_string(), found)),
                Some(Err(trouble)) => lost.push(Lost { label: label.clone(), why: trouble.to_string() }),
            }
        }
        let changed: Vec<_> = old
            .into_iter()
            .filter_map(|(rule, label, from)| {
                let now = now.get(&label.to_string())?;
                (now.digest != from).then_some((rule, label, from, now))
            })
            .collect();
        let mut paths: Vec<_> =
            changed.iter().flat_map(|(.., now)| now.files.iter().map(|(path, _)| path.clone())).collect();
        paths.sort();
        paths.dedup();
        let dpkg = Dpkg::ask(&self.admin_dir, &paths);
        let stale = changed
            .into_iter()
            .map(|(rule, label, from, now)| {
                let record = record(&dpkg, &now.files);
                let update = match record {
                    Record::Confirmed(_) => true,
                    Record::Contradicted(_) => self.force,
                    Record::Unknown => !self.dpkg,
                };
                Stale { rule, label, from, to: now.digest, record, update }
            })
            .collect();
        (stale, lost)
    }

    fn show(
        &self,
        stale: &[Stale],
        lost: &[Lost],
        updated: usize,
        session: &mut Session<'_, '_>,
    ) -> Result<(), Trouble> {
        let style = session.style;
        if !style.json {
            for Lost { label, why } in lost {
                session.say(&format!("note: {}: {why}", plain(&label.to_string())));
            }
        }
        if self.quiet {
            return Ok(());
        }
        if style.json {
            session.json(&serde_json::json!({ "changed": stale, "lost": lost, "dry_run": self.dry_run }))?;
            return Ok(());
        }
        if stale.is_empty() {
            let which = if lost.is_empty() { "every labelled file is" } else { "all other labelled files are" };
            writeln!(session.out(), "{which} as the rules have it")?;
            return Ok(());
        }
        let rows: Vec<_> = stale.iter().map(|stale| row(stale, style)).collect();
        table(session.out(), ["RULE", "FILE", "WAS", "IS", "DPKG"], &rows, "><<<<", style)?;
        let what = if self.dry_run { "would update" } else { "updated" };
        writeln!(session.out(), "{what} {} of {}", updated, count(stale.len(), "digest"))?;
        let is_left = |stale: &&Stale| !stale.update;
        if stale.iter().filter(is_left).any(|stale| stale.record == Record::Unknown) {
            session.say("note: what is of no package is not updated with --dpkg");
        }
        if stale.iter().filter(is_left).any(|stale| stale.record != Record::Unknown) {
            session.say("note: what dpkg's record contradicts is updated with --force only");
        }
        Ok(())
    }
}

fn row(stale: &Stale, style: Style) -> [Cell; 5] {
    let record = match &stale.record {
        Record::Confirmed(package) => Cell::toned(format!("as {package} has it"), Tone::Good),
        Record::Contradicted(package) => Cell::toned(format!("NOT as {package} has it"), Tone::Bad),
        Record::Unknown => Cell::toned("of no package", Tone::Caution),
    };
    [
        stale.rule.to_string().into(),
        plain(&stale.label.to_string()).into(),
        shown(&stale.from, style).into(),
        shown(&stale.to, style).into(),
        record,
    ]
}

/// What a label stands for now; `None` if its kind is not looked up again.
fn look_up(label: &Label, progress: &mut Progress<'_>) -> Option<Result<Now, Trouble>> {
    let path = Path::new(&label.name);
    Some(match label.kind {
        LabelKind::Exe | LabelKind::Lib => crate::hash::hash_file(path, progress)
            .map(|(real, digest)| Now { digest, files: vec![(real, digest)] })
            .map_err(Trouble::from),
        LabelKind::Exec => program::predict(path, progress)
            .map(|program| Now { digest: program.aggregate(), files: program.objects })
            .map_err(Trouble::from),
        LabelKind::Pid | LabelKind::Container => return None,
    })
}

/// What dpkg's record says of all these files together.
fn record(dpkg: &Dpkg, files: &[(PathBuf, Digest)]) -> Record {
    let mut all = Record::Unknown;
    for (index, (path, digest)) in files.iter().enumerate() {
        // What is compared must be what was hashed.
        let content: io::Result<Vec<u8>> = fs::read(path);
        let record = match content {
            Ok(content) if Digest::of(&content) == *digest => dpkg.record(path, &content),
            _ => Record::Unknown,
        };
        all = match (all, record) {
            (_, Record::Contradicted(package)) => return Record::Contradicted(package),
            (_, record) if index == 0 => record,
            (Record::Unknown, _) | (_, Record::Unknown) => Record::Unknown,
            (all, _) => all,
        };
    }
    all
}

/// Calls `on` with each digest of a rule that can have a label.
fn each_labelled(rule: &Rule, mut on: impl FnMut(&Labelled<Digest>)) {
    for predicate in &rule.predicates {
        if let Match::SngHash(List(items)) | Match::AllHash(List(items)) | Match::AggHash(List(items)) = &predicate.on {
            for item in items {
                if let Item::One(labelled) = item {
                    on(labelled);
                }
            }
        }
    }
}

/// For each rule of which something is updated, the rule that takes its place.
fn edits(listing: &Listing, stale: &[Stale]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for listed in &listing.rules {
        let mine: Vec<_> = stale.iter().filter(|stale| stale.rule == listed.id && stale.update).collect();
        if mine.is_empty() {
            continue;
        }
        let mut rule = listed.rule.clone();
        for predicate in &mut rule.predicates {
            let (Match::SngHash(List(items)) | Match::AllHash(List(items)) | Match::AggHash(List(items))) =
                &mut predicate.on
            else {
                continue;
            };
            for item in items {
                let Item::One(Labelled { value, from: Some(label) }) = item else { continue };
                if let Some(stale) = mine.iter().find(|stale| stale.label == *label && stale.from == *value) {
                    *value = stale.to;
                }
            }
        }
        edits.push(Edit::Replace { id: listed.id, rule });
    }
    edits
}
