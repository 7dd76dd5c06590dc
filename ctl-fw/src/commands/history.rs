//! `history`, `undo`: what was changed, and back.

use std::io::{self, Write};

use shared::control::{Answer, Request, Revision};

use super::ruleset::show_changed;
use crate::Exit;
use crate::lookup::user_name;
use crate::session::Session;
use crate::style::{Style, Tone, plain};
use crate::trouble::Trouble;

/// `history`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct HistoryArgs {
    /// At most so many revisions, the newest; 0 for all.
    #[arg(short = 'N', long, value_name = "N", default_value_t = 20)]
    pub count: usize,
}

/// `undo`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct UndoArgs {
    /// Make everything as it was after this revision.
    #[arg(long, value_name = "REVISION")]
    pub to: Option<u64>,
}

impl HistoryArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let count = (self.count > 0).then_some(self.count);
        let Answer::History(revisions) = session.ask(&Request::History { count })? else {
            return Err(Trouble::OtherAnswer);
        };
        let style = session.style;
        if style.json {
            return session.json(&revisions);
        }
        for revision in &revisions {
            write(session.out(), revision, style)?;
        }
        Ok(Exit::Done)
    }
}

impl UndoArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let Answer::Changed(changed) = session.ask(&Request::Undo { to: self.to })? else {
            return Err(Trouble::OtherAnswer);
        };
        show_changed(&changed, session)
    }
}

fn write(out: &mut dyn Write, revision: &Revision, style: Style) -> io::Result<()> {
    let note = revision.note.as_deref().map_or_else(String::new, |note| format!(": {}", plain(note)));
    let kept = if revision.undoable { "" } else { " (cannot be taken back)" };
    let heading = style.paint(Tone::Heading, &format!("revision {}", revision.number));
    writeln!(out, "{heading}, {}, {}{note}{kept}", seconds(revision), author(revision))?;
    for change in &revision.changes {
        let tone = match change.as_bytes().first() {
            Some(b'+') => Tone::Good,
            Some(b'-') => Tone::Bad,
            _ => Tone::Plain,
        };
        writeln!(out, "  {}", style.paint(tone, &plain(change)))?;
    }
    Ok(())
}

/// When it was made, without fractions of a second.
pub(super) fn seconds(revision: &Revision) -> String {
    revision.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Who made it.
pub(super) fn author(revision: &Revision) -> String {
    match (revision.uid, revision.pid) {
        (Some(uid), Some(pid)) => format!("{} (pid {pid})", user_name(uid)),
        (Some(uid), None) => user_name(uid),
        _ => "app-fw itself".into(),
    }
}
