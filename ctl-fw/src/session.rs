//! One run of the program: where its output goes, and whom it asks.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use shared::control::{Answer, Changed, Edit, FailureKind, Listing, Request};
use shared::rule::quoted;

use crate::args::Invocation;
use crate::client::Client;
use crate::progress::Progress;
use crate::style::{self, Style};
use crate::trouble::Trouble;
use crate::{Console, Exit};

/// Characters of the longest note in the history.
const LONGEST_NOTE: usize = 500;

pub(crate) struct Session<'a, 'c> {
    console: &'a mut Console<'c>,
    pub(crate) style: Style,
    socket: PathBuf,
    /// The command line, for the history.
    note: String,
}

impl<'a, 'c> Session<'a, 'c> {
    pub(crate) fn new(console: &'a mut Console<'c>, invocation: &Invocation, words: &[OsString]) -> Self {
        let style = console.style(invocation.json);
        let words: Vec<_> = words.iter().skip(1).map(|word| quoted(&word.to_string_lossy()).into_owned()).collect();
        let line = style::plain(&format!("ctl-fw {}", words.join(" ")));
        let note = match line.char_indices().nth(LONGEST_NOTE) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line,
        };
        Session { console, style, socket: invocation.socket.clone(), note }
    }

    /// Where data goes.
    pub(crate) fn out(&mut self) -> &mut dyn Write {
        self.console.out
    }

    /// Says something beside the data. There is nobody left to tell if the standard error cannot be written.
    pub(crate) fn say(&mut self, text: &str) {
        let _ = writeln!(self.console.err, "{text}");
    }

    /// Where data goes, to see that nobody reads there any more.
    pub(crate) fn out_handle(&self) -> Option<BorrowedFd<'_>> {
        self.console.out_handle
    }

    /// Shows that long work goes on.
    pub(crate) fn progress(&mut self) -> Progress<'_> {
        Progress::new(self.console.err_is_terminal.then_some(&mut *self.console.err))
    }

    /// Writes a value as JSON.
    pub(crate) fn json<T: serde::Serialize + ?Sized>(&mut self, value: &T) -> Result<Exit, Trouble> {
        style::json(self.console.out, value, self.style)?;
        Ok(Exit::Done)
    }

    /// The command line as the history has it.
    pub(crate) fn note(&self) -> Option<String> {
        Some(self.note.clone())
    }

    pub(crate) fn connect(&self) -> Result<Client, Trouble> {
        Ok(Client::connect(&self.socket)?)
    }

    /// Asks the daemon. A refusal is trouble.
    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, Trouble> {
        answer(self.connect()?.call(request)?)
    }

    /// Makes changes, all or none.
    pub(crate) fn change(&self, edits: Vec<Edit>) -> Result<Changed, Trouble> {
        self.change_if(edits, None)
    }

    /// Makes changes, if nobody has made others since the revision `expected`.
    pub(crate) fn change_if(&self, edits: Vec<Edit>, expected: Option<u64>) -> Result<Changed, Trouble> {
        match self.ask(&Request::Change { edits, note: self.note(), expected })? {
            Answer::Changed(changed) => Ok(changed),
            _ => Err(Trouble::OtherAnswer),
        }
    }

    /// All rules, policies and sets.
    pub(crate) fn listing(&self) -> Result<Listing, Trouble> {
        match self.ask(&Request::List { chain: None, namespace: None })? {
            Answer::Listing(listing) => Ok(listing),
            _ => Err(Trouble::OtherAnswer),
        }
    }
}

/// Tells refusals from answers.
pub(crate) fn answer(answer: Answer) -> Result<Answer, Trouble> {
    match answer {
        Answer::Error(failure) if failure.kind == FailureKind::NotFound => Err(Trouble::Missing(failure.message)),
        Answer::Error(failure) => Err(Trouble::Refused(failure.message)),
        answer => Ok(answer),
    }
}
