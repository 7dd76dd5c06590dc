//! The command line of app-fw, as a library: what it prints and how it ends, without a process around it.
//!
//! [`run`] reads arguments ([`args`]), asks the daemon ([`client`]) or hashes files ([`hash`]), and shows the answer
//! (`render`). Data goes to the standard output, everything said about it to the standard error.

pub mod args;
pub mod client;
pub mod hash;
pub mod namespace;
mod negation;
mod render;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use shared::Rule;
use shared::control::{Answer, FailureKind, Request};

use args::{Invocation, Question, Task};
use client::{Client, ClientError};
use namespace::NamespaceError;
use render::Style;

/// Where output goes.
pub struct Console<'a> {
    /// Standard output: data.
    pub out: &'a mut dyn Write,
    /// Standard error: talk.
    pub err: &'a mut dyn Write,
    /// A person looks at the data: digests are shortened, help is coloured.
    pub out_is_terminal: bool,
    /// A person looks at the talk: errors are coloured.
    pub err_is_terminal: bool,
}

impl<'a> Console<'a> {
    /// A console of files or pipes.
    pub fn plain(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Console<'a> {
        Console { out, err, out_is_terminal: false, err_is_terminal: false }
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

/// Why a task could not be done.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("app-fw refuses: {0}")]
    Refused(String),
    #[error("app-fw answered something that was not asked: do ctl-fw and app-fw have the same version?")]
    OtherAnswer,
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("cannot write the output: {0}")]
    Json(#[from] serde_json::Error),
}

impl Trouble {
    /// The reader has seen enough: `ctl-fw -L | head`.
    fn is_broken_pipe(&self) -> bool {
        match self {
            Trouble::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Trouble::Json(error) => error.io_error_kind() == Some(io::ErrorKind::BrokenPipe),
            _ => false,
        }
    }
}

/// Does what `arguments` say, the first of which is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> Exit {
    let invocation = match args::read(arguments) {
        Ok(invocation) => invocation,
        Err(error) => return show_usage(&error, console),
    };
    let done = perform(&invocation, console).and_then(|exit| {
        console.out.flush()?;
        Ok(exit)
    });
    match done {
        Ok(exit) => exit,
        Err(trouble) if trouble.is_broken_pipe() => Exit::Done,
        Err(trouble) => {
            say(console, &format!("error: {trouble}"));
            Exit::Error
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
    let written = if is_terminal { write!(stream, "{}{end}", text.ansi()) } else { write!(stream, "{text}{end}") };
    match written.and_then(|()| stream.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Error,
        _ => exit,
    }
}

/// There is nobody left to tell if the standard error cannot be written.
fn say(console: &mut Console<'_>, text: &str) {
    let _ = writeln!(console.err, "{text}");
}

fn perform(invocation: &Invocation, console: &mut Console<'_>) -> Result<Exit, Trouble> {
    let style = Style { json: invocation.json, for_people: console.out_is_terminal };
    match &invocation.task {
        Task::Hash(paths) => show_digests(paths, console, style),
        Task::Ask(question) => {
            let request = request(question)?;
            let answer = Client::connect(&invocation.socket)?.call(&request)?;
            show(&request, answer, console, style)
        }
    }
}

fn show_digests(paths: &[PathBuf], console: &mut Console<'_>, style: Style) -> Result<Exit, Trouble> {
    let (listing, failures) = hash::hash_files(paths);
    render::digests(console.out, &listing, style)?;
    for failure in &failures {
        say(console, &format!("error: {failure}"));
    }
    Ok(if failures.is_empty() { Exit::Done } else { Exit::Error })
}

fn show(request: &Request, answer: Answer, console: &mut Console<'_>, style: Style) -> Result<Exit, Trouble> {
    match (request, answer) {
        (_, Answer::Error(failure)) if failure.kind == FailureKind::NotFound => {
            say(console, &failure.message);
            return Ok(Exit::Negative);
        }
        (_, Answer::Error(failure)) => return Err(Trouble::Refused(failure.message)),
        (Request::Add { .. }, Answer::Added(added)) => {
            render::added(console.out, &added, style)?;
            if added.dormant {
                say(console, &format!("note: {} does not exist now; the rule is dormant", added.rule.namespace));
            }
        }
        (Request::Delete { .. } | Request::Flush { .. }, Answer::Deleted(count)) => {
            render::deleted(console.out, count, style)?;
        }
        (Request::Policy { chain, verdict, .. }, Answer::PolicySet) => {
            render::policy_set(console.out, *chain, *verdict, style)?;
        }
        (Request::List { .. }, Answer::Listing(listing)) => render::listing(console.out, &listing, style)?,
        (Request::Status, Answer::Status(status)) => render::status(console.out, &status, style)?,
        _ => return Err(Trouble::OtherAnswer),
    }
    Ok(Exit::Done)
}

/// What the daemon is asked. Namespaces are made absolute here, where relative names and `self` still mean something.
fn request(question: &Question) -> Result<Request, Trouble> {
    let or_own = |namespace: &Option<_>| match namespace {
        Some(selector) => namespace::absolute(selector),
        None => namespace::own(),
    };
    Ok(match question {
        Question::Add { chain, namespace, verdict, predicates, signature_layer, position } => {
            let rule = Rule {
                chain: *chain,
                namespace: or_own(namespace)?,
                verdict: *verdict,
                predicates: predicates.clone(),
                signature_layer: *signature_layer,
            };
            Request::Add { rule, position: *position }
        }
        Question::Delete { chain, namespace, position } => {
            Request::Delete { chain: *chain, namespace: or_own(namespace)?, position: *position }
        }
        Question::List { chain, namespace } => {
            let namespace = namespace.as_ref().map(namespace::absolute).transpose()?;
            Request::List { chain: *chain, namespace }
        }
        Question::Flush { chain, namespace } => Request::Flush { chain: *chain, namespace: or_own(namespace)? },
        Question::Policy { chain, namespace, verdict } => {
            Request::Policy { chain: *chain, namespace: or_own(namespace)?, verdict: *verdict }
        }
        Question::Status => Request::Status,
    })
}
