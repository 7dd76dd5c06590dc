//! `cargo xtask man DIR`: manual pages and completions. The programs write them, each knowing its own arguments.

use anyhow::{Context, Result};

use crate::cargo;

/// Builds what writes them, and lets it.
///
/// # Errors
/// It cannot be built, or the directory cannot be written to.
pub fn run(dir: &str) -> Result<()> {
    let dir = std::path::absolute(dir).context("the directory")?;
    let dir = dir.to_str().context("the directory is no UTF-8")?;
    cargo::run(&["run", "--quiet", "--package", "ctl-fw", "--", "man", dir])?;
    cargo::run(&["run", "--quiet", "--package", "app-fw", "--example", "man", "--", dir])
}
