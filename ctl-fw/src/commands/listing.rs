//! Rules as they are shown.

use std::io::{self, Write};

use shared::control::{ListedPolicy, ListedRule, ListedSet, Listing};
use shared::rule::{Item, Label, Labelled, List, Log};
use shared::{Chain, Digest, Match, Predicate, Rule, Selector};

use crate::style::{Cell, Style, Tone, json, plain, table};

/// Hex digits that are left of a digest on a terminal.
const SHORT_DIGEST: usize = 12;

/// Rules and policies, chain by chain, and the sets.
pub(super) fn write(out: &mut dyn Write, listing: &Listing, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, listing, style);
    }
    let mut is_first = true;
    for chain in Chain::ALL {
        let rules: Vec<_> = listing.rules.iter().filter(|listed| listed.rule.chain == chain).collect();
        let policies: Vec<_> = listing.policies.iter().filter(|policy| policy.chain == chain).collect();
        if rules.is_empty() && policies.is_empty() {
            continue;
        }
        if !std::mem::take(&mut is_first) {
            writeln!(out)?;
        }
        write_policies(out, chain, &policies, style)?;
        if !rules.is_empty() {
            let rows = rules.iter().map(|listed| row(listed, style)).collect::<Vec<_>>();
            table(out, ["POS", "ID", "PACKETS", "BYTES", "VERDICT", "NAMESPACE", "MATCH"], &rows, ">>>><<<", style)?;
        }
    }
    if !listing.sets.is_empty() {
        if !is_first {
            writeln!(out)?;
        }
        write_sets(out, &listing.sets, style)?;
    }
    Ok(())
}

fn write_policies(out: &mut dyn Write, chain: Chain, policies: &[&ListedPolicy], style: Style) -> io::Result<()> {
    let texts: Vec<_> = policies
        .iter()
        .map(|policy| {
            let default = if policy.stored { "" } else { " (default)" };
            let verdict = style.paint(Tone::of(policy.verdict), &policy.verdict.to_string());
            format!("{} {verdict}{default}", namespace(&policy.namespace, style))
        })
        .collect();
    let heading = style.paint(Tone::Heading, &format!("Chain {chain}"));
    match texts.as_slice() {
        [] => writeln!(out, "{heading}"),
        texts => writeln!(out, "{heading}, policy: {}", texts.join(", ")),
    }
}

/// Sets with the numbers of their elements.
pub(super) fn write_sets(out: &mut dyn Write, sets: &[ListedSet], style: Style) -> io::Result<()> {
    let rows: Vec<_> = sets
        .iter()
        .map(|ListedSet { set, used_by }| -> [Cell; 4] {
            [
                format!("@{}", set.name).into(),
                set.elements.kind().to_string().into(),
                set.elements.len().to_string().into(),
                used_by.to_string().into(),
            ]
        })
        .collect();
    table(out, ["SET", "KIND", "ELEMENTS", "RULES"], &rows, "<<>>", style)
}

fn row(listed: &ListedRule, style: Style) -> [Cell; 7] {
    let dormant = if listed.dormant { " (dormant)" } else { "" };
    let tone = if listed.dormant { Tone::Faint } else { Tone::Plain };
    [
        listed.position.to_string().into(),
        listed.id.to_string().into(),
        amount(listed.packets, style).into(),
        amount(listed.bytes, style).into(),
        Cell::toned(listed.rule.verdict.to_string(), Tone::of(listed.rule.verdict)),
        Cell::toned(format!("{}{dormant}", namespace(&listed.rule.namespace, style)), tone),
        Cell::toned(matches(&listed.rule, style), tone),
    ]
}

/// A counter: whole in a pipe, with three or four digits for a person.
fn amount(count: u64, style: Style) -> String {
    const UNITS: [(u64, &str); 4] = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match UNITS.iter().find(|(unit, _)| count >= 10 * unit) {
        Some((unit, letter)) if style.for_people => format!("{}{letter}", count / unit),
        _ => count.to_string(),
    }
}

/// Verdict and matches.
pub(super) fn consequence(rule: &Rule, style: Style) -> String {
    format!("{} {}", rule.verdict, matches(rule, style))
}

/// What stands behind a rule's chain, namespace and verdict, as the command line has it.
fn matches(rule: &Rule, style: Style) -> String {
    let mut words: Vec<_> = rule.predicates.iter().map(|predicate| predicate_text(predicate, style)).collect();
    if words.is_empty() {
        words.push("every packet".into());
    }
    words.extend(rule.signature_layer.map(|layer| format!("-l {layer}")));
    words.extend(rule.until.map(|until| format!("--until {until}")));
    match rule.log {
        Log::Default => {}
        Log::Always => words.push("--log".into()),
        Log::Never => words.push("--no-log".into()),
    }
    words.extend(rule.comment.as_ref().map(|comment| format!("--comment {}", shared::rule::quoted(comment.as_str()))));
    words.join(" ")
}

/// On a terminal a digest is shortened, and if it has a label, that says more.
fn predicate_text(predicate: &Predicate, style: Style) -> String {
    let mark = if predicate.negated { "! " } else { "" };
    let option = predicate.on.option();
    match &predicate.on {
        Match::SngHash(list) | Match::AllHash(list) | Match::AggHash(list) if style.for_people => {
            digests(list).into_iter().map(|text| format!("{mark}{option} {text}")).collect::<Vec<_>>().join(" ")
        }
        _ => predicate.to_string(),
    }
}

fn digests(list: &List<Labelled<Digest>>) -> Vec<String> {
    let label = |label: &Label| format!(" ({})", plain(&label.to_string()));
    list.0
        .iter()
        .map(|item| match item {
            Item::One(Labelled { value, from }) => {
                format!("{}{}", short(value), from.as_ref().map(label).unwrap_or_default())
            }
            Item::Set(name) => format!("@{name}"),
        })
        .collect()
}

/// The first digits of a digest.
pub(super) fn short(digest: &Digest) -> String {
    format!("{}…", &digest.to_string()[..SHORT_DIGEST])
}

/// A digest, whole where it is to be used.
pub(super) fn digest(digest: &Digest, style: Style) -> String {
    if style.for_people { short(digest) } else { digest.to_string() }
}

pub(super) fn namespace(selector: &Selector, style: Style) -> String {
    match selector {
        // The boot id's first group tells two boots apart well enough for the eye.
        Selector::Lifetime { cookie, boot } if style.for_people => {
            format!("lifetime:{cookie}@{}…", boot.split('-').next().unwrap_or_default())
        }
        other => plain(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::Verdict;
    use shared::set::{Elements, Set, SetKind};

    const PIPE: Style = Style { json: false, for_people: false, colour: false, width: None };
    const TERMINAL: Style = Style { for_people: true, ..PIPE };

    fn shown(listing: &Listing, style: Style) -> String {
        let mut out = Vec::new();
        write(&mut out, listing, style).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn example() -> Listing {
        let rule = |id, position, dormant, text: &str| ListedRule {
            id,
            position,
            dormant,
            packets: id * 10_000,
            bytes: id * 2_000_000,
            rule: text.parse().unwrap(),
        };
        let hex = Digest::of(b"abc");
        let policy = |chain, namespace, verdict, stored| ListedPolicy { chain, namespace, verdict, stored };
        Listing {
            revision: 4,
            rules: vec![
                rule(12, 0, false, &format!("-c OUTPUT -n host -v DROP -p tcp ! --sng-hash {hex} --from exe:/bin/x")),
                rule(
                    7,
                    1,
                    false,
                    "-c OUTPUT -n host -v ACCEPT -l l4 --log --comment \"for a while\" --until 2030-01-01T00:00:00Z",
                ),
                rule(8, 0, true, "-c INPUT -n lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11 -v DROP --dport 1"),
            ],
            policies: vec![
                policy(Chain::Output, Selector::Any, Verdict::Accept, false),
                policy(Chain::Output, Selector::Host, Verdict::Drop, true),
                policy(Chain::Forward, Selector::Any, Verdict::Accept, false),
            ],
            sets: vec![ListedSet {
                set: Set { name: "lan".parse().unwrap(), elements: Elements::none(SetKind::Addresses) },
                used_by: 0,
            }],
        }
    }

    #[test]
    fn a_listing_on_a_terminal_is_short() {
        let expected = "\
Chain OUTPUT, policy: any ACCEPT (default), host DROP
POS  ID  PACKETS  BYTES  VERDICT  NAMESPACE  MATCH
  0  12     120k    24M  DROP     host       -p tcp ! --sng-hash ba7816bf8f01… (exe:/bin/x)
  1   7      70k    14M  ACCEPT   host       every packet -l l4 --until 2030-01-01T00:00:00Z --log --comment \"for a while\"

Chain INPUT
POS  ID  PACKETS  BYTES  VERDICT  NAMESPACE                       MATCH
  0   8      80k    16M  DROP     lifetime:7@6e6cd9d5… (dormant)  --dport 1

Chain FORWARD, policy: any ACCEPT (default)

SET   KIND       ELEMENTS  RULES
@lan  addresses         0      0
";
        assert_eq!(shown(&example(), TERMINAL), expected);
        let narrow = shown(&example(), Style { width: Some(80), ..TERMINAL });
        let rows = narrow.lines().filter(|line| !line.contains("policy"));
        assert!(rows.clone().all(|line| line.chars().count() <= 82) && rows.count() > 10, "{narrow}");
    }

    #[test]
    fn a_listing_in_a_pipe_is_whole() {
        let text = shown(&example(), PIPE);
        assert!(text.contains(&format!("{} --from exe:/bin/x", Digest::of(b"abc"))));
        assert!(text.contains("lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11 (dormant)"));
        assert!(!text.contains('…') && text.contains(" 120000  24000000  "));
        let empty = Listing { revision: 0, rules: vec![], policies: vec![], sets: vec![] };
        assert_eq!(shown(&empty, PIPE), "");
    }

    #[test]
    fn json_is_the_answer_itself() {
        let text = shown(&example(), Style { json: true, ..PIPE });
        assert_eq!(text.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Listing>(&text).unwrap(), example());
        let pretty = shown(&example(), Style { json: true, ..TERMINAL });
        assert_eq!(serde_json::from_str::<Listing>(&pretty).unwrap(), example());
    }
}
