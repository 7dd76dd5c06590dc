//! The arguments, and what they ask for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgGroup, CommandFactory, FromArgMatches, Parser, Subcommand};
use shared::control::{DEFAULT_SOCKET, SOCKET_VARIABLE};
use shared::rule::SignatureLayer;
use shared::{Chain, Predicate, Selector, Verdict};

use crate::negation;

const AFTER_HELP: &str = "\
Negation:
  ! or -! before a match option turns it round: ! --dport 443, -! -d 192.0.2.0/24.
  ! --sng-hash HEX means: the process has no such object, i.e. no file with this digest is
  mapped executable in it.

Code without a file:
  Programs that compile at run time (browsers, Java, .NET, node, LuaJIT, PCRE's JIT) have anonymous
  executable memory by design: --anon-exec matches them too. So do programs with text relocations, and
  those that a debugger or a uprobe has set a breakpoint in.

Several owners: a DROP rule fires if one process that holds the socket matches, an ACCEPT rule only
if all of them do. Negation does not change that.

Exit codes:
  0  done
  1  the answer is no: there is no such rule or position
  2  error: wrong arguments, app-fw not running, not allowed, unreadable file...

Examples:
  Block curl in the network namespace of this shell:
    ctl-fw -A -c OUTPUT -v DROP -n /proc/$$/ns/net \\
      --sng-hash $(sha256sum /usr/bin/curl | awk '{print $1}')
  Before all other rules, let everybody ask one name server:
    ctl-fw -I 0 -c OUTPUT -v ACCEPT -p udp -d 192.0.2.53 --dport 53
  See what is there:
    ctl-fw -L";

/// Options that do not go with a rule's matches.
const OTHER_TASKS: [&str; 5] = ["list", "delete", "hash", "flush", "policy"];

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
                      ctl-fw -L|-F [-c CHAIN] [-n NAMESPACE]\n       \
                      ctl-fw -P CHAIN VERDICT [-n NAMESPACE]\n       \
                      ctl-fw -H FILE...\n       \
                      ctl-fw status",
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

    /// Delete the rule at a position of its chain, 0 first.
    #[arg(short = 'D', long, value_name = "N", group = "task", help_heading = "Actions", requires = "chain")]
    delete: Option<usize>,

    /// Delete all rules of a namespace.
    #[arg(short = 'F', long, group = "task", help_heading = "Actions")]
    flush: bool,

    /// Set what happens in a chain where no rule fires.
    #[arg(short = 'P', long, value_names = ["CHAIN", "VERDICT"], num_args = 2, action = ArgAction::Set,
        group = "task", help_heading = "Actions", conflicts_with_all = ["chain", "verdict"])]
    policy: Option<Vec<String>>,

    /// Print each file's SHA-256 and their aggregate; app-fw need not run.
    ///
    /// The aggregate is the SHA-256 over the binary digests in the byte order of the files' real paths. A file named twice
    /// counts once.
    #[arg(short = 'H', long, value_name = "FILE", num_args = 1.., action = ArgAction::Append,
        group = "task", help_heading = "Actions", conflicts_with_all = ["chain", "namespace"])]
    hash: Option<Vec<PathBuf>>,

    /// The chain: OUTPUT, INPUT or FORWARD [default for -L and -F: all].
    #[arg(short, long, help_heading = "Rule")]
    chain: Option<Chain>,

    /// What happens to a packet that matches: ACCEPT or DROP.
    #[arg(short, long, help_heading = "Rule", conflicts_with_all = OTHER_TASKS)]
    verdict: Option<Verdict>,

    /// The network namespace [default: the one ctl-fw runs in; for -L: all].
    ///
    /// A namespace file such as /proc/1234/ns/net, a name under /run/netns (NAME or netns:NAME), host for that of process
    /// 1, any for every one, or lifetime:... as -L shows it. A file is resolved when the rule is added: to a name or host if
    /// it is one, else to that one namespace for as long as it lives.
    #[arg(short, long, value_parser = read_namespace, help_heading = "Rule")]
    namespace: Option<Selector>,

    /// Where the signature of an accepted packet goes: l3 or l4.
    #[arg(short = 'l', long = "sig-layer", value_name = "l3|l4", help_heading = "Rule",
        conflicts_with_all = OTHER_TASKS)]
    signature_layer: Option<SignatureLayer>,

    /// Source address or prefix.
    #[arg(short, long, value_name = "ADDR[/LEN]", value_parser = |text: &str| read_match("-s", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    source: Option<Predicate>,

    /// Destination address or prefix.
    #[arg(short, long, value_name = "ADDR[/LEN]", value_parser = |text: &str| read_match("-d", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    destination: Option<Predicate>,

    /// Layer-4 protocol: a number, or icmp, tcp, udp, dccp, gre, icmpv6, sctp, udplite.
    #[arg(short, long, value_parser = |text: &str| read_match("-p", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    protocol: Option<Predicate>,

    /// Source port.
    #[arg(long, value_name = "PORT", value_parser = |text: &str| read_match("--sport", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    sport: Option<Predicate>,

    /// Destination port.
    #[arg(long, value_name = "PORT", value_parser = |text: &str| read_match("--dport", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    dport: Option<Predicate>,

    /// A file mapped executable in the process has this SHA-256.
    #[arg(long, value_name = "HEX", value_parser = |text: &str| read_match("--sng-hash", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    sng_hash: Option<Predicate>,

    /// The aggregate over all files mapped executable in the process is this (see -H).
    #[arg(long, value_name = "HEX", value_parser = |text: &str| read_match("--agg-hash", text),
        help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    agg_hash: Option<Predicate>,

    /// The process has executable memory whose content no file holds: code made at run time or injected. True of JIT
    /// compilers (browsers, Java, node).
    #[arg(long, help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    anon_exec: bool,

    /// Another process traces it (ptrace: debuggers, strace).
    #[arg(long, help_heading = "Matches", conflicts_with_all = OTHER_TASKS)]
    traced: bool,

    /// `! --anon-exec`, see [`negation`].
    #[arg(long, hide = true, conflicts_with = "anon_exec", conflicts_with_all = OTHER_TASKS)]
    not_anon_exec: bool,

    /// `! --traced`.
    #[arg(long, hide = true, conflicts_with = "traced", conflicts_with_all = OTHER_TASKS)]
    not_traced: bool,

    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,

    /// The control socket of app-fw.
    #[arg(long, value_name = "PATH", global = true, env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show how app-fw is: probe, queues, counters.
    Status,
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

/// What is asked for.
#[derive(Debug, PartialEq)]
pub enum Task {
    /// `-H`: hash these files.
    Hash(Vec<PathBuf>),
    /// Something for the daemon.
    Ask(Question),
}

/// What the daemon is asked; namespaces are as they were typed, `None` where none was.
#[derive(Debug, PartialEq)]
pub enum Question {
    /// `-A`, `-I`: add a rule.
    Add {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Option<Selector>,
        /// What happens to a packet that matches.
        verdict: Verdict,
        /// What is asked of it, in the order of the help.
        predicates: Vec<Predicate>,
        /// Where its signature goes.
        signature_layer: Option<SignatureLayer>,
        /// `None` for the end.
        position: Option<usize>,
    },
    /// `-D`: delete a rule.
    Delete {
        /// The chain.
        chain: Chain,
        /// The namespace.
        namespace: Option<Selector>,
        /// 0 first.
        position: usize,
    },
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
    /// `status`.
    Status,
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
    if let Some((name, _)) = matches.subcommand() {
        let stray = command.get_arguments().find(|argument| {
            !argument.is_global_set()
                && matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
        });
        if let Some(stray) = stray {
            let message = format!("the argument '{stray}' cannot be used with '{name}'");
            return Err(command.error(ErrorKind::ArgumentConflict, message));
        }
    }
    args.invocation().map_err(|message| command.error(ErrorKind::ValueValidation, message))
}

impl Args {
    fn invocation(self) -> Result<Invocation, String> {
        let (json, socket) = (self.json, self.socket.clone());
        Ok(Invocation { task: self.task()?, json, socket })
    }

    fn task(self) -> Result<Task, String> {
        let (chain, namespace) = (self.chain, self.namespace.clone());
        Ok(Task::Ask(match (self.command, self.hash) {
            (Some(Command::Status), _) => Question::Status,
            (None, Some(paths)) => return Ok(Task::Hash(paths)),
            (None, None) if self.list => Question::List { chain, namespace },
            (None, None) if self.flush => Question::Flush { chain, namespace },
            (None, None) => match (self.policy, self.delete) {
                (Some(words), _) => {
                    let (chain, verdict) = read_policy(&words)?;
                    Question::Policy { chain, namespace, verdict }
                }
                (None, Some(position)) => Question::Delete { chain: needed(chain, "-c")?, namespace, position },
                (None, None) => Question::Add {
                    chain: needed(chain, "-c")?,
                    namespace,
                    verdict: needed(self.verdict, "-v")?,
                    predicates: [
                        self.source,
                        self.destination,
                        self.protocol,
                        self.sport,
                        self.dport,
                        self.sng_hash,
                        self.agg_hash,
                        read_flag("--anon-exec", self.anon_exec, self.not_anon_exec),
                        read_flag("--traced", self.traced, self.not_traced),
                    ]
                    .into_iter()
                    .flatten()
                    .collect(),
                    signature_layer: self.signature_layer,
                    position: self.insert,
                },
            },
        }))
    }
}

fn needed<T>(value: Option<T>, option: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("{option} is missing"))
}

fn read_policy(words: &[String]) -> Result<(Chain, Verdict), String> {
    let [chain, verdict] = words else { return Err("-P wants a chain and a verdict".into()) };
    let chain = chain.parse().map_err(|error| format!("invalid chain for -P: {error}"))?;
    let verdict = verdict.parse().map_err(|error| format!("invalid verdict for -P: {error}"))?;
    Ok((chain, verdict))
}

/// Reads the value of a match option, which starts with `!` if it is negated (see [`negation`]).
fn read_match(option: &str, text: &str) -> Result<Predicate, String> {
    let (negated, value) = match text.strip_prefix('!') {
        Some(value) => (true, value),
        None => (false, text),
    };
    Predicate::parse(negated, option, value).unwrap_or_else(|| Err(format!("{option} is no match option")))
}

/// A match option that takes no value, given as it is or negated.
fn read_flag(option: &str, given: bool, negated: bool) -> Option<Predicate> {
    if given || negated { Predicate::flag(negated, option) } else { None }
}

/// Whatever has a slash is a file; relative ones are as good as others here.
fn read_namespace(text: &str) -> Result<Selector, String> {
    if text.contains('/') {
        return Ok(Selector::File(text.into()));
    }
    text.parse().map_err(|error: shared::namespace::SelectorError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn parse(line: &str) -> Result<Invocation, clap::Error> {
        read(std::iter::once("ctl-fw").chain(line.split_whitespace()).map(OsString::from))
    }

    fn question(line: &str) -> Question {
        match parse(line) {
            Ok(Invocation { task: Task::Ask(question), .. }) => question,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// The predicates of a rule, as text.
    fn predicates(line: &str) -> Vec<String> {
        match question(&format!("-A -c OUTPUT -v DROP {line}")) {
            Question::Add { predicates, .. } => predicates.iter().map(Predicate::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn error(line: &str) -> String {
        let error = parse(line).expect_err(line);
        assert!(error.use_stderr(), "{line}");
        error.render().to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn what_can_be_negated_is_what_is_a_match() {
        let command = command();
        let matches: Vec<_> =
            command.get_arguments().filter(|argument| argument.get_help_heading() == Some("Matches")).collect();
        let long: Vec<_> = matches.iter().filter_map(|argument| argument.get_long()).collect();
        let short: Vec<_> = matches.iter().filter_map(|argument| argument.get_short()).collect();
        assert_eq!(long, [negation::LONG, negation::FLAGS].concat());
        for flag in negation::FLAGS {
            let opposite = format!("not-{flag}");
            assert!(command.get_arguments().any(|argument| argument.get_long() == Some(&opposite)), "{opposite}");
        }
        assert_eq!(short, negation::SHORT.iter().map(|&letter| char::from(letter)).collect::<Vec<_>>());
    }

    #[test]
    fn the_known_command_line_works_in_any_order() {
        let expected = Question::Add {
            chain: Chain::Output,
            namespace: Some(Selector::File("/proc/12/ns/net".into())),
            verdict: Verdict::Drop,
            predicates: vec![read_match("--sng-hash", HEX).unwrap()],
            signature_layer: None,
            position: None,
        };
        for line in [
            format!("-A -c OUTPUT -v DROP -n /proc/12/ns/net --sng-hash {HEX}"),
            format!("--sng-hash {HEX} -n /proc/12/ns/net -v DROP -c OUTPUT -A"),
            format!("-v DROP -Ac OUTPUT --sng-hash={HEX} -n/proc/12/ns/net"),
            format!("--append --chain output --verdict drop --namespace /proc/12/ns/net --sng-hash {HEX}"),
        ] {
            assert_eq!(question(&line), expected, "{line}");
        }
    }

    #[test]
    fn every_match_option_is_read_and_negated() {
        let all = format!(
            "-s 10.1.2.3/8 -d 2001:db8::1 -p tcp --sport 1 --dport 65535 --traced --sng-hash {HEX} --anon-exec \
             --agg-hash {}",
            HEX.to_uppercase()
        );
        let expected = [
            "-s 10.0.0.0/8",
            "-d 2001:db8::1/128",
            "-p tcp",
            "--sport 1",
            "--dport 65535",
            &format!("--sng-hash {HEX}"),
            &format!("--agg-hash {HEX}"),
            "--anon-exec",
            "--traced",
        ];
        assert_eq!(predicates(&all), expected);
        let negated = format!(
            "! -s10.1.2.3/8 -! -d 2001:db8::1 -!p tcp ! --sport=1 -! --dport 65535 ! --sng-hash {HEX} -! --agg-hash={HEX} \
             ! --anon-exec -! --traced"
        );
        assert_eq!(predicates(&negated), expected.map(|predicate| format!("! {predicate}")));
        // One negation, one option.
        assert_eq!(predicates("-! --sport 1 --dport 2"), ["! --sport 1", "--dport 2"]);
        assert_eq!(predicates("-p 47"), ["-p gre"]);
        assert!(predicates("").is_empty());
    }

    #[test]
    fn every_command_is_read() {
        let host = Some(Selector::Host);
        let add = |position, signature_layer| Question::Add {
            chain: Chain::Forward,
            namespace: None,
            verdict: Verdict::Accept,
            predicates: vec![],
            signature_layer,
            position,
        };
        assert_eq!(question("-I 0 -c FORWARD -v ACCEPT"), add(Some(0), None));
        assert_eq!(question("-I7 -c FORWARD -v ACCEPT -l l4"), add(Some(7), Some(SignatureLayer::L4)));
        assert_eq!(question("-L"), Question::List { chain: None, namespace: None });
        let listed = Question::List { chain: Some(Chain::Input), namespace: host.clone() };
        assert_eq!(question("-L -c INPUT -n host"), listed);
        let deleted = Question::Delete { chain: Chain::Input, namespace: None, position: 3 };
        assert_eq!(question("-D 3 -c INPUT"), deleted);
        assert_eq!(question("-F"), Question::Flush { chain: None, namespace: None });
        let flushed = Question::Flush { chain: Some(Chain::Output), namespace: Some(Selector::Any) };
        assert_eq!(question("-c OUTPUT -F -n any"), flushed);
        let policy = Question::Policy { chain: Chain::Output, namespace: host, verdict: Verdict::Drop };
        assert_eq!(question("-n host -P output drop"), policy);
        assert_eq!(question("status"), Question::Status);
        let Task::Hash(paths) = parse("-H a b -H status --json").unwrap().task else { panic!() };
        assert_eq!(paths, ["a", "b", "status"].map(PathBuf::from));
    }

    #[test]
    fn namespaces_are_files_names_or_words() {
        let of = |text: &str| match question(&format!("-L -n {text}")) {
            Question::List { namespace, .. } => namespace.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(of("blue"), Selector::Named("blue".into()));
        assert_eq!(of("netns:blue"), Selector::Named("blue".into()));
        assert_eq!(of("./blue"), Selector::File("./blue".into()));
        assert_eq!(of("any"), Selector::Any);
        let lifetime = "lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11";
        assert_eq!(of(lifetime).to_string(), lifetime);
    }

    #[test]
    fn general_options_stand_anywhere() {
        for line in ["--json --socket /x status", "status --json --socket=/x", "--json status --socket /x"] {
            let Invocation { json, socket, task } = parse(line).unwrap();
            assert_eq!((json, socket, task), (true, "/x".into(), Task::Ask(Question::Status)), "{line}");
        }
        assert!(parse("-L --json --socket x").unwrap().json);
        assert!(!parse("-L --socket x").unwrap().json);
    }

    #[test]
    fn bad_values_say_what_is_wanted() {
        let add = |rest: &str| error(&format!("-A -c OUTPUT -v DROP {rest}"));
        for (found, wanted) in [
            (add("--sng-hash abc"), "64 hex digits"),
            (add("! --agg-hash abc"), "64 hex digits"),
            (add(&format!("--sng-hash {}", HEX.replace('b', "g"))), "64 hex digits"),
            (add("--sng-hash"), "a value is required for '--sng-hash <HEX>'"),
            (add("-s 10.0.0.0/33"), "192.0.2.0/24"),
            (add("! -d example.org"), "address or prefix"),
            (add("--dport 65536"), "0 to 65535"),
            (add("--sport http"), "0 to 65535"),
            (add("-p quic"), "0 to 255"),
            (add("-n a\\b"), "/run/netns"),
            (add("-l l5"), "l3 or l4"),
            (add("--dport 1 --dport 2"), "multiple times"),
            (add("--traced ! --traced"), "cannot be used with"),
            (add("--anon-exec=yes"), "unexpected value"),
            (error("-A -c SIDEWAYS -v DROP"), "OUTPUT, INPUT, FORWARD"),
            (error("-A -c OUTPUT -v MAYBE"), "ACCEPT, DROP"),
            (error("-I x -c OUTPUT -v DROP"), "'--insert <N>'"),
            (error("-D -1 -c OUTPUT"), "-1"),
            (error("-P SIDEWAYS DROP"), "OUTPUT, INPUT, FORWARD"),
            (error("-P OUTPUT MAYBE"), "ACCEPT, DROP"),
            (error("-P OUTPUT"), "2 values"),
            (error("--sng-hsh x"), "--sng-hash"),
        ] {
            assert!(found.contains(wanted), "{found} should say {wanted}");
        }
    }

    #[test]
    fn wrong_combinations_are_told() {
        for (line, wanted) in [
            ("", "required"),
            ("-c OUTPUT", "required"),
            ("-A -c OUTPUT", "--verdict"),
            ("-A -v DROP", "--chain"),
            ("-I 1 -v DROP", "--chain"),
            ("-D 1", "--chain"),
            ("-L -F", "cannot be used with"),
            ("-A -I 0 -c OUTPUT -v DROP", "cannot be used with"),
            ("-L -v DROP", "cannot be used with"),
            ("-D 0 -c OUTPUT --dport 1", "cannot be used with"),
            ("-D 0 -c OUTPUT ! --traced", "cannot be used with"),
            ("-P OUTPUT DROP -c OUTPUT", "cannot be used with"),
            ("-H x -n host", "cannot be used with"),
            ("-A -c OUTPUT -v DROP status", "cannot be used with 'status'"),
            ("-L extra", "extra"),
            ("-A -c OUTPUT ! -v DROP", "cannot be negated"),
            ("-A -c OUTPUT -v DROP !", "nothing follows"),
            ("stauts", "status"),
        ] {
            let found = error(line);
            assert!(found.contains(wanted), "{line}: {found} should say {wanted}");
        }
    }

    #[test]
    fn the_examples_of_the_help_work() {
        let help = parse("--help").unwrap_err();
        assert!(!help.use_stderr());
        let text = help.render().to_string().replace("\\\n", "");
        let examples: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("    ctl-fw "))
            .filter(|line| line.starts_with('-'))
            .collect();
        assert_eq!(examples.len(), 3, "{text}");
        for example in examples {
            // What the shell does.
            let line = match example.split_once("$(") {
                Some((before, _)) => format!("{before}{HEX}"),
                None => example.into(),
            };
            question(&line.replace("$$", "12"));
        }
        assert!(text.contains("has no such object") && text.contains("Exit codes"));
    }
}
