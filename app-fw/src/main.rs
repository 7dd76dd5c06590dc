//! app-fw, the daemon.

use std::io::IsTerminal;
use std::process::ExitCode;

use app_fw::args::Args;
use app_fw::daemon;
use clap::{CommandFactory, Parser, error::ErrorKind};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(message) = args.check() {
        Args::command().error(ErrorKind::ValueValidation, message).exit();
    }
    // Standard output belongs to events.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(EnvFilter::try_from_env("APP_FW_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    match daemon::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("app-fw: {error}");
            ExitCode::from(1)
        }
    }
}
