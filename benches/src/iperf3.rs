//! TCP bulk by iperf3: one connection, bytes counted at the receiver.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;
use crate::load::PORT;
use crate::measure::{MARGIN, Sample};
use crate::supervise::{Supervisor, Ward, command_in};

/// How it is called.
pub const PROGRAM: &str = "iperf3";

/// One connection from the client's namespace to the server's.
///
/// # Errors
/// iperf3 is not there, fails, or does not end in time, or [`crate::supervise::Interrupted`].
pub fn run(supervisor: &Supervisor, lab: &Lab, duration: Duration) -> Result<Sample> {
    let (address, port) = (lab.server_address().to_string(), PORT.to_string());
    let mut server = command_in(&lab.server.path(), PROGRAM)?;
    server.args(["-s", "-1", "--forceflush", "-B", &address, "-p", &port]).stdout(Stdio::piped());
    let mut server = Ward::start(PROGRAM, &mut server)?;
    while !server.line(supervisor, Instant::now() + MARGIN)?.contains("listening") {}
    let mut client = command_in(&lab.client.path(), PROGRAM)?;
    // It takes whole seconds.
    let seconds = duration.as_secs_f64().ceil().to_string();
    client.args(["-c", &address, "-p", &port, "-t", &seconds, "-J"]).stdout(Stdio::piped());
    let mut client = Ward::start(PROGRAM, &mut client)?;
    let deadline = Instant::now() + duration + MARGIN;
    let report = client.rest(supervisor, deadline)?;
    let sample = received(&report).with_context(|| format!("iperf3 said {report}"))?;
    ensure!(client.ended(supervisor, deadline)?.success(), "iperf3 failed: {report}");
    server.rest(supervisor, deadline)?;
    server.ended(supervisor, deadline)?;
    Ok(sample)
}

fn received(report: &str) -> Result<Sample> {
    let report: serde_json::Value = serde_json::from_str(report)?;
    let sum = &report["end"]["sum_received"];
    let bytes = sum["bytes"].as_u64().context("no bytes were received")?;
    let seconds = sum["seconds"].as_f64().filter(|&seconds| seconds > 0.0).context("in no time")?;
    ensure!(bytes > 0, "no bytes were received");
    Ok(Sample { rate: bytes as f64 * 8e-9 / seconds, count: bytes, latency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_counts() {
        let report =
            r#"{"end":{"sum_sent":{"bytes":9,"seconds":1.0},"sum_received":{"bytes":1000000000,"seconds":2.0}}}"#;
        let sample = received(report).unwrap();
        assert_eq!((sample.rate, sample.count), (4.0, 1_000_000_000));
        assert!(received(r#"{"error":"unable to connect"}"#).is_err());
        assert!(received("").is_err());
    }
}
