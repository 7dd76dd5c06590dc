//! Manual pages and completions.

use std::io;
use std::path::Path;

/// The completion script of a program for a shell.
pub fn completions(command: &mut clap::Command, shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, command, name, &mut script);
    script
}
/// Stub.
pub fn write(_dir: &Path) -> io::Result<()> {
    Ok(())
}
