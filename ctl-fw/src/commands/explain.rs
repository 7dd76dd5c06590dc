//! `explain`: what would happen to packets, and why.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use shared::control::{Answer, ExplainedOwner, ExplainedRule, Explanation, Holds, NamedObject, Request, Subject};
use shared::{Chain, Flow, Ports, Protocol, Selector};

use super::listing;
use crate::lookup::{group_name, user_name};
use crate::rule_options::read_namespace;
use crate::session::Session;
use crate::style::{Cell, Style, Tone, count, json, plain, table};
use crate::trouble::Trouble;
use crate::{Exit, namespace, program, suggest};

const EXAMPLES: &str = "\
Examples:
  ctl-fw explain 4711                                       # a process, whatever it sends
  ctl-fw explain curl tcp 10.0.0.1:40000 192.0.2.1:443      # a program that does not run yet
  ctl-fw explain tcp 10.0.0.1:40000 192.0.2.1:443           # whoever holds the socket";

/// `explain`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
#[command(after_help = EXAMPLES, override_usage = "ctl-fw explain [PID|PROGRAM] [PROTOCOL SOURCE[:PORT] DESTINATION[:PORT]]")]
pub struct ExplainArgs {
    /// Whose packets (a process id or a program's file or name), and which (protocol, source, destination).
    #[arg(value_name = "WORD", num_args = 1..=4)]
    pub words: Vec<String>,
    /// A process.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// A program.
    #[arg(long, value_name = "PATH", conflicts_with = "pid")]
    pub program: Option<String>,
    /// The chain they meet.
    #[arg(short, long, default_value = "OUTPUT", value_parser = suggest::chain)]
    pub chain: Chain,
    /// Their namespace [default: that of the process, or of app-fw].
    #[arg(short, long, value_parser = read_namespace)]
    pub namespace: Option<Selector>,
}

/// Whose packets are meant, as it was typed.
#[derive(Clone, PartialEq, Debug)]
enum Who {
    Process(u32),
    Program(String),
    Holders,
}

impl ExplainArgs {
    /// Whose packets, and which.
    fn read(&self) -> Result<(Who, Option<Flow>), String> {
        let named = match (self.pid, &self.program) {
            (Some(pid), _) => Some(Who::Process(pid)),
            (None, Some(program)) => Some(Who::Program(program.clone())),
            (None, None) => None,
        };
        let (first, flow) = match self.words.as_slice() {
            [] => (None, None),
            [who] => (Some(who), None),
            [protocol, from, to] => (None, Some(flow(protocol, from, to)?)),
            [who, protocol, from, to] => (Some(who), Some(flow(protocol, from, to)?)),
            _ => return Err("a flow has three words: PROTOCOL SOURCE[:PORT] DESTINATION[:PORT]".into()),
        };
        let first = first.map(|word| word.parse().map_or_else(|_| Who::Program(word.clone()), Who::Process));
        match (named, first) {
            (Some(_), Some(_)) => Err("one process or program at a time".into()),
            (Some(who), None) | (None, Some(who)) => Ok((who, flow)),
            (None, None) if flow.is_some() => Ok((Who::Holders, flow)),
            (None, None) => Err("whose packets? A process id, a program, or a flow".into()),
        }
    }

    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let (who, flow) = self.read().map_err(Trouble::Other)?;
        let subject = match who {
            Who::Process(pid) => Subject::Process { pid },
            Who::Holders => Subject::Holders,
            Who::Program(name) => {
                let found = program::predict(&program::in_path(&name)?, &mut session.progress())?;
                if let Some(note) = found.note() {
                    session.say(&format!("note: {note}"));
                }
                let named = |(path, digest): &(std::path::PathBuf, _)| NamedObject {
                    path: path.to_string_lossy().into_owned(),
                    digest: Some(*digest),
                    undetermined: None,
                };
                Subject::Program { objects: found.objects.iter().map(named).collect() }
            }
        };
        let namespace = self.namespace.as_ref().map(namespace::absolute).transpose()?;
        let request = Request::Explain { subject, chain: self.chain, flow, namespace };
        let Answer::Explanation(answer) = session.ask(&request)? else { return Err(Trouble::OtherAnswer) };
        let style = session.style;
        write(session.out(), &answer, style)?;
        Ok(Exit::Done)
    }
}

/// Reads a flow: `tcp 10.0.0.1:40000 192.0.2.1:443`, `icmp 10.0.0.1 192.0.2.1`.
fn flow(protocol: &str, from: &str, to: &str) -> Result<Flow, String> {
    let protocol: Protocol = protocol.parse().map_err(|error: shared::flow::ProtocolError| error.to_string())?;
    let end = |text: &str| -> Result<(IpAddr, Option<u16>), String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok((end.ip(), Some(end.port())));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse()
            .map(|address| (address, None))
            .map_err(|_| format!("{text:?} is no address: 192.0.2.1, 192.0.2.1:443, 2001:db8::1 or [2001:db8::1]:443"))
    };
    let ((source, source_port), (destination, destination_port)) = (end(from)?, end(to)?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(format!("{source} and {destination} are not of one family"));
    }
    let ports = match (source_port, destination_port) {
        _ if !protocol.has_ports() && source_port.or(destination_port).is_none() => Ports::Absent,
        _ if !protocol.has_ports() => return Err(format!("{protocol} has no ports")),
        (Some(source), Some(destination)) => Ports::Known { source, destination },
        _ => return Err(format!("{protocol} has ports: ADDRESS:PORT for both ends")),
    };
    Ok(Flow { protocol, source, destination, ports })
}

fn write(out: &mut dyn Write, answer: &Explanation, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, answer, style);
    }
    writeln!(out, "Packets in {}, {}", answer.chain, listing::namespace(&answer.namespace, style))?;
    if answer.owners.is_empty() {
        writeln!(out, "Nobody holds their socket.")?;
    }
    for owner in &answer.owners {
        write_owner(out, owner, style)?;
    }
    writeln!(out)?;
    if answer.rules.is_empty() {
        writeln!(out, "There is no rule that they meet.")?;
    } else {
        let rows: Vec<_> = answer.rules.iter().flat_map(|rule| rows(rule, style)).collect();
        table(out, ["RULE", "HOLDS", "WHAT"], &rows, "><<", style)?;
    }
    writeln!(out)?;
    let policy = style.paint(Tone::of(answer.policy), &answer.policy.to_string());
    match (answer.verdict, answer.reason) {
        (Some(verdict), reason) => {
            let verdict = style.paint(Tone::of(verdict), &verdict.to_string());
            let why = reason.map_or_else(String::new, |reason| format!(": {}", reason.sentence()));
            writeln!(out, "Verdict: {verdict}{why}")
        }
        (None, _) => writeln!(out, "Verdict: depends on the packet; {policy} where no rule fires"),
    }
}

fn write_owner(out: &mut dyn Write, owner: &ExplainedOwner, style: Style) -> io::Result<()> {
    let program = owner.program.as_deref().map_or_else(|| "a program that is not known".into(), plain);
    let pid = owner.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    writeln!(out, "\n{}", style.paint(Tone::Heading, &format!("{program}{pid}")))?;
    let mut facts = Vec::new();
    facts.extend(owner.uid.map(|uid| format!("user {}", user_name(uid))));
    facts.extend(owner.gid.map(|gid| format!("group {}", group_name(gid))));
    facts.extend(owner.cgroup.as_deref().map(|group| format!("control group {}", plain(group))));
    facts.extend(owner.anon_exec.filter(|yes| *yes).map(|_| "has executable memory that no file holds".into()));
    facts.extend(owner.traced_by.map(|pid| format!("traced by pid {pid}")));
    if !facts.is_empty() {
        writeln!(out, "  {}", facts.join(", "))?;
    }
    if let Some(cause) = owner.undetermined {
        writeln!(out, "  {}", style.paint(Tone::Caution, &format!("undetermined ({cause}): {}", cause.sentence())))?;
    }
    for object in &owner.objects {
        let digest = match (&object.digest, object.undetermined) {
            (Some(digest), _) => listing::digest(digest, style),
            (None, Some(cause)) => format!("undetermined ({cause})"),
            (None, None) => "?".into(),
        };
        writeln!(out, "  {digest}  {}", plain(&object.path))?;
    }
    if let Some(aggregate) = &owner.aggregate {
        let objects = count(owner.objects.len(), "object");
        writeln!(out, "  {}  aggregate of {objects}", listing::digest(aggregate, style))?;
    }
    Ok(())
}

/// A rule and below it each of its predicates.
fn rows(rule: &ExplainedRule, style: Style) -> Vec<[Cell; 3]> {
    let text = match rule.text.parse::<shared::Rule>() {
        Ok(rule) => listing::consequence(&rule, style),
        Err(_) => plain(&rule.text),
    };
    let holds = |holds, fires: bool| match holds {
        Holds::Yes if fires => Cell::toned("yes: fires", Tone::Heading),
        Holds::Yes => Cell::toned("yes", Tone::Good),
        Holds::No => Cell::toned("no", Tone::Faint),
        Holds::Undetermined if fires => Cell::toned("undetermined: fires", Tone::Caution),
        Holds::Undetermined => Cell::toned("undetermined", Tone::Caution),
        Holds::Depends => Cell::toned("depends", Tone::Caution),
    };
    let tone = if rule.holds == Holds::No { Tone::Faint } else { Tone::Plain };
    let mut rows = vec![[rule.id.to_string().into(), holds(rule.holds, rule.fires), Cell::toned(text, tone)]];
    // One predicate says no more than the rule does.
    if rule.predicates.len() > 1 {
        rows.extend(rule.predicates.iter().map(|(text, each)| {
            ["".into(), "".into(), Cell::toned(format!("    {}: {}", word(*each), predicate(text, style)), tone)]
        }));
    }
    rows
}

fn word(holds: Holds) -> &'static str {
    match holds {
        Holds::Yes => "yes",
        Holds::No => "no",
        Holds::Undetermined => "undetermined",
        Holds::Depends => "depends on the packet",
    }
}

/// A predicate's text, digests shortened for a person.
fn predicate(text: &str, style: Style) -> String {
    match format!("-c OUTPUT -n any -v DROP {text}").parse::<shared::Rule>() {
        Ok(rule) if style.for_people => {
            listing::consequence(&rule, style).strip_prefix("DROP ").unwrap_or(text).to_owned()
        }
        _ => plain(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::{Cause, Digest, Reason, Verdict};

    fn args(line: &str) -> Result<(Who, Option<Flow>), String> {
        let words = ["ctl-fw", "explain"].into_iter().chain(line.split_whitespace()).map(Into::into);
        let crate::args::Task::Command(command) = crate::args::read(words).unwrap().task else { panic!() };
        let crate::commands::Command::Explain(args) = *command else { panic!() };
        args.read()
    }

    #[test]
    fn whose_packets_and_which() {
        let flow = flow("tcp", "10.0.0.1:4000", "192.0.2.1:443").unwrap();
        assert_eq!(args("4711"), Ok((Who::Process(4711), None)));
        assert_eq!(args("--pid 4711"), Ok((Who::Process(4711), None)));
        assert_eq!(args("/usr/bin/curl"), Ok((Who::Program("/usr/bin/curl".into()), None)));
        assert_eq!(args("tcp 10.0.0.1:4000 192.0.2.1:443"), Ok((Who::Holders, Some(flow))));
        assert_eq!(args("curl tcp 10.0.0.1:4000 192.0.2.1:443"), Ok((Who::Program("curl".into()), Some(flow))));
        assert_eq!(args("--pid 7 tcp 10.0.0.1:4000 192.0.2.1:443"), Ok((Who::Process(7), Some(flow))));
        for bad in [
            "",
            "7 8",
            "--pid 7 8",
            "tcp 10.0.0.1 192.0.2.1:443",
            "icmp 10.0.0.1:1 192.0.2.1:1",
            "tcp [::1]:1 192.0.2.1:443",
            "quic 10.0.0.1:1 192.0.2.1:1",
        ] {
            assert!(args(bad).is_err(), "{bad}");
        }
        assert_eq!(super::flow("icmpv6", "::1", "[::2]").unwrap().ports, Ports::Absent);
    }

    #[test]
    fn an_explanation_says_which_rule_and_why() {
        let digest = Digest::of(b"abc");
        let answer = Explanation {
            chain: Chain::Output,
            namespace: Selector::Host,
            owners: vec![ExplainedOwner {
                pid: Some(7),
                program: Some("/bin/a\nb".into()),
                uid: Some(0),
                aggregate: Some(digest),
                objects: vec![
                    NamedObject { path: "/bin/a\nb".into(), digest: Some(digest), undetermined: None },
                    NamedObject { path: "/x".into(), digest: None, undetermined: Some(Cause::ObjectTooLarge) },
                ],
                ..ExplainedOwner::default()
            }],
            rules: vec![ExplainedRule {
                id: 3,
                text: format!("-A -c OUTPUT -n host -v DROP -p tcp --sng-hash {digest}"),
                holds: Holds::Yes,
                fires: true,
                predicates: vec![("-p tcp".into(), Holds::Depends), (format!("--sng-hash {digest}"), Holds::Yes)],
            }],
            policy: Verdict::Accept,
            verdict: Some(Verdict::Drop),
            reason: Some(Reason::Rule),
        };
        let shown = |answer: &Explanation, style| {
            let mut out = Vec::new();
            write(&mut out, answer, style).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expected = "\
Packets in OUTPUT, host

/bin/a\\nb, pid 7
  user root
  ba7816bf8f01…  /bin/a\\nb
  undetermined (object-too-large)  /x
  ba7816bf8f01…  aggregate of 2 objects

RULE  HOLDS       WHAT
   3  yes: fires  DROP -p tcp --sng-hash ba7816bf8f01…
                      depends on the packet: -p tcp
                      yes: --sng-hash ba7816bf8f01…

Verdict: DROP: A rule fired.
";
        let terminal = Style { for_people: true, ..Style::default() };
        assert_eq!(shown(&answer, terminal), expected);
        let nobody = Explanation { owners: vec![], rules: vec![], verdict: None, reason: None, ..answer.clone() };
        let text = shown(&nobody, Style::default());
        assert!(text.contains("Nobody holds") && text.contains("depends on the packet; ACCEPT"), "{text}");
        let json = shown(&answer, Style { json: true, ..Style::default() });
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), answer);
    }

    proptest! {
        #[test]
        fn no_flow_panics(words in prop::collection::vec("[a-z0-9:.\\[\\]]{0,12}", 3)) {
            let _ = flow(&words[0], &words[1], &words[2]);
        }
    }
}
