//! Packet counters of the kernel, where packets arrive.

use std::cell::Cell;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Namespace;
use crate::process::{Captured, run};

const LIMIT: Duration = Duration::from_secs(10);
const TABLE: &str = "inet afw_count";

/// Where in a namespace packets are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// As they come in from the wire, before anything in that namespace may drop them.
    Arrived,
    /// After the filter table's INPUT chain let them pass, and with it the daemon's verdict on that chain.
    Delivered,
    /// After the filter table's OUTPUT chain let them pass.
    Sent,
}

impl Place {
    /// Chain name and nftables hook specification. Priorities: raw is -300, the iptables filter table is 0.
    fn chain(self) -> (&'static str, &'static str) {
        match self {
            Self::Arrived => ("arrived", "type filter hook prerouting priority -300"),
            Self::Delivered => ("delivered", "type filter hook input priority 300"),
            Self::Sent => ("sent", "type filter hook output priority 300"),
        }
    }
}

/// Counts the packets that match one nftables expression, from its creation on.
///
/// A count of nothing proves something only if the same filter was seen to count before: [`assert_silent`] insists.
///
/// [`assert_silent`]: Self::assert_silent
#[derive(Debug)]
pub struct Counter<'w> {
    namespace: &'w Namespace,
    name: String,
    expression: String,
    marked: Cell<u64>,
}

impl<'w> Counter<'w> {
    /// Starts counting packets that match `expression` (`tcp dport 80`, `ip protocol icmp`...). `name` must be unique
    /// in the namespace.
    ///
    /// # Errors
    /// nftables refused the expression.
    pub fn start(namespace: &'w Namespace, place: Place, expression: &str, name: String) -> Result<Self> {
        let (chain, hook) = place.chain();
        let script = format!(
            "add table {TABLE}; \
             add chain {TABLE} {chain} {{ {hook}; policy accept; }}; \
             add counter {TABLE} {name}; \
             add rule {TABLE} {chain} {expression} counter name {name}"
        );
        nft(namespace, &[&script]).with_context(|| format!("counting `{expression}`"))?;
        Ok(Self { namespace, name, expression: expression.to_owned(), marked: Cell::new(0) })
    }

    /// Packets since the start.
    ///
    /// # Errors
    /// The counter is gone.
    pub fn total(&self) -> Result<u64> {
        let listed = nft(self.namespace, &["-j", &format!("list counter {TABLE} {}", self.name)])?;
        let listed: serde_json::Value = serde_json::from_str(&listed).context("nft's JSON")?;
        listed["nftables"]
            .as_array()
            .and_then(|objects| objects.iter().find_map(|object| object["counter"]["packets"].as_u64()))
            .with_context(|| format!("no counter {} in {listed}", self.name))
    }

    /// Packets since the last call of this method, or since the start. Before silence is expected of a filter for TCP,
    /// let the connections end first: [`World::wait_connections_closed`](crate::World::wait_connections_closed).
    ///
    /// # Errors
    /// The counter is gone.
    pub fn delta(&self) -> Result<u64> {
        let total = self.total()?;
        Ok(total - self.marked.replace(total))
    }

    /// Asserts that nothing was counted since the last [`delta`](Self::delta), by a filter that has counted before.
    ///
    /// # Errors
    /// Packets came, or none ever did, so the silence would prove nothing.
    pub fn assert_silent(&self) -> Result<()> {
        ensure!(
            self.marked.get() > 0,
            "`{}` never counted a packet: its silence proves nothing (let one pass first, then call delta())",
            self.expression
        );
        let new = self.delta()?;
        if new > 0 {
            bail!("{new} packets matching `{}` arrived", self.expression);
        }
        Ok(())
    }
}

fn nft(namespace: &Namespace, arguments: &[&str]) -> Result<String> {
    let mut command: Command = namespace.command("nft");
    run(command.args(arguments), LIMIT).and_then(Captured::ok)
}
