//! `cargo xtask bench`: app-fw side by side with other firewalls and none.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cargo, install};

/// Builds what is compared and what compares, and becomes the latter, with `more` options: so a signal reaches it, and it
/// takes away all that it has made. Tables and a picture come to `bench` in the target directory, unless the options say
/// otherwise. Returns only errors.
///
/// # Errors
/// It cannot be built or begun.
pub fn run(more: &[&str]) -> Result<()> {
    install::require_root()?;
    install::for_bench()?;
    cargo::run(&["build", "--release", "--package", "app-fw", "--package", "ctl-fw"])?;
    cargo::run(&["build", "--release", "--package", "benches", "--bin", "speed"])?;
    let binaries = cargo::binaries("release")?;
    let mut command = Command::new(binaries.join("speed"));
    if !more.iter().any(|option| *option == "--out" || option.starts_with("--out=")) {
        command.arg("--out").arg(binaries.with_file_name("bench"));
    }
    Err(command.args(more).exec()).context("starting the comparison")
}
