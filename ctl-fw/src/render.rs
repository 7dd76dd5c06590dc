//! Answers, for people and for machines.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use shared::control::{BypassHolder, BypassSocket, ListedPolicy, ListedRule, Listing, ProbeStatus, Status};
use shared::{Chain, Match, Predicate, Rule, Selector, Verdict};

use crate::hash::DigestListing;

/// Hex digits that are left of a digest on a terminal.
const SHORT_DIGEST: usize = 12;

/// How an answer is shown.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// As JSON.
    pub(crate) json: bool,
    /// On a terminal: what is too long to be read is shortened. Never in a pipe, where it is to be used.
    pub(crate) for_people: bool,
}

/// A rule that was added.
pub(crate) fn added(out: &mut dyn Write, added: &ListedRule, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, added, style);
    }
    let ListedRule { id, position, rule, .. } = added;
    writeln!(
        out,
        "added rule {id} at position {position} of {}, {}: {}",
        rule.chain,
        namespace(&rule.namespace, style),
        consequence(rule, style)
    )
}

/// Rules that were deleted.
pub(crate) fn deleted(out: &mut dyn Write, count: usize, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, &serde_json::json!({ "deleted": count }), style);
    }
    writeln!(out, "deleted {count} rule{}", if count == 1 { "" } else { "s" })
}

/// A policy that was set.
pub(crate) fn policy_set(out: &mut dyn Write, chain: Chain, verdict: Verdict, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, &serde_json::json!({ "chain": chain, "policy": verdict }), style);
    }
    writeln!(out, "the policy of {chain} is now {verdict}")
}

/// Digests of files: lines as sha256sum(1) has them, `-c` of which reads all but the last.
pub(crate) fn digests(out: &mut dyn Write, listing: &DigestListing, style: Style) -> io::Result<()> {
    if style.json {
        let files: Vec<_> = listing.files.iter().map(|file| JsonFile::new(&file.path, file.digest)).collect();
        return json(out, &serde_json::json!({ "files": files, "aggregate": listing.aggregate }), style);
    }
    for file in &listing.files {
        let (mark, path) = escape(&file.path);
        write!(out, "{mark}{}  ", file.digest)?;
        out.write_all(&path)?;
        writeln!(out)?;
    }
    match listing.aggregate {
        Some(aggregate) => writeln!(out, "{aggregate}  aggregate"),
        None => Ok(()),
    }
}

#[derive(Serialize)]
struct JsonFile {
    path: String,
    /// The bytes of a path that is no UTF-8, which JSON cannot hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    digest: shared::Digest,
}

impl JsonFile {
    fn new(path: &Path, digest: shared::Digest) -> JsonFile {
        let bytes = path.as_os_str().as_bytes();
        let path_hex = path.to_str().is_none().then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        JsonFile { path: path.to_string_lossy().into(), path_hex, digest }
    }
}

/// A path in one line: where it has a backslash or a line end, these are escaped and the line starts with a backslash, as
/// in coreutils.
fn escape(path: &Path) -> (&'static str, Vec<u8>) {
    let bytes = path.as_os_str().as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r')) {
        return ("", bytes.to_vec());
    }
    let mut escaped = Vec::with_capacity(bytes.len() + 8);
    for &byte in bytes {
        match byte {
            b'\\' => escaped.extend(br"\\"),
            b'\n' => escaped.extend(br"\n"),
            b'\r' => escaped.extend(br"\r"),
            byte => escaped.push(byte),
        }
    }
    ("\\", escaped)
}

/// Rules and policies, chain by chain.
pub(crate) fn listing(out: &mut dyn Write, listing: &Listing, style: Style) -> io::Result<()> {
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
            table(out, ["POS", "ID", "VERDICT", "NAMESPACE", "MATCH"], &rows, ">><<<")?;
        }
    }
    Ok(())
}

fn write_policies(out: &mut dyn Write, chain: Chain, policies: &[&ListedPolicy], style: Style) -> io::Result<()> {
    let texts: Vec<_> = policies
        .iter()
        .map(|policy| {
            let default = if policy.stored { "" } else { " (default)" };
            format!("{} {}{default}", namespace(&policy.namespace, style), policy.verdict)
        })
        .collect();
    match texts.as_slice() {
        [] => writeln!(out, "Chain {chain}"),
        texts => writeln!(out, "Chain {chain}, policy: {}", texts.join(", ")),
    }
}

fn row(listed: &ListedRule, style: Style) -> [String; 5] {
    let dormant = if listed.dormant { " (dormant)" } else { "" };
    [
        listed.position.to_string(),
        listed.id.to_string(),
        listed.rule.verdict.to_string(),
        format!("{}{dormant}", namespace(&listed.rule.namespace, style)),
        matches(&listed.rule, style),
    ]
}

fn consequence(rule: &Rule, style: Style) -> String {
    format!("{} {}", rule.verdict, matches(rule, style))
}

/// A rule's predicates and signature as the command line has them.
fn matches(rule: &Rule, style: Style) -> String {
    let mut words: Vec<_> = rule.predicates.iter().map(|predicate| predicate_text(predicate, style)).collect();
    if words.is_empty() {
        words.push("every packet".into());
    }
    words.extend(rule.signature_layer.map(|layer| format!("-l {layer}")));
    words.join(" ")
}

fn predicate_text(predicate: &Predicate, style: Style) -> String {
    match &predicate.on {
        on @ (Match::SngHash(digest) | Match::AggHash(digest)) if style.for_people => {
            let mark = if predicate.negated { "! " } else { "" };
            format!("{mark}{} {}…", on.option(), &digest.to_string()[..SHORT_DIGEST])
        }
        _ => predicate.to_string(),
    }
}

fn namespace(selector: &Selector, style: Style) -> String {
    match selector {
        // The boot id's first group tells two boots apart well enough for the eye.
        Selector::Lifetime { cookie, boot } if style.for_people => {
            format!("lifetime:{cookie}@{}…", boot.split('-').next().unwrap_or_default())
        }
        other => other.to_string(),
    }
}

/// How the daemon is.
pub(crate) fn status(out: &mut dyn Write, status: &Status, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, status, style);
    }
    let up = Duration::from_millis(status.uptime_ms).as_secs();
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    writeln!(out, "app-fw {}, pid {}, up {hours}:{minutes:02}:{seconds:02}", status.daemon, status.pid)?;
    writeln!(out, "rules    {} (generation {})", status.rules, status.rules_generation)?;
    writeln!(out, "digests  {} known without hashing", status.digests)?;
    writeln!(out, "events   {} left out", status.events_omitted)?;
    writeln!(out, "clock    {}", status.clock)?;
    write_probe(out, &status.probe)?;
    write_bypass(out, &status.bypass_capable)?;
    if status.queues.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let headers = [
        "QUEUE", "CHAIN", "PACKETS", "ACCEPTED", "DROPPED", "PARKED", "BATCHES", "OVERRUNS", "BUFFER", "HITS", "MISSES",
    ];
    let rows: Vec<_> = status
        .queues
        .iter()
        .map(|queue| {
            [
                queue.number.to_string(),
                queue.chain.map_or("-".into(), |chain| chain.to_string()),
                queue.packets.to_string(),
                queue.accepted.to_string(),
                queue.dropped.to_string(),
                queue.parked.to_string(),
                queue.batches.to_string(),
                queue.overruns.to_string(),
                bytes(queue.receive_buffer),
                queue.flow_hits.to_string(),
                queue.flow_misses.to_string(),
            ]
        })
        .collect();
    table(out, headers, &rows, "><>>>>>>>>>")?;
    let mut stale = BTreeMap::<&str, u64>::new();
    for (reason, count) in status.queues.iter().flat_map(|queue| &queue.stale) {
        *stale.entry(reason).or_default() += count;
    }
    if !stale.is_empty() {
        let counts: Vec<_> = stale.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        writeln!(out, "answers thrown away: {}", counts.join(", "))?;
    }
    Ok(())
}

fn write_probe(out: &mut dyn Write, probe: &ProbeStatus) -> io::Result<()> {
    let state = match (&probe.why_not, probe.loaded) {
        (Some(why), false) => format!("not loaded: {why}"),
        (None, false) => "not loaded".into(),
        (_, true) => format!("loaded, {} events lost", probe.lost_events),
    };
    writeln!(out, "probe    {state}")?;
    for missing in &probe.missing {
        writeln!(out, "         missing hook {}: {}", missing.hook, missing.why)?;
    }
    for cost in &probe.cost {
        writeln!(out, "         {cost}")?;
    }
    Ok(())
}

/// Who can send past every rule.
fn write_bypass(out: &mut dyn Write, sockets: &[BypassSocket]) -> io::Result<()> {
    writeln!(out, "bypass   {} sockets that send past netfilter", sockets.len())?;
    for socket in sockets {
        let holders: Vec<_> = socket.holders.iter().map(holder).collect();
        let holders = if holders.is_empty() { "no holder was found".into() } else { holders.join(", ") };
        writeln!(out, "         {} {}: {holders}", socket.family.token(), socket.inode)?;
    }
    Ok(())
}

/// Paths are chosen by whoever runs the program: no line ends, no terminal codes.
fn holder(holder: &BypassHolder) -> String {
    let path = holder.path.as_deref().unwrap_or("?");
    format!("pid {} {}", holder.pid, path.escape_debug())
}

fn bytes(count: u64) -> String {
    match count {
        0..=9999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

fn json<T: Serialize>(out: &mut dyn Write, value: &T, style: Style) -> io::Result<()> {
    if style.for_people {
        serde_json::to_writer_pretty(&mut *out, value)?;
    } else {
        serde_json::to_writer(&mut *out, value)?;
    }
    writeln!(out)
}

/// Columns as wide as their widest cell. `align` has `<` or `>` for each; the last column is not filled up.
fn table<const N: usize>(out: &mut dyn Write, headers: [&str; N], rows: &[[String; N]], align: &str) -> io::Result<()> {
    let mut widths = headers.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in std::iter::once(&headers.map(String::from)).chain(rows) {
        let mut line = String::new();
        for ((cell, width), side) in row.iter().zip(widths).zip(align.chars()) {
            line += &if side == '>' { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashedFile;
    use shared::Digest;
    use shared::control::{MissingHook, QueueStatus};
    use shared::event::BypassFamily;

    const PIPE: Style = Style { json: false, for_people: false };
    const TERMINAL: Style = Style { json: false, for_people: true };
    const JSON: Style = Style { json: true, for_people: false };

    fn shown(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn example() -> Listing {
        let rule =
            |id, position, dormant, text: &str| ListedRule { id, position, dormant, rule: text.parse().unwrap() };
        let hex = Digest::of(b"abc");
        let policy = |chain, namespace, verdict, stored| ListedPolicy { chain, namespace, verdict, stored };
        Listing {
            rules: vec![
                rule(12, 0, false, &format!("-c OUTPUT -n host -v DROP -p tcp ! --sng-hash {hex}")),
                rule(7, 1, false, "-c OUTPUT -n host -v ACCEPT -l l4"),
                rule(8, 0, true, "-c INPUT -n lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11 -v DROP --dport 1"),
            ],
            policies: vec![
                policy(Chain::Output, Selector::Any, Verdict::Accept, false),
                policy(Chain::Output, Selector::Host, Verdict::Drop, true),
                policy(Chain::Forward, Selector::Any, Verdict::Accept, false),
            ],
        }
    }

    #[test]
    fn a_listing_on_a_terminal_is_short() {
        let expected = "\
Chain OUTPUT, policy: any ACCEPT (default), host DROP
POS  ID  VERDICT  NAMESPACE  MATCH
  0  12  DROP     host       -p tcp ! --sng-hash ba7816bf8f01…
  1   7  ACCEPT   host       every packet -l l4

Chain INPUT
POS  ID  VERDICT  NAMESPACE                      MATCH
  0   8  DROP     lifetime:7@6e6cd9d5… (dormant)  --dport 1

Chain FORWARD, policy: any ACCEPT (default)
";
        let expected =
            expected.replace("NAMESPACE                      MATCH", "NAMESPACE                       MATCH");
        assert_eq!(shown(|out| listing(out, &example(), TERMINAL)), expected);
    }

    #[test]
    fn a_listing_in_a_pipe_is_whole() {
        let text = shown(|out| listing(out, &example(), PIPE));
        assert!(text.contains(&Digest::of(b"abc").to_string()));
        assert!(text.contains("lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11 (dormant)"));
        assert!(!text.contains('…'));
        let empty = Listing { rules: vec![], policies: vec![] };
        assert_eq!(shown(|out| listing(out, &empty, PIPE)), "");
    }

    #[test]
    fn json_is_the_answer_itself() {
        let text = shown(|out| listing(out, &example(), JSON));
        assert_eq!(text.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Listing>(&text).unwrap(), example());
        let pretty = shown(|out| listing(out, &example(), Style { json: true, for_people: true }));
        assert_eq!(serde_json::from_str::<Listing>(&pretty).unwrap(), example());
        let text = shown(|out| added(out, &example().rules[0], JSON));
        assert_eq!(serde_json::from_str::<ListedRule>(&text).unwrap(), example().rules[0]);
        assert_eq!(shown(|out| deleted(out, 2, JSON)), "{\"deleted\":2}\n");
        let text = shown(|out| policy_set(out, Chain::Input, Verdict::Drop, JSON));
        assert_eq!(text, "{\"chain\":\"INPUT\",\"policy\":\"DROP\"}\n");
    }

    #[test]
    fn changes_are_said_in_a_line() {
        assert_eq!(
            shown(|out| added(out, &example().rules[1], PIPE)),
            "added rule 7 at position 1 of OUTPUT, host: ACCEPT every packet -l l4\n"
        );
        assert_eq!(shown(|out| deleted(out, 1, PIPE)), "deleted 1 rule\n");
        assert_eq!(shown(|out| deleted(out, 0, PIPE)), "deleted 0 rules\n");
    }

    #[test]
    fn paths_stay_on_their_line() {
        use std::ffi::OsStr;
        let odd = OsStr::from_bytes(b"a\n\\\xff").into();
        let digest = Digest::of(b"abc");
        let files = DigestListing { files: vec![HashedFile { path: odd, digest }], aggregate: None };
        let mut out = Vec::new();
        digests(&mut out, &files, TERMINAL).unwrap();
        assert_eq!(out, [b"\\", digest.to_string().as_bytes(), b"  a\\n\\\\\xff\n"].concat());
        let value: serde_json::Value = serde_json::from_str(&shown(|out| digests(out, &files, JSON))).unwrap();
        assert_eq!(value["files"][0]["path_hex"], "610a5cff");
        assert_eq!(value["files"][0]["digest"], digest.to_string());
        assert!(value["aggregate"].is_null());
    }

    #[test]
    fn a_status_says_what_is_missing() {
        let queue = QueueStatus {
            chain: Some(Chain::Output),
            packets: 10,
            accepted: 7,
            receive_buffer: 1 << 21,
            stale: [("exec".to_string(), 3)].into(),
            ..QueueStatus::default()
        };
        let state = Status {
            daemon: "0.1.0".into(),
            pid: 42,
            uptime_ms: 3_723_500,
            clock: "tsc".into(),
            rules_generation: 9,
            rules: 2,
            probe: ProbeStatus {
                loaded: true,
                why_not: None,
                missing: vec![MissingHook { hook: "fork".into(), why: "no BTF".into() }],
                cost: vec!["slower".into()],
                lost_events: 0,
            },
            queues: vec![queue],
            events_omitted: 0,
            digests: 5,
            bypass_capable: vec![
                BypassSocket {
                    family: BypassFamily::Packet,
                    inode: 4711,
                    holders: vec![
                        BypassHolder { pid: 7, path: Some("/sbin/a\nb".into()) },
                        BypassHolder { pid: 8, path: None },
                    ],
                },
                BypassSocket { family: BypassFamily::Xdp, inode: 4712, holders: vec![] },
            ],
        };
        let text = shown(|out| status(out, &state, PIPE));
        for part in [
            "app-fw 0.1.0, pid 42, up 1:02:03",
            "missing hook fork: no BTF",
            "slower",
            "2048 KiB",
            "exec 3",
            "bypass   2 sockets",
            "AF_PACKET 4711: pid 7 /sbin/a\\nb, pid 8 ?\n",
            "AF_XDP 4712: no holder was found\n",
        ] {
            assert!(text.contains(part), "{text} should say {part}");
        }
        let json = shown(|out| status(out, &state, JSON));
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), state);
        let unloaded = ProbeStatus { loaded: false, why_not: Some("no root".into()), ..state.probe.clone() };
        assert!(shown(|out| write_probe(out, &unloaded)).contains("not loaded: no root"));
    }
}
