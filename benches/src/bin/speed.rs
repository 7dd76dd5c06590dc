//! Measures the firewall against doing nothing and against the least an NFQUEUE consumer can do.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::accept_all;
use benches::comparison::{Plan, compare, measure_once};
use benches::contender::{Contender, Programs};
use benches::lab::Lab;
use benches::load;
use benches::machine;
use benches::measure::Measure;
use benches::report;
use benches::supervise::{Interrupted, Supervisor, exec_in, own_path};
use clap::{Parser, Subcommand, ValueEnum};

/// Measure app-fw against no firewall and against a consumer that accepts everything
///
/// Root is needed. Everything happens in two scratch network namespaces, which are removed at the end, however it comes.
/// Tables go to standard output, progress to standard error. The exit status does not depend on the figures: 0 measured,
/// 2 could not be measured, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "speed", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Arguments {
    /// The daemon to measure [default: app-fw beside this program]
    #[arg(long, value_name = "PATH")]
    app_fw: Option<PathBuf>,
    /// Its command line [default: ctl-fw beside this program]
    #[arg(long, value_name = "PATH")]
    ctl_fw: Option<PathBuf>,
    /// Measure app-fw also with these options, under this name (repeatable)
    #[arg(long, value_name = "NAME=OPTIONS", value_parser = variant)]
    variant: Vec<(String, Vec<String>)>,
    /// Length of each run of a measure
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// How often everything is measured
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only these contenders (none, accept-all, accept-all-again, app-fw, variants) and measures (tcp-bulk, connect-1, connect-8, udp-64, first)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// The contender that the others are divided by
    #[arg(long, value_name = "CONTENDER", default_value = "accept-all")]
    baseline: String,
    /// Use IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Run one measure against one contender until interrupted, for profilers
    #[arg(long, num_args = 2, value_names = ["CONTENDER", "MEASURE"], conflicts_with = "only")]
    hold: Option<Vec<String>>,
    #[command(subcommand)]
    role: Option<Role>,
}

const EXAMPLES: &str = "Examples:
  speed                                          measure everything, about 6 minutes
  speed --only none,accept-all,accept-all-again  without the daemon
  speed --only app-fw,accept-all,udp-64          one measure
  speed --hold app-fw udp-64                     keep the load up while perf looks at the daemon";

/// What the program is when it starts itself again.
#[derive(Debug, Subcommand)]
enum Role {
    /// Accept every packet of one queue: the baseline, to be used by hand
    AcceptAll(accept_all::Options),
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
    Drive {
        measure: Measure,
        address: IpAddr,
        #[arg(value_parser = seconds)]
        seconds: f64,
    },
    /// Send one packet and print how long its echo took, nanoseconds
    #[command(hide = true)]
    SendFirst { address: IpAddr },
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        Ok(_) => Err("must be between 0.1 and 3600".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn variant(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, options) = text.split_once('=').ok_or("must be NAME=OPTIONS")?;
    if name.is_empty() || name.contains(',') {
        return Err("the name must not be empty or hold a comma".to_owned());
    }
    Ok((name.to_owned(), options.split_whitespace().map(str::to_owned).collect()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.role {
        None => measure(&arguments),
        Some(Role::AcceptAll(options)) => accept_all::run(*options),
        Some(Role::ExecIn { netns, command }) => exec_in(netns, command),
        Some(Role::Serve { measure, address }) => load::serve(*measure, *address),
        Some(Role::Drive { measure, address, seconds }) => {
            load::drive(*measure, *address, Duration::from_secs_f64(*seconds))
        }
        Some(Role::SendFirst { address }) => load::send_first(*address),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref::<Interrupted>().is_some() => {
            eprintln!("speed: {error:#}; everything is removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("speed: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("root is needed: network namespaces are made and queues are bound");
    }
    let plan = plan(arguments)?;
    let supervisor = Supervisor::new()?;
    let lab = Lab::create(arguments.ipv6)?;
    if arguments.hold.is_some() {
        return hold(&supervisor, &lab, &plan);
    }
    let facts = machine::facts()?;
    let samples = compare(&supervisor, &lab, &plan)?;
    println!("{facts}- {} rounds of {} s, {}", plan.rounds, arguments.seconds, lab.server_address());
    print!("{}", report::circumstances(&plan, &samples));
    println!("- median over the rounds (least-most)\n\n{}", report::figures(&plan, &samples));
    if let Some(baseline) = plan.contenders.iter().position(|contender| contender.name() == arguments.baseline) {
        println!("{}", report::ratio_table(&plan, &samples, baseline));
        for (index, contender) in plan.contenders.iter().enumerate() {
            if matches!(contender, Contender::AcceptAllAgain | Contender::AppFw { .. }) && index != baseline {
                print!("{}", report::verdicts(&plan, &samples, (index, baseline), report::TARGET));
            }
        }
    }
    Ok(())
}

fn plan(arguments: &Arguments) -> Result<Plan> {
    let known = contenders(arguments)?;
    let names: BTreeSet<&str> =
        arguments.only.iter().chain(arguments.hold.iter().flatten()).map(String::as_str).collect();
    for name in &names {
        let is_contender = known.iter().any(|contender| contender.name() == *name);
        if !is_contender && Measure::from_str(name, false).is_err() {
            let known: Vec<&str> = known.iter().map(Contender::name).collect();
            bail!("{name} is neither a contender ({}) nor a measure (see --help)", known.join(", "));
        }
    }
    if !known.iter().any(|contender| contender.name() == arguments.baseline) {
        bail!("the baseline {} is not a contender", arguments.baseline);
    }
    // Naming none of a kind means all of them.
    let named = |name: &str| names.contains(name);
    let any_contender = known.iter().any(|contender| named(contender.name()));
    let any_measure = Measure::ALL.iter().any(|measure| named(measure.token()));
    let contenders: Vec<Contender> =
        known.into_iter().filter(|contender| !any_contender || named(contender.name())).collect();
    let measures = Measure::ALL.into_iter().filter(|measure| !any_measure || named(measure.token())).collect();
    contenders.iter().try_for_each(assert_built)?;
    let duration = Duration::from_secs_f64(arguments.seconds);
    Ok(Plan { contenders, measures, duration, rounds: usize::from(arguments.rounds) })
}

fn contenders(arguments: &Arguments) -> Result<Vec<Contender>> {
    let own = own_path()?;
    let beside = |name: &str| own.with_file_name(name);
    let programs = Programs {
        app_fw: arguments.app_fw.clone().unwrap_or_else(|| beside("app-fw")),
        ctl_fw: arguments.ctl_fw.clone().unwrap_or_else(|| beside("ctl-fw")),
    };
    let mut all = vec![Contender::None, Contender::AcceptAll, Contender::AcceptAllAgain];
    let plain = ("app-fw".to_owned(), Vec::new());
    for (name, options) in std::iter::once(&plain).chain(&arguments.variant) {
        if all.iter().any(|contender| contender.name() == name) {
            bail!("two contenders are called {name}");
        }
        all.push(Contender::AppFw {
            name: name.clone(),
            options: options.clone(),
            programs: programs.clone(),
            ruleset: None,
        });
    }
    Ok(all)
}

fn assert_built(contender: &Contender) -> Result<()> {
    let Contender::AppFw { programs, .. } = contender else { return Ok(()) };
    let missing = |path: &Path| !path.is_file();
    for path in [&programs.app_fw, &programs.ctl_fw] {
        if missing(path) {
            bail!(
                "{} is not there: build it (cargo build --release), say where it is (--app-fw, --ctl-fw), \
                 or measure without it (--only none,accept-all,accept-all-again)",
                path.display()
            );
        }
    }
    Ok(())
}

fn hold(supervisor: &Supervisor, lab: &Lab, plan: &Plan) -> Result<()> {
    let ([contender], [measure]) = (plan.contenders.as_slice(), plan.measures.as_slice()) else {
        bail!("--hold takes a contender and a measure");
    };
    let mut guard = contender.stand_guard(supervisor, lab)?;
    let consumer = guard.pid().map_or("no consumer".to_owned(), |pid| format!("consumer is process {pid}"));
    eprintln!("holding in {}; {consumer}; end with Ctrl-C", lab.client.path().display());
    loop {
        match measure_once(supervisor, lab, contender, &mut guard, *measure, plan.duration) {
            Ok(_) => {}
            Err(error) if error.downcast_ref::<Interrupted>().is_some() => {
                return guard.stand_down(supervisor).context("after the interruption");
            }
            Err(error) => return Err(error),
        }
    }
}
