//! Calls of cargo, and where it puts things.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::Running;

/// A build that takes longer hangs.
const LONGEST_BUILD: Duration = Duration::from_secs(3600);

/// The project's folder.
pub fn root() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

/// A cargo command line in the project's folder.
pub fn command(arguments: &[&str]) -> Command {
    // Cargo says which cargo runs us; that one has the toolchain the project was started with.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root());
    command
}

/// Runs cargo with its output shown.
///
/// # Errors
/// It failed.
pub fn run(arguments: &[&str]) -> Result<()> {
    run_command(&mut command(arguments)).with_context(|| format!("`cargo {}`", arguments.join(" ")))
}

/// As [`run`], but a signal ([`crate::interrupt`]) ends it at once.
///
/// # Errors
/// It failed or was interrupted.
pub fn run_interruptibly(arguments: &[&str]) -> Result<()> {
    let status = Running::start(&mut command(arguments))?.wait(LONGEST_BUILD)?;
    if !status.success() {
        bail!("`cargo {}` failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Runs any command in the foreground, its output shown: Ctrl-C reaches it too. A signal to this program alone takes
/// effect when the command has ended.
///
/// # Errors
/// It could not be started, or failed, or a signal came meanwhile.
pub fn run_command(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting `{}`", harness::process::shown(command)))?;
    crate::interrupt::check()?;
    if !status.success() {
        bail!("failed ({status})");
    }
    Ok(())
}

/// The folder for binaries of the profile `debug` or `release`.
///
/// # Errors
/// Cargo cannot read the workspace.
pub fn binaries(profile: &str) -> Result<PathBuf> {
    let output = command(&["metadata", "--format-version=1", "--no-deps"]).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("`cargo metadata`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo's JSON")?;
    let target = metadata["target_directory"].as_str().context("cargo names no target directory")?;
    Ok(PathBuf::from(target).join(profile))
}
