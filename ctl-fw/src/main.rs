//! The command line of app-fw.

use std::io::{self, BufWriter, IsTerminal};
use std::process::ExitCode;

use ctl_fw::Console;

fn main() -> ExitCode {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let (out_is_terminal, err_is_terminal) = (stdout.is_terminal(), stderr.is_terminal());
    let (mut out, mut err) = (BufWriter::new(stdout.lock()), stderr.lock());
    let mut console = Console { out: &mut out, err: &mut err, out_is_terminal, err_is_terminal };
    ctl_fw::run(std::env::args_os(), &mut console).into()
}
