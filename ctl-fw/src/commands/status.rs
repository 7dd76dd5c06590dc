//! `status`: how the daemon is.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use shared::control::{
    Answer, BypassHolder, BypassSocket, CachedPackets, HookStatus, HooksStatus, KernelCacheStatus, ProbeStatus,
    Request, Status,
};

use crate::Exit;
use crate::session::Session;
use crate::style::{Style, Tone, json, table};
use crate::trouble::Trouble;

/// Asks and shows.
pub(super) fn show(session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    let Answer::Status(answer) = session.ask(&Request::Status)? else { return Err(Trouble::OtherAnswer) };
    let style = session.style;
    status(session.out(), &answer, style)?;
    Ok(Exit::Done)
}

/// How the daemon is.
fn status(out: &mut dyn Write, status: &Status, style: Style) -> io::Result<()> {
    if style.json {
        return json(out, status, style);
    }
    let up = Duration::from_millis(status.uptime_ms).as_secs();
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    writeln!(out, "app-fw {}, pid {}, up {hours}:{minutes:02}:{seconds:02}", status.daemon, status.pid)?;
    if status.audit {
        let audit = style.paint(Tone::Caution, "audit    nothing is dropped, only recorded (--audit; ctl-fw learn)");
        writeln!(out, "{audit}")?;
    }
    writeln!(out, "rules    {} (generation {})", status.rules, status.rules_generation)?;
    writeln!(out, "digests  {} known without hashing", status.digests)?;
    writeln!(out, "events   {} left out", status.events_omitted)?;
    writeln!(out, "clock    {}", status.clock)?;
    write_probe(out, &status.probe)?;
    write_cache(out, &status.kernel_cache)?;
    write_hooks(out, &status.hooks, style)?;
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
                queue.number.to_string().into(),
                queue.chain.map_or("-".into(), |chain| chain.to_string().into()),
                queue.packets.to_string().into(),
                queue.accepted.to_string().into(),
                queue.dropped.to_string().into(),
                queue.parked.to_string().into(),
                queue.batches.to_string().into(),
                queue.overruns.to_string().into(),
                bytes(queue.receive_buffer).into(),
                queue.flow_hits.to_string().into(),
                queue.flow_misses.to_string().into(),
            ]
        })
        .collect();
    table(out, headers, &rows, "><>>>>>>>>>", style)?;
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

/// How many packets were settled in the kernel, and why others were not.
fn write_cache(out: &mut dyn Write, cache: &KernelCacheStatus) -> io::Result<()> {
    if let Some(why) = &cache.why_not {
        return writeln!(out, "cache    none in the kernel: {why}");
    }
    let settled: u64 = cache.chains.iter().map(|chain| chain.accepted + chain.dropped).sum();
    let missed: u64 = cache.chains.iter().flat_map(|chain| chain.missed.values()).sum();
    let all = settled + missed;
    if all == 0 {
        return writeln!(out, "cache    no packet has met it: no rule of iptables calls its programs");
    }
    // In tenths of a percent, rounded down: 100 % is said only where nothing was missed.
    let share = u128::from(settled) * 1000 / u128::from(all);
    writeln!(out, "cache    {settled} of {all} packets settled in the kernel ({}.{} %)", share / 10, share % 10)?;
    for chain in &cache.chains {
        let CachedPackets { chain, accepted, dropped, missed } = chain;
        let sum: u64 = missed.values().sum();
        write!(out, "         {chain}: accepted {accepted}, dropped {dropped}, to the queue {sum}")?;
        let reasons: Vec<_> = missed.iter().map(|(why, count)| format!("{why} {count}")).collect();
        writeln!(out, "{}{}", if reasons.is_empty() { "" } else { ": " }, reasons.join(", "))?;
    }
    Ok(())
}

/// How packets get to the daemon. Nothing if they get there by rules made by hand, and no program is there for these.
fn write_hooks(out: &mut dyn Write, hooks: &HooksStatus, style: Style) -> io::Result<()> {
    for (index, hook) in hooks.rules.iter().enumerate() {
        let line = hook_line(hook);
        let line = if hook.in_place { line } else { style.paint(Tone::Bad, &line).to_string() };
        writeln!(out, "{}{line}", if index == 0 { "hooks    " } else { "         " })?;
    }
    if let Some(pins) = &hooks.pins {
        writeln!(out, "pins     {pins}")?;
    }
    for (index, note) in hooks.notes.iter().enumerate() {
        writeln!(out, "{}{note}", if index == 0 { "notes    " } else { "         " })?;
    }
    Ok(())
}

fn hook_line(hook: &HookStatus) -> String {
    let state = match (hook.in_place, hook.gone_ms) {
        (true, _) => "in place".into(),
        (false, None) => "NOT in place".into(),
        (false, Some(ms)) => format!("NOT in place, gone for {}.{} s", ms / 1000, ms % 1000 / 100),
    };
    let back = match hook.put_back {
        0 => String::new(),
        1 => ", put back once".into(),
        times => format!(", put back {times} times"),
    };
    let why = hook.why_not.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    format!("{} {} {}: {state}{back}{why}", hook.hook, hook.family, hook.tables)
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

#[cfg(test)]
mod tests {
    use super::*;
    use shared::Chain;
    use shared::control::{MissingHook, QueueStatus};
    use shared::event::BypassFamily;

    fn shown(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
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
            audit: false,
            probe: ProbeStatus {
                loaded: true,
                why_not: None,
                missing: vec![MissingHook { hook: "fork".into(), why: "no BTF".into() }],
                cost: vec!["slower".into()],
                lost_events: 0,
            },
            kernel_cache: KernelCacheStatus {
                why_not: None,
                chains: vec![CachedPackets {
                    chain: Chain::Output,
                    accepted: 996,
                    dropped: 2,
                    missed: [("unknown".to_string(), 1), ("process".to_string(), 1)].into(),
                }],
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
            hooks: HooksStatus {
                rules: vec![
                    HookStatus {
                        hook: "OUTPUT".into(),
                        family: "ipv4".into(),
                        tables: "iptables (nft)".into(),
                        in_place: true,
                        gone_ms: None,
                        put_back: 2,
                        why_not: None,
                    },
                    HookStatus {
                        hook: "FORWARD:docker0".into(),
                        family: "ipv6".into(),
                        tables: "ip6tables (legacy)".into(),
                        in_place: false,
                        gone_ms: Some(12_345),
                        put_back: 0,
                        why_not: Some("no".into()),
                    },
                ],
                pins: Some("/run/app-fw/bpf/x".into()),
                notes: vec!["one".into(), "two".into()],
            },
        };
        let text = shown(|out| status(out, &state, Style::default()));
        for part in [
            "app-fw 0.1.0, pid 42, up 1:02:03",
            "missing hook fork: no BTF",
            "slower",
            "cache    998 of 1000 packets settled in the kernel (99.8 %)\n",
            "OUTPUT: accepted 996, dropped 2, to the queue 2: process 1, unknown 1\n",
            "2048 KiB",
            "exec 3",
            "bypass   2 sockets",
            "AF_PACKET 4711: pid 7 /sbin/a\\nb, pid 8 ?\n",
            "AF_XDP 4712: no holder was found\n",
            "hooks    OUTPUT ipv4 iptables (nft): in place, put back 2 times\n",
            "         FORWARD:docker0 ipv6 ip6tables (legacy): NOT in place, gone for 12.3 s: no\n",
            "pins     /run/app-fw/bpf/x\nnotes    one\n         two\n",
        ] {
            assert!(text.contains(part), "{text} should say {part}");
        }
        let json = shown(|out| status(out, &state, Style { json: true, ..Style::default() }));
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), state);
        let unloaded = ProbeStatus { loaded: false, why_not: Some("no root".into()), ..state.probe.clone() };
        assert!(shown(|out| write_probe(out, &unloaded)).contains("not loaded: no root"));
        let none = KernelCacheStatus { why_not: Some("no bpffs".into()), chains: Vec::new() };
        assert!(shown(|out| write_cache(out, &none)).contains("none in the kernel: no bpffs"));
        assert!(shown(|out| write_cache(out, &KernelCacheStatus::default())).contains("no packet has met it"));
    }
}
