//! `learn`: a ruleset of what `app-fw --audit` has recorded.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write;
use std::net::IpAddr;

use shared::control::{Answer, Edit, Learned, LearnedProgram, Request};
use shared::rule::{Comment, Label, LabelKind, quoted};
use shared::{Chain, Digest, Protocol, Reason, Rule, Selector};

use crate::Exit;
use crate::session::Session;
use crate::style::{count, plain};
use crate::trouble::Trouble;

/// `learn`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct LearnArgs {
    /// Add the rules, all in one change, instead of printing them.
    #[arg(long)]
    pub apply: bool,
    /// Forget what was recorded (after it was printed or applied).
    #[arg(long)]
    pub clear: bool,
    /// Let the whole image pass by its aggregate digest, not the program by its own.
    #[arg(long)]
    pub aggregate: bool,
}

/// What was learned, as rules and as what cannot be said by rules.
#[derive(Debug, Default, PartialEq)]
struct Ruleset {
    /// By program: a heading, and the rules below it.
    programs: Vec<(String, Vec<Rule>)>,
    /// Sentences.
    left_out: Vec<String>,
}

impl LearnArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let Answer::Learned(learned) = session.ask(&Request::Learned { clear: false })? else {
            return Err(Trouble::OtherAnswer);
        };
        let ruleset = ruleset(&learned, self.aggregate);
        if self.apply {
            self.apply(&ruleset, session)?;
        } else if session.style.json {
            session.json(&learned)?;
        } else {
            write(session.out(), &ruleset, learned.len())?;
        }
        // Only what was seen: whatever was recorded meanwhile goes too, and is recorded again when it happens again.
        if self.clear {
            session.ask(&Request::Learned { clear: true })?;
        }
        Ok(Exit::Done)
    }

    fn apply(&self, ruleset: &Ruleset, session: &mut Session<'_, '_>) -> Result<(), Trouble> {
        for sentence in &ruleset.left_out {
            session.say(&format!("note: {sentence}"));
        }
        let rules: Vec<&Rule> = ruleset.programs.iter().flat_map(|(_, rules)| rules).collect();
        if rules.is_empty() {
            return Err(Trouble::Missing("nothing was recorded that a rule could let pass (app-fw --audit)".into()));
        }
        let bare = |rule: &Rule| Rule { comment: None, ..rule.clone() };
        let there: HashSet<Rule> = session.listing()?.rules.iter().map(|listed| bare(&listed.rule)).collect();
        let new = rules.into_iter().filter(|rule| !there.contains(&bare(rule)));
        let edits: Vec<_> = new.map(|rule| Edit::Add { rule: rule.clone(), position: None }).collect();
        if edits.is_empty() {
            return Err(Trouble::Missing("there are rules for all that was recorded".into()));
        }
        let added = edits.len();
        let changed = session.change(edits)?;
        if session.style.json {
            session.json(&changed)?;
        } else {
            writeln!(session.out(), "revision {}: added {}", changed.revision, count(added, "rule"))?;
        }
        Ok(())
    }
}

/// Packets that rules of one kind let pass: same chain, namespace, programs and protocol.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    /// Path, digest, aggregate.
    programs: Vec<(String, Option<Digest>, Option<Digest>)>,
    chain: Chain,
    namespace: Selector,
    protocol: Protocol,
    has_port: bool,
    near: bool,
}

/// What they were.
#[derive(Default)]
struct Seen {
    remotes: BTreeSet<IpAddr>,
    packets: u64,
}

/// What one rule lets pass.
#[derive(Default)]
struct Merged {
    ports: Vec<u16>,
    packets: u64,
}

fn ruleset(learned: &[Learned], aggregate: bool) -> Ruleset {
    let mut found = Ruleset::default();
    let mut kinds: BTreeMap<(Kind, Option<u16>), Seen> = BTreeMap::new();
    for one in learned {
        let Learned { chain, namespace, protocol, port, .. } = one;
        let digest = |program: &LearnedProgram| if aggregate { program.aggregate } else { program.digest };
        // Somebody wants them kept back.
        if one.reason == Reason::Rule {
            found.left_out.push(left_out(one));
            continue;
        }
        if one.programs.is_empty() || one.programs.iter().any(|program| digest(program).is_none()) {
            found.left_out.push(left_out(one));
            continue;
        }
        let mut programs: Vec<_> =
            one.programs.iter().map(|program| (program.path.clone(), program.digest, program.aggregate)).collect();
        programs.sort();
        programs.dedup();
        let (chain, namespace, protocol, has_port) = (*chain, namespace.clone(), *protocol, port.is_some());
        let kind = Kind { programs, chain, namespace, protocol, has_port, near: one.near };
        let seen = kinds.entry((kind, *port)).or_default();
        seen.remotes.insert(one.remote);
        seen.packets += one.packets;
    }
    // Ports with the same far ends share a rule.
    let mut merged: BTreeMap<(&Kind, &BTreeSet<IpAddr>), Merged> = BTreeMap::new();
    for ((kind, port), seen) in &kinds {
        let merged = merged.entry((kind, &seen.remotes)).or_default();
        merged.ports.extend(port);
        merged.packets += seen.packets;
    }
    for ((kind, remotes), Merged { ports, packets }) in merged {
        let heading = kind.programs.iter().map(|(path, ..)| plain(path)).collect::<Vec<_>>().join(" and ");
        match rule(kind, remotes, &ports, packets, aggregate) {
            Ok(rule) => match found.programs.last_mut() {
                Some((last, rules)) if *last == heading => rules.push(rule),
                _ => found.programs.push((heading, vec![rule])),
            },
            Err(error) => found.left_out.push(format!("{heading}: {error}")),
        }
    }
    found
}

/// Through the text form: what comes out is what somebody would have typed.
fn rule(
    kind: &Kind,
    remotes: &BTreeSet<IpAddr>,
    ports: &[u16],
    packets: u64,
    aggregate: bool,
) -> Result<Rule, shared::rule::RuleError> {
    let list = |texts: Vec<String>| texts.join(",");
    let far = if kind.chain == Chain::Input { "-s" } else { "-d" };
    let mut text = format!("-c {} -n {} -v ACCEPT", kind.chain, quoted(&kind.namespace.to_string()));
    text += &format!(" -p {} {far} {}", kind.protocol, list(remotes.iter().map(IpAddr::to_string).collect()));
    if !ports.is_empty() {
        let option = if kind.near == (kind.chain == Chain::Input) { "--dport" } else { "--sport" };
        text += &format!(" {option} {}", list(ports.iter().map(u16::to_string).collect()));
    }
    for (path, digest, whole) in &kind.programs {
        let (option, digest) = if aggregate { ("--agg-hash", whole) } else { ("--sng-hash", digest) };
        let Some(digest) = digest else { continue };
        text += &format!(" {option} {digest}");
        let label = Label { kind: LabelKind::Exe, name: path.clone() };
        // A label says where refresh looks again, so an aggregate of a process has none.
        if !aggregate && path.starts_with('/') && label.to_string().parse::<Label>().is_ok() {
            text += &format!(" --from {}", quoted(&label.to_string()));
        }
    }
    let mut rule: Rule = text.parse()?;
    let name = kind.programs.first().and_then(|(path, ..)| path.rsplit('/').next()).unwrap_or_default();
    let comment: Result<Comment, String> = format!("learned: {}, {packets} packets", plain(name)).parse();
    rule.comment = comment.ok();
    Ok(rule)
}

fn left_out(one: &Learned) -> String {
    let port = one.port.map_or_else(String::new, |port| format!(" port {port}"));
    let whose = match one.programs.as_slice() {
        programs if one.reason == Reason::Rule => {
            let names = programs.iter().map(|program| plain(&program.path)).collect::<Vec<_>>().join(" and ");
            format!("of {names}, which a rule of yours keeps back,")
        }
        [] => "of nobody that is known".into(),
        programs => format!(
            "of {} whose digest is not known",
            programs.iter().map(|program| plain(&program.path)).collect::<Vec<_>>().join(" and ")
        ),
    };
    format!(
        "{} {whose} in {}, {}: {} {}{port}, {} packets; a rule for them must be yours",
        one.reason, one.chain, one.namespace, one.protocol, one.remote, one.packets
    )
}

fn write(out: &mut dyn Write, ruleset: &Ruleset, flows: usize) -> Result<(), Trouble> {
    writeln!(out, "# Made by ctl-fw learn of {}; to be reviewed.", count(flows, "recorded flow"))?;
    writeln!(out, "# `ctl-fw learn --apply` adds these rules to those in force; `restore` would replace them.")?;
    writeln!(
        out,
        "# Whoever has a program's file mapped matches its digest; `--aggregate` takes whole images instead."
    )?;
    for sentence in &ruleset.left_out {
        writeln!(out, "# Left out: {sentence}")?;
    }
    for (program, rules) in &ruleset.programs {
        writeln!(out, "\n# {program}")?;
        for rule in rules {
            writeln!(out, "{rule}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::document::Document;

    fn learned(path: &str, remote: &str, port: Option<u16>) -> Learned {
        let digest = Some(Digest::of(path.as_bytes()));
        let programs = vec![LearnedProgram { path: path.into(), digest, aggregate: Some(Digest::of(b"all")) }];
        let time = "2026-11-21T12:00:00Z".parse().unwrap();
        Learned {
            chain: Chain::Output,
            namespace: Selector::Host,
            programs,
            protocol: if port.is_some() { Protocol::TCP } else { Protocol::ICMP },
            remote: remote.parse().unwrap(),
            port,
            near: false,
            packets: 3,
            reason: Reason::Policy,
            first: time,
            last: time,
        }
    }

    #[test]
    fn flows_become_few_rules() {
        let unknown = Learned { programs: vec![], ..learned("", "192.0.2.9", Some(1)) };
        let flows = [
            learned("/usr/bin/curl", "192.0.2.1", Some(443)),
            learned("/usr/bin/curl", "192.0.2.1", Some(80)),
            learned("/usr/bin/curl", "2001:db8::1", Some(443)),
            learned("/usr/bin/curl", "2001:db8::1", Some(80)),
            learned("/usr/bin/my app", "192.0.2.1", None),
            unknown,
        ];
        let made = ruleset(&flows, false);
        let mut out = Vec::new();
        write(&mut out, &made, flows.len()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let document = Document::parse(&text).unwrap();
        let (curl, app) = (Digest::of(b"/usr/bin/curl"), Digest::of(b"/usr/bin/my app"));
        let rules: Vec<_> = document.rules.iter().map(|rule| rule.rule.to_string()).collect();
        assert_eq!(
            rules,
            [
                format!(
                    "-A -c OUTPUT -n host -v ACCEPT -p tcp -d 192.0.2.1/32,2001:db8::1/128 --dport 80,443 \
                     --sng-hash {curl} --from exe:/usr/bin/curl --comment \"learned: curl, 12 packets\""
                ),
                format!(
                    "-A -c OUTPUT -n host -v ACCEPT -p icmp -d 192.0.2.1/32 --sng-hash {app} \
                     --from \"exe:/usr/bin/my app\" --comment \"learned: my app, 3 packets\""
                ),
            ]
        );
        assert!(text.contains("# Left out: policy of nobody that is known"), "{text}");
        let whole = ruleset(&flows, true);
        assert!(whole.programs[0].1[0].to_string().contains(&format!("--agg-hash {} ", Digest::of(b"all"))));
    }

    #[test]
    fn odd_paths_stay_on_their_line() {
        let made = ruleset(&[learned("/a\n-A -c OUTPUT -n any -v ACCEPT", "192.0.2.1", Some(1))], false);
        let mut out = Vec::new();
        write(&mut out, &made, 1).unwrap();
        assert_eq!(Document::parse(&String::from_utf8(out).unwrap()).unwrap().rules.len(), 1);
    }
}
