//! `monitor`: a line for everything that happens.

use shared::control::{Announcement, Answer, Request, Revision};
use shared::event::{Event, EventFlow, EventOwner, SocketEvent};

use super::history::{author, seconds};
use crate::Exit;
use crate::session::{self, Session};
use crate::style::{Style, Tone, count, plain};
use crate::trouble::Trouble;

/// `monitor`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct MonitorArgs {
    /// Tell of packets too: those that do not pass, and those of rules with --log.
    #[arg(long)]
    pub packets: bool,
}

impl MonitorArgs {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let mut client = session.connect()?;
        match session::answer(client.call(&Request::Subscribe { changes: true, packets: self.packets })?)? {
            Answer::Subscribed => {}
            _ => return Err(Trouble::OtherAnswer),
        }
        // A line for each, also for a person: never spread out.
        let style = session.style;
        loop {
            if !client.wait(session.out_handle())? {
                return Ok(Exit::Done);
            }
            let announcement = match client.announcement() {
                Err(crate::client::ClientError::Closed) => return Err(Trouble::Other("app-fw has ended".into())),
                announcement => announcement?,
            };
            let text = if style.json {
                serde_json::to_string(&announcement).map_err(std::io::Error::from)?
            } else {
                line(&announcement, style)
            };
            writeln!(session.out(), "{text}")?;
            session.out().flush()?;
        }
    }
}

fn line(announcement: &Announcement, style: Style) -> String {
    match announcement {
        Announcement::Changed(revision) => change(revision),
        Announcement::Packet(event) => packet(event, style),
        Announcement::Socket(event) => socket(event),
        Announcement::Missed(missed) => {
            style.paint(Tone::Caution, &format!("({missed} announcements were left out: this reader was too slow)"))
        }
    }
}

fn change(revision: &Revision) -> String {
    let what = match (revision.changes.as_slice(), &revision.note) {
        ([one], _) => plain(one),
        (_, Some(note)) => plain(note),
        ([first, rest @ ..], None) => format!("{} and {} more", plain(first), rest.len()),
        ([], None) => "nothing".into(),
    };
    let changes = match revision.changes.len() {
        0 | 1 => String::new(),
        more => format!(", {}", count(more, "change")),
    };
    format!("{} revision {} by {}{changes}: {what}", seconds(revision), revision.number, author(revision))
}

fn packet(event: &Event, style: Style) -> String {
    let verdict = style.paint(Tone::of(event.verdict), &event.verdict.to_string());
    let flow = event.flow.as_ref().map_or_else(|| "(headers unreadable)".into(), flow);
    let why = match &event.rule {
        Some(rule) => format!("rule {}", rule.id),
        None => event.reason.to_string(),
    };
    format!("{} {verdict} {} {flow} {} {why}", plain(&event.time), event.chain, owners(&event.owners))
}

fn flow(flow: &EventFlow) -> String {
    let end = |address: std::net::IpAddr, port: Option<u16>| match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let (from, to) = (end(flow.source, flow.source_port), end(flow.destination, flow.destination_port));
    format!("{} {from} -> {to}", flow.protocol)
}

/// Paths are chosen by whoever runs the program: no line ends, no terminal codes.
fn owners(owners: &[EventOwner]) -> String {
    let owner = |owner: &EventOwner| {
        let path = owner.path.as_deref().map_or_else(|| "?".into(), plain);
        let pid = owner.pid.map(|pid| format!("[{pid}]")).unwrap_or_default();
        let undetermined = owner.undetermined.map(|cause| format!("({cause})")).unwrap_or_default();
        format!("{path}{pid}{undetermined}")
    };
    match owners {
        [] => "-".into(),
        some => some.iter().map(owner).collect::<Vec<_>>().join(","),
    }
}

fn socket(event: &SocketEvent) -> String {
    let inode = event.inode.map(|inode| format!(" {inode}")).unwrap_or_default();
    let owners = owners(&event.owners);
    format!("{} {}{inode} passes beside all rules: {owners}", plain(&event.time), event.family.token())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_a_line_whatever_its_program_is_called() {
        let event = serde_json::json!({ "packet": {
            "time": "2026-11-21T12:00:00.000001Z", "verdict": "DROP", "reason": "rule", "chain": "OUTPUT", "length": 60,
            "flow": { "protocol": "tcp", "source": "::1", "destination": "::2", "source_port": 1, "destination_port": 2 },
            "owners": [{ "pid": 7, "path": "/a\nb\u{1b}[31m" }, { "undetermined": "process-gone" }],
            "rule": { "id": 3, "text": "" }, "omitted": 0,
        }});
        let announcement: Announcement = serde_json::from_value(event).unwrap();
        assert_eq!(
            line(&announcement, Style::default()),
            "2026-11-21T12:00:00.000001Z DROP OUTPUT tcp [::1]:1 -> [::2]:2 /a\\nb\\u{1b}[31m[7],?(process-gone) rule 3"
        );
        let event = serde_json::json!({ "socket": {
            "time": "2026-11-21T12:00:00Z", "event": "bypass-capable", "family": "AF_PACKET", "inode": 9, "owners": [],
        }});
        let announcement: Announcement = serde_json::from_value(event).unwrap();
        let expected = "2026-11-21T12:00:00Z AF_PACKET 9 passes beside all rules: -";
        assert_eq!(line(&announcement, Style::default()), expected);
    }
}
