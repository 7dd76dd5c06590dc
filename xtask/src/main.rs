//! `cargo xtask`: the project's own commands. They install what they need, so that a clean Debian 12 with Rust is enough.

mod bench;
mod cargo;
mod demo;
mod install;
mod interrupt;
mod man;
mod own_network;
mod test;

use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo               install what is missing, build, and show in scratch network namespaces how app-fw
                     blocks curl by its SHA-256 while wget passes; removes everything it made
  test [-- ARGS]     install what the tests need, then format check, clippy, rustdoc, and all tests
                     (ARGS go to `cargo test`)
  bench [-- OPTIONS] install what is missing, build for release, and compare app-fw with no firewall, plain rules,
                     minimal consumers and, if its package is installed, OpenSnitch; tables and a picture come to
                     target/bench (`-- --quick`: two minutes; `-- --help`: all options)
  man DIR            build, and write the manual pages and shell completions into DIR

The first three need root. None touches the machine's own network namespace.
Exit code: 0 all as it should be, 1 something was not (the last line says what), 2 cannot be run like this. That of bench
does not depend on the figures.
";

/// A reason not to start at all: exit code 2.
#[derive(Debug)]
struct Unfit(String);

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            let unfit = error.is::<Unfit>();
            eprintln!("xtask: {error:#}");
            ExitCode::from(if unfit { 2 } else { 1 })
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    match words {
        [] | ["-h" | "--help" | "help"] => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        ["bench"] => bench::run(&[]).map(|()| ExitCode::SUCCESS),
        ["bench", "--", more @ ..] => bench::run(more).map(|()| ExitCode::SUCCESS),
        ["demo"] => demo::run().map(|()| ExitCode::SUCCESS),
        ["man", dir] => man::run(dir).map(|()| ExitCode::SUCCESS),
        ["test"] => test::run(&[]),
        ["test", "--", more @ ..] => test::run(more),
        _ => Err(Unfit(format!("no such command: {}\n\n{USAGE}", words.join(" "))).into()),
    }
}
