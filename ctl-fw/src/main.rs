//! The command line of app-fw.

use std::io::{self, BufWriter, IsTerminal};
use std::os::fd::AsFd;
use std::process::ExitCode;

use ctl_fw::Console;

fn main() -> ExitCode {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let (out_is_terminal, err_is_terminal) = (stdout.is_terminal(), stderr.is_terminal());
    let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0));
    // https://no-color.org: any value that is not empty.
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let colour = !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let handle = io::stdout();
    let (mut out, mut err) = (BufWriter::new(stdout.lock()), stderr.lock());
    let out_handle = Some(handle.as_fd());
    let mut console =
        Console { out: &mut out, err: &mut err, out_is_terminal, err_is_terminal, colour, width, out_handle };
    ctl_fw::run(std::env::args_os(), &mut console).into()
}
