//! The arguments, and what they ask for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgGroup, CommandFactory, FromArgMatches, Parser};
use shared::control::{DEFAULT_SOCKET, SOCKET_VARIABLE};
use shared::rule::{Comment, Log, SignatureLayer};
use shared::{Chain, Selector, Verdict};

use crate::commands::Command;
use crate::moment::Moment;
use crate::negation;
use crate::rule_options::{Parts, read_namespace};
use crate::suggest;

const AFTER_HELP: &str = "\
Lists: a match option takes several values, with commas between where it says so or by being given again;
  one of them is enough. @NAME stands for a set (ctl-fw set).

Negation:
  ! or -! before a match option turns it round: ! --dport 443, -! -d 192.0.2.0/24.
  ! --sng-hash HEX means: the process has no such object, i.e. no file with this digest is
  mapped executable in it.

Code without a file:
  Programs that compile at run time (browsers, Java, .NET, node, LuaJIT, PCRE's JIT) have anonymous
  executable memory by design: --anon-exec matches them too. So do programs with text relocations, and
  those that a debugger or a uprobe has set a breakpoint in.

Several owners: a DROP or REJECT rule fires if one process that holds the socket matches, an ACCEPT
rule only if all of them do. Negation does not change that.

Exit codes:
  0  done
  1  the answer is no: there is no such rule or position, a checked file has errors
  2  error: wrong arguments, app-fw not running, not allowed, unreadable file...

Examples:
  Block curl in the network namespace of this shell:
    ctl-fw -A -c OUTPUT -v DROP -n /proc/$$/ns/net \\
      --sng-hash $(sha256sum /usr/bin/curl | awk '{print $1}')
  Before all other rules, for ten minutes, let everybody ask one name server:
    ctl-fw -I 0 -c OUTPUT -v ACCEPT -p udp -d 192.0.2.53 --dport 53 --for 10m
  See what is there:
    ctl-fw -L";

/// Manage the rules of app-fw, the application firewall.
///
/// Rules belong to a chain and a network namespace, are tried in order, and take effect with the next packet. The first
/// one that fires decides; where none does, the chain's policy decides.
#[derive(Parser, Debug)]
#[command(
    name = "ctl-fw",
    version,
    after_help = AFTER_HELP,
    max_term_width = 110,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    override_usage = "ctl-fw -A|-I N -c CHAIN -v VERDICT [-n NAMESPACE] [[!] MATCH]... [-l l3|l4]\n       \
                      ctl-fw -D N -c CHAIN [-n NAMESPACE]\n       \
                      ctl-fw -D --id ID\n       \
                      ctl-fw -L|-F [-c CHAIN] [-n NAMESPACE]\n       \
                      ctl-fw -P CHAIN VERDICT [-n NAMESPACE]\n       \
                      ctl-fw -H FILE...\n       \
                      ctl-fw COMMAND ...",
)]
#[command(group = ArgGroup::new("task").required(true))]
struct Args {
    /// List rules and policies.
    #[arg(short = 'L', long, group = "task", help_heading = "Actions")]
    list: bool,

    /// Append a rule to its chain.
    #[arg(short = 'A', long, group = "task", help_heading = "Actions", requires_all = ["chain", "verdict"])]
    append: bool,

    /// Insert a rule at a position of its chain, 0 first.
    #[arg(short = 'I', long, value_name = "N", group = "task", help_heading = "Actions",
        requires_all = ["chain", "verdict"])]
    insert: Option<usize>,

    /// Delete the rule at a position of its chain, 0 first, or with --id any rule.
    #[arg(short = 'D', long, value_name = "N", num_args = 0..=1, group = "task", help_heading = "Actions")]
    delete: Option<Option<usize>>,

    /// Delete all rules of a namespace.
    #[arg(short = 'F', long, group = "task", help_heading = "Actions")]
    flush: bool,

    /// Set what happens in a chain where no rule fires: ACCEPT or DROP.
    #[arg(short = 'P', long, value_names = ["CHAIN", "VERDICT"], num_args = 2, action = ArgAction::Set,
        group = "task", help_heading = "Actions")]
    policy: Option<Vec<String>>,

    /// Print each file's SHA-256 and their aggregate; app-fw need not run.
    ///
    /// The aggregate is the SHA-256 over the binary digests in the byte order of the files' real paths. A file named twice
    /// counts once.
    #[arg(short = 'H', long, value_name = "FILE", num_args = 1.., action = ArgAction::Append,
        group = "task", help_heading = "Actions")]
    hash: Option<Vec<PathBuf>>,

    /// For -D: the rule of this id, as -L shows it (repeatable).
    #[arg(long, value_name = "ID", help_heading = "Actions")]
    id: Vec<u64>,

    #[command(flatten)]
    rule: RuleArgs,

    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,

    /// The control socket of app-fw.
    #[arg(long, value_name = "PATH", global = true, env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

/// What makes a rule, as it was typed: nothing is looked up yet.
#[derive(clap::Args, Clone, PartialEq, Debug, Default)]
pub struct RuleArgs {
    /// The chain: OUTPUT, INPUT or FORWARD [default for -L and -F: all].
    #[arg(short, long, value_parser = suggest::chain, help_heading = "Rule")]
    pub chain: Option<Chain>,

    /// What happens to a packet that matches: ACCEPT, DROP, or REJECT (the program that sent it is told).
    #[arg(short, long, value_parser = suggest::verdict, help_heading = "Rule")]
    pub verdict: Option<Verdict>,

    /// The network namespace [default: the one ctl-fw runs in; for -L: all].
    ///
    /// A namespace file such as /proc/1234/ns/net, a name under /run/netns (NAME or netns:NAME), host for that of process
    /// 1, any for every one, or lifetime:... as -L shows it. A file is resolved when the rule is added: to a name or host if
    /// it is one, else to that one namespace for as long as it lives. With ! the rule is for any other namespace.
    #[arg(short, long, value_parser = Place::read, help_heading = "Rule")]
    pub namespace: Option<Place>,

    /// Where the signature of an accepted packet goes: l3 or l4.
    #[arg(short = 'l', long = "sig-layer", value_name = "l3|l4", help_heading = "Rule")]
    pub signature_layer: Option<SignatureLayer>,

    /// When the rule is gone by itself: 18:30, 2026-12-31T18:30 (local time), or 2026-12-31T18:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = Moment::until, help_heading = "Rule")]
    pub until: Option<Moment>,

    /// The same from now on: 10m, 2h30m, 1d.
    #[arg(long = "for", value_name = "DURATION", value_parser = Moment::after, conflicts_with = "until",
        help_heading = "Rule")]
    pub lasting: Option<Moment>,

    /// Tell of every packet for which the rule fires.
    #[arg(long, help_heading = "Rule")]
    pub log: bool,

    /// Tell of none of them.
    #[arg(long, conflicts_with = "log", help_heading = "Rule")]
    pub no_log: bool,

    /// A remark, at most 256 bytes.
    #[arg(allow_hyphen_values = true, long, value_name = "TEXT", help_heading = "Rule")]
    pub comment: Option<Comment>,

    /// What is asked of a packet.
    #[command(flatten)]
    pub parts: Parts,
}

impl RuleArgs {
    /// How long it holds.
    pub fn end(&self) -> Option<Moment> {
        self.until.or(self.lasting)
    }

    /// Which of its packets are told of.
    pub fn log(&self) -> Log {
        match (self.log, self.no_log) {
            (true, _) => Log::Always,
            (_, true) => Log::Never,
            _ => Log::Default,
        }
    }
}

/// A namespace, or any but that.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// With `!`.
    pub negated: bool,
    /// As it was typed.
    pub selector: Selector,
}

impl Place {
    fn read(text: &str) -> Result<Place, String> {
        let (negated, name) = text.strip_prefix('!').map_or((false, text), |name| (true, name));
        Ok(Place { negated, selector: read_namespace(name)? })
    }
}

/// What is asked for, and how.
#[derive(Debug, PartialEq)]
pub struct Invocation {
    /// What is asked for.
    pub task: Task,
    /// The answer is wanted as JSON.
    pub json: bool,
    /// The daemon's socket.
    pub socket: PathBuf,
}

/// What is asked for; namespaces are as they were typed, `None` where none was.
#[derive(Debug, PartialEq)]
pub enum Task {
    /// `-H`: hash these files.
    Hash(Vec<PathBuf>),
    /// `-A`, `-I`: add a rule.
    Add {
        /// The rule.
        rule: Box<RuleArgs>,
        /// `None` for the end.
        position: Option<usize>,
    },
    /// `-D N`: delete a rule by its position.
    DeleteAt {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Option<Selector>,
        /// 0 first.
        position: usize,
    },
    /// `-D --id N`: delete rules by their ids.
    Delete(Vec<u64>),
    /// `-L`: list rules.
    List {
        /// The chain; `None` for all.
        chain: Option<Chain>,
        /// The namespace; `None` for all.
        namespace: Option<Selector>,
    },
    /// `-F`: delete all rules.
    Flush {
        /// The chain; `None` for all.
        chain: Option<Chain>,
        /// The namespace.
        namespace: Option<Selector>,
    },
    /// `-P`: set a policy.
    Policy {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Option<Selector>,
        /// What happens where no rule fires.
        verdict: Verdict,
    },
    /// A subcommand.
    Command(Box<Command>),
}

/// The definition of the command line, for manuals and completions.
pub fn command() -> clap::Command {
    Args::command()
}

/// Reads the arguments, the first of which is the program's name.
///
/// # Errors
/// They make no sense, or help was asked for: the error knows what to print, and where.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let mut command = Args::command();
    let words = negation::into_values(arguments).map_err(|error| command.error(ErrorKind::ValueValidation, error))?;
    let matches = command.try_get_matches_from_mut(words)?;
    let args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    if let Some(message) = stray(&command, &matches, &args) {
        return Err(command.error(ErrorKind::ArgumentConflict, message));
    }
    let (json, socket) = (args.json, args.socket.clone());
    match args.task() {
        Ok(task) => Ok(Invocation { task, json, socket }),
        Err(message) => Err(command.error(ErrorKind::ValueValidation, message)),
    }
}

/// An argument that does not go with the action or the subcommand.
fn stray(command: &clap::Command, matches: &clap::ArgMatches, args: &Args) -> Option<String> {
    const ACTIONS: [&str; 7] = ["list", "append", "insert", "delete", "flush", "policy", "hash"];
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (task, allowed): (&str, &[&str]) = match (matches.subcommand_name(), ACTIONS.iter().find(|id| given(id))) {
        (Some(name), _) => (name, &[]),
        (None, Some(&action @ ("list" | "flush"))) => (action, &["chain", "namespace"]),
        (None, Some(&action @ "delete")) if args.id.is_empty() => (action, &["chain", "namespace"]),
        (None, Some(&action @ "delete")) => (action, &["id"]),
        (None, Some(&action @ "policy")) => (action, &["namespace"]),
        (None, Some(&action @ "hash")) => (action, &[]),
        (None, _) => return given("id").then(|| "--id goes with --delete: app-fw gives ids itself".into()),
    };
    let is_allowed = |id: &str| allowed.contains(&id) || matches.subcommand_name().is_none() && ACTIONS.contains(&id);
    let stray = command.get_arguments().find(|argument| {
        let id = argument.get_id().as_str();
        !argument.is_global_set() && given(id) && !is_allowed(id)
    })?;
    let dashes = if matches.subcommand_name().is_some() { "" } else { "--" };
    let stray = stray.to_string().replace("--not-", "! --");
    Some(format!("the argument '{stray}' cannot be used with '{dashes}{task}'"))
}

impl Args {
    fn task(self) -> Result<Task, String> {
        if let Some(command) = self.command {
            return Ok(Task::Command(Box::new(command)));
        }
        if let Some(paths) = self.hash {
            return Ok(Task::Hash(paths));
        }
        if !self.list && !self.flush && self.policy.is_none() && self.delete.is_none() {
            return Ok(Task::Add { rule: Box::new(self.rule), position: self.insert });
        }
        let chain = self.rule.chain;
        let namespace = match self.rule.namespace {
            Some(Place { negated: true, .. }) => return Err("! -n goes with -A and -I only".into()),
            place => place.map(|place| place.selector),
        };
        if self.list {
            return Ok(Task::List { chain, namespace });
        }
        if self.flush {
            return Ok(Task::Flush { chain, namespace });
        }
        if let Some(words) = self.policy {
            let (chain, verdict) = read_policy(&words)?;
            return Ok(Task::Policy { chain, namespace, verdict });
        }
        match (self.delete.flatten(), self.id) {
            (Some(_), ids) if !ids.is_empty() => Err("--delete wants a position or --id, not both".into()),
            (None, ids) if !ids.is_empty() => Ok(Task::Delete(ids)),
            (None, _) => Err("--delete wants a position (-D N -c CHAIN) or an id (-D --id ID)".into()),
            (Some(position), _) => {
                let chain = chain.ok_or("--delete N wants a chain: --chain CHAIN")?;
                Ok(Task::DeleteAt { chain, namespace, position })
            }
        }
    }
}

fn read_policy(words: &[String]) -> Result<(Chain, Verdict), String> {
    let [chain, verdict] = words else { return Err("-P wants a chain and a verdict".into()) };
    let chain = suggest::chain(chain).map_err(|error| format!("invalid chain for -P: {error}"))?;
    let wrong = |error| format!("invalid verdict for -P, which is ACCEPT or DROP: {error}");
    match suggest::verdict(verdict).map_err(wrong)? {
        Verdict::Reject => Err("a policy is ACCEPT or DROP".into()),
        verdict => Ok((chain, verdict)),
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
