//! The command line of app-fw, as a library: what it prints and how it ends, without a process around it.
//!
//! [`run`] reads arguments ([`args`]) into plain data, and the modules of `commands` do what is asked: they look up what a
//! rule is made of (`lookup`), ask the daemon ([`client`]), and show the answer. Data goes to the standard output,
//! everything said about it to the standard error.

pub mod args;
pub mod client;
pub mod commands;
pub mod hash;
mod lookup;
pub mod manual;
pub mod moment;
pub mod namespace;
mod negation;
mod program;
mod progress;
pub mod rule_options;
mod ruleset;
mod session;
mod style;
mod suggest;
mod trouble;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use session::Session;
use style::Style;
use trouble::Trouble;

/// Where output goes.
pub struct Console<'a> {
    /// Standard output: data.
    pub out: &'a mut dyn Write,
    /// Standard error: talk.
    pub err: &'a mut dyn Write,
    /// A person looks at the data: digests are shortened, help is coloured.
    pub out_is_terminal: bool,
    /// A person looks at the talk: errors are coloured, long work shows that it goes on.
    pub err_is_terminal: bool,
    /// Colours are welcome where a person looks (`NO_COLOR` is not set).
    pub colour: bool,
    /// Columns of the terminal to which the data goes.
    pub width: Option<usize>,
    /// Where `out` leads, to see that nobody reads there any more.
    pub out_handle: Option<BorrowedFd<'a>>,
}

impl<'a> Console<'a> {
    /// A console of files or pipes.
    pub fn plain(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Console<'a> {
        Console {
            out,
            err,
            out_is_terminal: false,
            err_is_terminal: false,
            colour: false,
            width: None,
            out_handle: None,
        }
    }

    fn style(&self, json: bool) -> Style {
        let for_people = self.out_is_terminal;
        Style { json, for_people, colour: for_people && self.colour, width: self.width.filter(|_| for_people) }
    }
}

/// How the program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// What was asked for is done. Exit code 0.
    Done,
    /// The answer is no: there is no such rule. Exit code 1.
    Negative,
    /// It could not be done. Exit code 2.
    Error,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Negative => 1,
            Exit::Error => 2,
        })
    }
}

/// Does what `arguments` say, the first of which is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let invocation = match args::read(arguments.iter().cloned()) {
        Ok(invocation) => invocation,
        Err(error) => return show_usage(&error, console),
    };
    let mut session = Session::new(console, &invocation, &arguments);
    let done = commands::perform(&invocation.task, &mut session).and_then(|exit| {
        session.out().flush()?;
        Ok(exit)
    });
    match done {
        Ok(exit) => exit,
        Err(trouble) if trouble.is_broken_pipe() => Exit::Done,
        Err(trouble) => {
            let is_no = matches!(trouble, Trouble::Missing(_));
            let message = if session.style.json {
                let (kind, message) = (trouble.token(), trouble.to_string());
                serde_json::json!({ "error": { "kind": kind, "message": message } }).to_string()
            } else if is_no {
                trouble.to_string()
            } else {
                format!("error: {trouble}")
            };
            session.say(&message);
            if is_no { Exit::Negative } else { Exit::Error }
        }
    }
}

/// Help and version are data; mistakes are talk.
fn show_usage(error: &clap::Error, console: &mut Console<'_>) -> Exit {
    let text = error.render();
    let end = if text.to_string().ends_with('\n') { "" } else { "\n" };
    let (stream, is_terminal, exit): (&mut dyn Write, _, _) = if error.use_stderr() {
        (console.err, console.err_is_terminal, Exit::Error)
    } else {
        (console.out, console.out_is_terminal, Exit::Done)
    };
    let coloured = is_terminal && console.colour;
    let written = if coloured { write!(stream, "{}{end}", text.ansi()) } else { write!(stream, "{text}{end}") };
    match written.and_then(|()| stream.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Error,
        _ => exit,
    }
}
