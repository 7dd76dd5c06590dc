//! What the program does: one module for each family of commands, with its arguments and what is shown.

pub mod explain;
mod files;
pub mod history;
pub mod import;
pub mod learn;
mod listing;
pub mod monitor;
pub mod refresh;
pub mod rules;
pub mod ruleset;
pub mod sets;
mod status;

use std::path::PathBuf;

use crate::Exit;
use crate::args::Task;
use crate::manual;
use crate::session::Session;
use crate::trouble::Trouble;

/// Subcommands.
#[derive(clap::Subcommand, Clone, PartialEq, Debug)]
pub enum Command {
    /// Show how app-fw is: probe, queues, counters.
    Status,
    /// Change, move or delete single rules by their ids.
    #[command(subcommand)]
    Rule(rules::RuleCommand),
    /// Make and change named sets, which rules name as @NAME.
    #[command(subcommand)]
    Set(sets::SetCommand),
    /// Write all rules, policies and sets to a file.
    Save(ruleset::SaveArgs),
    /// Replace all rules, policies and sets by those of a file, at once or not at all.
    Restore(ruleset::RestoreArgs),
    /// Look for errors in files that restore would read; app-fw need not run.
    Check(ruleset::CheckArgs),
    /// Show what was changed when and by whom.
    History(history::HistoryArgs),
    /// Take the newest change back, or all changes after a revision.
    Undo(history::UndoArgs),
    /// Tell of every change as it happens, a line for each.
    Monitor(monitor::MonitorArgs),
    /// Show what would happen to packets, and why.
    Explain(explain::ExplainArgs),
    /// Print each file's SHA-256 and their aggregate, as -H does.
    Hash {
        /// The files.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Make a ruleset of what app-fw --audit has recorded.
    Learn(learn::LearnArgs),
    /// Update digests in rules whose labelled files changed.
    Refresh(refresh::RefreshArgs),
    /// Make a ruleset of other firewalls' rules.
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages ctl-fw(8) and app-fw-rules(5), and the completions, into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
}

/// Does what is asked for.
pub(crate) fn perform(task: &Task, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    match task {
        Task::Hash(paths) => files::hash(paths, session),
        Task::Add { rule, position } => rules::add(rule, *position, session),
        Task::DeleteAt { chain, namespace, position } => {
            rules::delete_at(*chain, namespace.as_ref(), *position, session)
        }
        Task::Delete(ids) => rules::delete(ids, session),
        Task::List { chain, namespace } => rules::list(*chain, namespace.as_ref(), session),
        Task::Flush { chain, namespace } => rules::flush(*chain, namespace.as_ref(), session),
        Task::Policy { chain, namespace, verdict } => rules::policy(*chain, namespace.as_ref(), *verdict, session),
        Task::Command(command) => match command.as_ref() {
            Command::Status => status::show(session),
            Command::Rule(command) => command.run(session),
            Command::Set(command) => command.run(session),
            Command::Save(args) => args.run(session),
            Command::Restore(args) => args.run(session),
            Command::Check(args) => args.run(session),
            Command::History(args) => args.run(session),
            Command::Undo(args) => args.run(session),
            Command::Monitor(args) => args.run(session),
            Command::Explain(args) => args.run(session),
            Command::Hash { files } => files::hash(files, session),
            Command::Learn(args) => args.run(session),
            Command::Refresh(args) => args.run(session),
            Command::Import(command) => command.run(session),
            Command::Completions { shell } => {
                session.out().write_all(&manual::completions(&crate::args::command(), *shell))?;
                Ok(Exit::Done)
            }
            Command::Man { dir } => {
                manual::write(dir).map_err(|source| Trouble::Write { path: dir.clone(), source })?;
                Ok(Exit::Done)
            }
        },
    }
}
