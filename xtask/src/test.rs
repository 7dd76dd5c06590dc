//! `cargo xtask test`: everything that must hold before a change is handed in.

use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use harness::Kind;

use crate::{cargo, install};

/// Passed and failed tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Total {
    passed: u64,
    failed: u64,
}

/// Black-box tests whose verdicts must be the same without the verdict cache in the kernel: who really sent it, and the rules. Those
/// without the probe have no cache in the first place.
const WITHOUT_CACHE: [&str; 7] =
    ["bypasses::", "owners::probe", "images::", "rules::", "says::", "standing::", "model::"];

impl Total {
    fn judged(self) -> Result<()> {
        match self {
            Total { failed: 0, passed: 0 } => bail!("no test ran"),
            Total { failed: 0, .. } => Ok(()),
            Total { failed, .. } => bail!("{failed} tests failed; their output is above"),
        }
    }
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Total) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs all the checks, then the tests. A failing check does not keep the others from running.
///
/// # Errors
/// The checks could not be begun. A check that fails is no error but the exit code 1, so that the totals are the last
/// line in either case.
pub fn run(more: &[&str]) -> Result<ExitCode> {
    install::require_root()?;
    let mut failed: Vec<&str> = Vec::new();
    step("packages", &mut failed, install::for_tests);
    for kind in [Kind::Test, Kind::Demo] {
        for name in kind.sweep()? {
            println!("removed {name}, left by a run that was killed");
        }
    }
    step("format", &mut failed, || cargo::run(&["fmt", "--all", "--check"]));
    step("clippy", &mut failed, || {
        cargo::run(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
    });
    step("rustdoc", &mut failed, || {
        let arguments = ["doc", "--quiet", "--workspace", "--no-deps"];
        cargo::run_command(cargo::command(&arguments).env("RUSTDOCFLAGS", "-Dwarnings"))
    });
    // Black-box tests start the daemon, ctl-fw and the actor, which cargo does not build for another package's tests.
    step("binaries", &mut failed, || cargo::run(&["build", "--quiet", "--workspace", "--bins"]));
    let mut total = Total::default();
    step("tests", &mut failed, || {
        let all = tests(&mut cargo::command(&["test", "--workspace", "--no-fail-fast"]), more)?;
        total += all;
        all.judged()
    });
    // Who asks for some tests gets those.
    if more.is_empty() {
        step("tests without the verdict cache", &mut failed, || {
            // Of the workspace, or its dependencies would be built again with other features.
            let mut command = cargo::command(&["test", "--workspace", "--test", "blackbox", "--no-fail-fast", "--"]);
            let again = tests(command.env(harness::kernel_cache::SWITCH, "off"), &WITHOUT_CACHE)?;
            total += again;
            again.judged()
        });
    }
    if !failed.is_empty() {
        println!("Not as it should be: {}", failed.join(", "));
    }
    // The last line, in the form that CI reads.
    println!("{} passed, {} failed", total.passed, total.failed);
    std::io::stdout().flush()?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn step(name: &'static str, failed: &mut Vec<&str>, work: impl FnOnce() -> Result<()>) {
    println!("== {name}");
    let begun = Instant::now();
    let result = work();
    let seconds = begun.elapsed().as_secs_f64();
    match result {
        Ok(()) => println!("== {name}: good ({seconds:.1} s)\n"),
        Err(error) => {
            println!("== {name}: FAILED ({seconds:.1} s): {error:#}\n");
            failed.push(name);
        }
    }
}

/// Runs cargo test, shows what it says, and adds up the results of all test programs.
fn tests(command: &mut Command, more: &[&str]) -> Result<Total> {
    let mut child = command
        .args(more)
        // A failing test says what was wrong in words; the trace behind an anyhow error would bury them.
        .env("RUST_LIB_BACKTRACE", "0")
        // Each black-box test keeps both CPUs of a small machine busy by itself, and some measure what a loaded machine
        // blurs: one at a time, unless somebody asks for more.
        .env("RUST_TEST_THREADS", std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| "1".into()))
        .stdout(Stdio::piped())
        .spawn()
        .context("starting `cargo test`")?;
    let output = child.stdout.take().context("no pipe")?;
    let mut total = Total::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        if let Some(result) = result_of(&line) {
            total += result;
        }
    }
    let status = child.wait()?;
    // A test program that crashed has no result line, and doctests or a build may fail without one.
    if !status.success() && total.failed == 0 {
        total.failed = 1;
    }
    Ok(total)
}

/// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
fn result_of(line: &str) -> Option<Total> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        counts.split("; ").find_map(|part| part.strip_suffix(what)).and_then(|number| number.trim().parse().ok())
    };
    Some(Total { passed: count("passed")?, failed: count("failed")? })
}

#[cfg(test)]
mod tests {
    use super::{Total, result_of};

    #[test]
    fn result_lines_are_read() {
        let line = "test result: FAILED. 14 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.58s";
        assert_eq!(result_of(line), Some(Total { passed: 14, failed: 1 }));
        assert_eq!(result_of("test some::name ... ok"), None);
        assert_eq!(result_of("test result: ok"), None);
    }
}
