//! Measures what many rules cost: packets, whole rulesets, single changes, and packets while rules are changed.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use benches::comparison::{Plan, compare};
use benches::contender::{Cache, Contender, Programs, digest_of};
use benches::lab::Lab;
use benches::measure::Measure;
use benches::supervise::{Interrupted, Supervisor, exec_in, own_path};
use benches::{changes, load, machine, pauses, report, rulesets};
use clap::{Parser, Subcommand, ValueEnum};

/// Measure what many rules cost
///
/// Root is needed. Everything happens in scratch network namespaces, which are removed at the end, however it comes. Tables
/// go to standard output, progress to standard error. The exit status does not depend on the figures: 0 measured, 2 could
/// not be measured, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "rules", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// How many rules are many
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    rules: u32,
    /// Length of each run with packets, seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Packets and connections per second with one rule and with many
    Packets,
    /// Whole rulesets by ctl-fw restore and iptables-restore
    Restore,
    /// One change among many rules
    Change,
    /// How long packets wait while rules are changed
    Pauses,
}

/// What the program is when it starts itself again.
#[derive(Debug, Subcommand)]
enum Role {
    /// Become a command inside a network namespace
    #[command(hide = true)]
    ExecIn {
        netns: PathBuf,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Receive and count a load
    #[command(hide = true)]
    Serve { measure: Measure, address: IpAddr },
    /// Send a load
    #[command(hide = true)]
    Drive { measure: Measure, address: IpAddr, seconds: f64 },
    /// Receive packets with a time in them
    #[command(hide = true)]
    ReceiveStamped { address: IpAddr, seconds: f64 },
    /// Send packets with a time in them
    #[command(hide = true)]
    SendStamped { address: IpAddr, seconds: f64 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        None => measure(&arguments),
        Some(Role::ExecIn { netns, command }) => exec_in(netns, command),
        Some(Role::Serve { measure, address }) => load::serve(*measure, *address),
        Some(Role::Drive { measure, address, seconds }) => {
            load::drive(*measure, *address, Duration::from_secs_f64(*seconds))
        }
        Some(Role::ReceiveStamped { address, seconds }) => pauses::receive(*address, Duration::from_secs_f64(*seconds)),
        Some(Role::SendStamped { address, seconds }) => pauses::send(*address, Duration::from_secs_f64(*seconds)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref::<Interrupted>().is_some() => {
            eprintln!("rules: {error:#}; everything is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("rules: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "root is needed: network namespaces are made and queues are bound");
    let own = own_path()?;
    let programs = Programs { app_fw: own.with_file_name("app-fw"), ctl_fw: own.with_file_name("ctl-fw") };
    for path in [&programs.app_fw, &programs.ctl_fw] {
        if !path.is_file() {
            bail!("{} is not there: build it (cargo build --release)", path.display());
        }
    }
    let supervisor = Supervisor::new()?;
    let folder = tempfile::tempdir().context("cannot make a directory")?;
    let digest = digest_of(&own)?;
    let file = |count: u32| -> Result<PathBuf> {
        let path = folder.path().join(count.to_string());
        std::fs::write(&path, rulesets::mixed(count, 0, &digest)).context("cannot write rules")?;
        Ok(path)
    };
    let (rules, rounds) = (arguments.rules, usize::from(arguments.rounds));
    let duration = Duration::from_secs(arguments.seconds.into());
    let wants = |part: Part| arguments.only.is_empty() || arguments.only.contains(&part);
    print!("{}", machine::facts()?);
    println!("- {rounds} rounds; median (least-most)\n");
    if wants(Part::Packets) {
        packets(&supervisor, &programs, [&file(1)?, &file(rules)?], rules, (duration, rounds))?;
    }
    if wants(Part::Restore) {
        println!("{}", changes::restores(&supervisor, &programs, &[rules / 10, rules], rounds)?);
    }
    // After the packets, which have namespaces of the same names.
    let lab = Lab::create(false)?;
    if wants(Part::Change) {
        println!("{}", changes::singles(&supervisor, &lab, &programs, &file(rules)?)?);
    }
    if wants(Part::Pauses) {
        let texts = [0, 1].map(|seed| rulesets::mixed(rules, seed, &digest));
        println!("{}", pauses::table_of(&supervisor, &lab, &programs, &texts, (duration, rounds))?);
    }
    Ok(())
}

/// With many rules, at least so much of what one rule lets through.
const TARGET: f64 = 0.95;

fn packets(
    supervisor: &Supervisor,
    programs: &Programs,
    [one, many]: [&Path; 2],
    count: u32,
    (duration, rounds): (Duration, usize),
) -> Result<()> {
    let with = |name: String, file: &Path| Contender::AppFw {
        name,
        options: Vec::new(),
        cache: Cache::Off,
        programs: programs.clone(),
        ruleset: Some(file.to_owned()),
        flows: 0,
    };
    let contenders =
        vec![with("1 rule".into(), one), with("1 rule again".into(), one), with(format!("{count} rules"), many)];
    let measures = vec![Measure::Udp64, Measure::UdpNew, Measure::Connect1];
    let plan = Plan { contenders, measures, duration, rounds, ipv6: false };
    let samples = compare(supervisor, &plan)?;
    print!("{}", report::circumstances(&plan, &samples));
    println!("\n{}", report::figures(&plan, &samples));
    println!("{}", report::ratio_table(&plan, &samples, 0));
    for index in 1..plan.contenders.len() {
        print!("{}", report::verdicts(&plan, &samples, (index, 0), TARGET));
    }
    println!();
    Ok(())
}
