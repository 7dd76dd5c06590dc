//! The options that say what a rule asks of a packet: one table, from which clap's definition, the reading of values, what
//! can be negated, and the manual are made. The values are those of the text form, which `shared` reads.

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, parser::ValueSource};
use shared::rule::{Label, LabelKind, List, OwnerClass};
use shared::{Match, Predicate, Selector};

use crate::suggest;

/// Heading of these options in the help.
pub const HEADING: &str = "Matches";
/// Heading of those among them that look something up.
pub const LOOKUP_HEADING: &str = "Matches that look something up when the rule is made";

/// An option of a rule that asks something.
#[derive(Debug)]
pub struct RuleOption {
    /// Without the dashes.
    pub long: &'static str,
    /// One letter, which is then its name in the text form.
    pub short: Option<char>,
    /// What its value is called; `None` if it takes none.
    pub value: Option<&'static str>,
    /// What is done with the value.
    pub kind: Kind,
    /// A sentence, and if there is more to say, a paragraph after an empty line.
    pub help: &'static str,
    /// As on a command line.
    pub example: &'static str,
}

/// What is done with an option's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is a match of the text form.
    Match,
    /// It is looked up when the rule is made: what was found is matched, and this is the label.
    Lookup(LabelKind),
    /// It is the label of the value before it.
    From,
}

macro_rules! options {
    ($($long:literal $short:expr, $value:expr, $kind:expr, $help:literal, $example:literal;)+) => {
        /// All of them, in the order of the help.
        pub const OPTIONS: &[RuleOption] = &[$(
            RuleOption { long: $long, short: $short, value: $value, kind: $kind, help: $help, example: $example },
        )+];
    };
}

options! {
    "source" Some('s'), Some("ADDR[/LEN],..."), Kind::Match,
        "Source address, prefix, or @SET of addresses.", "-s 192.0.2.0/24,2001:db8::/32";
    "destination" Some('d'), Some("ADDR[/LEN],..."), Kind::Match,
        "Destination address, prefix, or @SET of addresses.", "-d 198.51.100.7,@lan";
    "protocol" Some('p'), Some("PROTOCOL,..."), Kind::Match,
        "Layer-4 protocol: a number, or icmp, tcp, udp, dccp, gre, icmpv6, sctp, udplite.", "-p tcp,udp";
    "sport" None, Some("PORT[:PORT],..."), Kind::Match,
        "Source port, range of ports, or @SET of ports.", "--sport 1024:65535";
    "dport" None, Some("PORT[:PORT],..."), Kind::Match,
        "Destination port, range of ports, or @SET of ports.", "--dport 80,443,8000:8080";
    "in-interface" Some('i'), Some("NAME"), Kind::Match,
        "Interface the packet came in by; eth+ for all whose names begin with eth.", "-i eth+";
    "out-interface" Some('o'), Some("NAME"), Kind::Match,
        "Interface the packet leaves by; eth+ for all whose names begin with eth.", "-o wg0";
    "netns" None, Some("NAMESPACE"), Kind::Match,
        "Network namespace of the packet's socket: further narrows what -n says.",
        "--netns netns:blue";
    "sng-hash" None, Some("HEX,..."), Kind::Match,
        "A file mapped executable in the process has this SHA-256, or one of an @SET of digests.",
        "--sng-hash 27125f03b2a1c8d97f6a0be8c5a3e4d1f00b8a7c6d5e4f3a2b1c0d9e8f7a6b5c";
    "all-hash" None, Some("HEX,..."), Kind::Match,
        "For each of these SHA-256 digests, some file mapped executable in the process has it.",
        "--all-hash 27125f03b2a1c8d97f6a0be8c5a3e4d1f00b8a7c6d5e4f3a2b1c0d9e8f7a6b5c";
    "agg-hash" None, Some("HEX,..."), Kind::Match,
        "The aggregate over all files mapped executable in the process is this (see -H).",
        "--agg-hash d82042ae77f0c1b2a3948576e5d4c3b2a190817263544536271809fedcba0123";
    "object-path" None, Some("GLOB"), Kind::Match,
        "A file mapped executable in the process has such a path. WEAKER than a digest.\n\nPaths are what the process \
         sees: whoever can write there, or make a mount namespace, chooses them. * and ? do not match a slash, ** does.",
        "--object-path **/libssl.so*";
    "program-path" None, Some("GLOB"), Kind::Match,
        "The program the process runs has such a path. WEAKER than a digest (see --object-path).",
        "--program-path /opt/**";
    "uid" None, Some("USER[-USER],..."), Kind::Match,
        "Effective user of the process: a name, a number, or a range of numbers.\n\nNames are looked up when the rule is \
         made.", "--uid 1000-1999,33";
    "gid" None, Some("GROUP[-GROUP],..."), Kind::Match,
        "Effective group of the process: a name, a number, or a range of numbers.", "--gid 100";
    "cgroup" None, Some("PATH"), Kind::Match,
        "Control group the process is in, or one above it.", "--cgroup /user.slice";
    "unit" None, Some("UNIT,..."), Kind::Match,
        "Unit of systemd the process belongs to.", "--unit nginx.service";
    "container" None, Some("NAME|ID,..."), Kind::Match,
        "Container the process belongs to, by its id or its name.\n\nA name is looked up when the rule is made, by asking \
         dockerd (DOCKER_HOST=unix://PATH names another socket); a container that is made anew is another one.",
        "--container 4f66ad9a0b2e";
    "owner" None, Some("CLASS"), Kind::Match,
        "Whether anybody holds the packet's socket: owned, unowned, undetermined.", "--owner unowned";
    "anon-exec" None, None, Kind::Match,
        "The process has executable memory whose content no file holds: code made at run time or injected. True of JIT \
         compilers (browsers, Java, node).", "--anon-exec";
    "traced" None, None, Kind::Match,
        "Another process traces it (ptrace: debuggers, strace).", "--traced";
    "time" None, Some("[DAYS@]HH:MM-HH:MM[/utc]"), Kind::Match,
        "It is this time of the week, by the machine's local time.", "--time mon-fri@08:00-18:00";
    "limit" None, Some("N/UNIT[:BURST]"), Kind::Match,
        "Such packets have not been more frequent than this; asked last, when all else holds.", "--limit 10/s:20";
    "exe" None, Some("PATH"), Kind::Lookup(LabelKind::Exe),
        "The program's file: --sng-hash of what it is now; the path stays as a label.", "--exe /usr/bin/curl";
    "lib" None, Some("PATH"), Kind::Lookup(LabelKind::Lib),
        "A library's file: --sng-hash of what it is now.", "--lib /usr/lib/x86_64-linux-gnu/liblzma.so.5";
    "exec" None, Some("PATH"), Kind::Lookup(LabelKind::Exec),
        "A program and the libraries it is linked with: --agg-hash of what they are now.\n\nFound as the dynamic loader \
         does, without running it. A program that loads plugins, or for which the environment says LD_PRELOAD or \
         LD_LIBRARY_PATH, has another aggregate then.", "--exec /usr/bin/curl";
    "pid" None, Some("PID"), Kind::Lookup(LabelKind::Pid),
        "A running process: --agg-hash of what it is made of now.", "--pid 4711";
    "from" None, Some("LABEL"), Kind::From,
        "Where the digest or id before it was taken from: exe:PATH, lib:PATH, exec:PATH, pid:N, container:NAME. For \
         people and for refresh.", "--from exe:/usr/bin/curl";
}

impl RuleOption {
    /// Its name in the text form.
    pub fn name(&self) -> String {
        self.short.map_or_else(|| format!("--{}", self.long), |letter| format!("-{letter}"))
    }

    /// Whether `!` may stand before it.
    pub fn can_be_negated(&self) -> bool {
        self.kind != Kind::From
    }

    /// The hidden option that stands for the negation of one without a value, see [`crate::negation`].
    pub(crate) fn opposite(&self) -> &'static str {
        match self.long {
            "anon-exec" => "not-anon-exec",
            "traced" => "not-traced",
            _ => "",
        }
    }

    fn arg(&'static self) -> Arg {
        let (short_help, more) = self.help.split_once("\n\n").unwrap_or((self.help, ""));
        let heading = if matches!(self.kind, Kind::Lookup(_)) { LOOKUP_HEADING } else { HEADING };
        let mut arg = Arg::new(self.long).long(self.long).help(short_help.trim_end_matches('.')).help_heading(heading);
        if !more.is_empty() {
            arg = arg.long_help(format!("{short_help}\n\n{more}"));
        }
        if let Some(letter) = self.short {
            arg = arg.short(letter);
        }
        if self.kind == Kind::From {
            arg = arg.hide_short_help(true).long_help(short_help);
        }
        match self.value {
            Some(name) => {
                arg.value_name(name).action(ArgAction::Append).value_parser(move |text: &str| self.read(text))
            }
            None => arg.action(ArgAction::SetTrue),
        }
    }

    /// Reads a value, which starts with `!` if the option is negated (see [`crate::negation`]).
    fn read(&self, text: &str) -> Result<Part, String> {
        let (negated, value) = match text.strip_prefix('!') {
            Some(value) => (true, value),
            None => (false, text),
        };
        match self.kind {
            Kind::From => return value.parse().map(Part::From),
            Kind::Lookup(_) if value.is_empty() => return Err("a value is missing".into()),
            Kind::Lookup(kind) => return Ok(Part::Lookup { kind, negated, name: value.into() }),
            Kind::Match => {}
        }
        let name = self.name();
        if name == "--netns" {
            let on = Match::Netns(List::from(read_namespace(value)?));
            return Ok(Part::Match(Predicate { negated, on }));
        }
        match Predicate::parse(negated, &name, value).unwrap_or_else(|| Err(format!("{name} is no match option"))) {
            Ok(predicate) => Ok(Part::Match(predicate)),
            Err(_) if matches!(name.as_str(), "--uid" | "--gid") && is_list_of_names(value) => {
                Ok(Part::Ids { groups: name == "--gid", negated, names: value.into() })
            }
            Err(_) if name == "--container" && is_list_of_names(value) => {
                Ok(Part::Lookup { kind: LabelKind::Container, negated, name: value.into() })
            }
            Err(error) if name == "--owner" => {
                let classes = [OwnerClass::Owned, OwnerClass::Unowned, OwnerClass::Undetermined];
                Err(suggest::beside(error, value, classes))
            }
            Err(error) => Err(error),
        }
    }
}

/// Users, groups and containers have names of these characters.
fn is_list_of_names(text: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.@+$".contains(c);
    text.split(',').all(|name| !name.is_empty() && name.chars().all(is_name))
        && text.contains(|c: char| c.is_ascii_alphabetic())
}

/// One option of a rule as it was given.
#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    /// Ready.
    Match(Predicate),
    /// Users or groups, some by name.
    Ids {
        /// Groups, not users.
        groups: bool,
        /// With `!`.
        negated: bool,
        /// Names, numbers and ranges, with commas between.
        names: String,
    },
    /// To be looked up when the rule is made.
    Lookup {
        /// What it names.
        kind: LabelKind,
        /// With `!`.
        negated: bool,
        /// Path, process id, or names of containers with commas between.
        name: String,
    },
    /// The label of the part before it.
    From(Label),
}

/// The parts of a rule in the order they were given.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Parts(pub Vec<Part>);

impl clap::Args for Parts {
    fn augment_args(command: Command) -> Command {
        OPTIONS.iter().fold(command, |command, option| {
            let command = command.arg(option.arg());
            if option.value.is_some() {
                return command;
            }
            let opposite = Arg::new(option.opposite()).long(option.opposite()).hide(true);
            command.arg(opposite.action(ArgAction::SetTrue).conflicts_with(option.long))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Parts::augment_args(command)
    }
}

impl FromArgMatches for Parts {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Parts, clap::Error> {
        let mut found: Vec<(usize, Part)> = Vec::new();
        for option in OPTIONS {
            if option.value.is_some() {
                let values = matches.get_many::<Part>(option.long).into_iter().flatten().cloned();
                found.extend(matches.indices_of(option.long).into_iter().flatten().zip(values));
                continue;
            }
            for (id, negated) in [(option.long, false), (option.opposite(), true)] {
                if matches.value_source(id) == Some(ValueSource::CommandLine)
                    && let Some(predicate) = Predicate::flag(negated, &option.name())
                {
                    found.push((matches.index_of(id).unwrap_or_default(), Part::Match(predicate)));
                }
            }
        }
        found.sort_by_key(|(index, _)| *index);
        Ok(Parts(found.into_iter().map(|(_, part)| part).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Parts::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Whatever has a slash is a file; relative ones are as good as others here.
pub(crate) fn read_namespace(text: &str) -> Result<Selector, String> {
    if text.contains('/') {
        return Ok(Selector::File(text.into()));
    }
    text.parse().map_err(|error: shared::namespace::SelectorError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_match_of_the_text_form_has_its_option() {
        let named: Vec<_> = OPTIONS.iter().filter(|option| option.kind == Kind::Match).map(RuleOption::name).collect();
        assert_eq!(named, Match::OPTIONS);
        let looked_up: Vec<_> = OPTIONS
            .iter()
            .filter_map(|option| match option.kind {
                Kind::Lookup(kind) => Some(kind),
                _ => None,
            })
            .collect();
        let with_option = LabelKind::ALL.into_iter().filter(|kind| *kind != LabelKind::Container);
        assert_eq!(looked_up, with_option.collect::<Vec<_>>());
    }

    #[test]
    fn the_examples_are_true() {
        for option in OPTIONS {
            let (name, value) = option.example.split_once(' ').unwrap_or((option.example, ""));
            assert_eq!(name, option.name());
            assert_eq!(value.is_empty(), option.value.is_none(), "{name}");
            if !value.is_empty() {
                option.read(value).unwrap();
            }
            if option.kind == Kind::Match {
                // As documents have it.
                let rule = format!("-c OUTPUT -n any -v DROP ! {}", option.example);
                rule.parse::<shared::Rule>().unwrap();
            }
            assert!(option.help.ends_with('.') && option.help.is_ascii(), "{name}");
        }
    }

    #[test]
    fn names_are_told_from_nonsense() {
        let read = |long: &str, text: &str| OPTIONS.iter().find(|option| option.long == long).unwrap().read(text);
        let named = Part::Ids { groups: false, negated: true, names: "www-data,1000-1999".into() };
        assert_eq!(read("uid", "!www-data,1000-1999"), Ok(named));
        assert!(matches!(read("uid", "0"), Ok(Part::Match(_))));
        for bad in ["", "!", "1999-1000", "root,", "a b"] {
            assert!(read("uid", bad).is_err(), "{bad}");
        }
        assert!(matches!(read("container", "4f66ad9a0b2e"), Ok(Part::Match(_))));
        assert!(matches!(read("container", "web"), Ok(Part::Lookup { kind: LabelKind::Container, .. })));
        assert!(read("container", "a/b").is_err());
        assert!(read("owner", "onwed").unwrap_err().contains("did you mean owned?"));
        assert!(read("exe", "!").is_err() && read("from", "curl").is_err());
    }
}
