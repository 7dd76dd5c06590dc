//! Writes app-fw(8) and the daemon's completions into a directory; `cargo xtask man DIR` runs it.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use clap::CommandFactory;

fn main() -> io::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "usage: man DIR"))?;
    ctl_fw::manual::write_app_fw(&app_fw::args::Args::command(), &dir)
}
