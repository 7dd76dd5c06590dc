//! Measures the firewall against doing nothing and against the least an NFQUEUE consumer can do.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::comparison::{Plan, Samples, compare, measure_once};
use benches::contender::{Cache, Contender, Programs, digest_of};
use benches::crowd::MANY;
use benches::lab::{Lab, seclude};
use benches::measure::Measure;
use benches::opensnitch::OpenSnitch;
use benches::supervise::{Interrupted, Supervisor, exec_in, own_path};
use benches::{accept_all, chart, iperf3, load, machine, memory, packet_cost, report, rulesets, targets};
use clap::{Parser, Subcommand, ValueEnum};

/// Measure app-fw side by side with no firewall, plain rules, the least consumers, and other daemons
///
/// Root is needed. Everything happens in scratch network namespaces and among mounts that nobody else sees; all of it is gone at
/// the end, however it comes. Tables go to standard output, progress to standard error. The exit status does not depend on
/// the figures: 0 measured, 2 could not be measured, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "speed", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Arguments {
    /// The daemon to measure [default: app-fw beside this program]
    #[arg(long, value_name = "PATH")]
    app_fw: Option<PathBuf>,
    /// Its command line [default: ctl-fw beside this program]
    #[arg(long, value_name = "PATH")]
    ctl_fw: Option<PathBuf>,
    /// Measure app-fw-off also with these options, under this name (repeatable)
    #[arg(long, value_name = "NAME=OPTIONS", value_parser = named)]
    variant: Vec<(String, String)>,
    /// Measure another daemon under this name (repeatable); `sh -c` runs COMMAND in the client's namespace
    ///
    /// COMMAND also places the rules of iptables that lead to the daemon, and becomes the daemon by `exec`. It is ready a second
    /// after it has bound a queue. One that is called `reference` is held against its target.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named)]
    other: Vec<(String, String)>,
    /// About two minutes: fewer contenders and measures, 3 rounds of 1 s
    #[arg(long, conflicts_with = "only")]
    quick: bool,
    /// Length of each run of a measure [default: 2; iperf3 takes whole seconds]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
    /// How often everything is measured [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Only these contenders, measures and parts
    ///
    /// Contenders: none, conntrack, accept, accept-all, accept-all-no-gso, accept-all-again, app-fw-off, app-fw-cold, app-fw-on,
    /// app-fw-on-many, opensnitch (where its package is installed), variants and others. Measures: tcp-bulk, connect-1,
    /// connect-8, udp-64, loaded; and, only if named, udp-new and first. Parts: memory, packet-cost. To name no contender means
    /// all of them; to name neither measure nor part, all measures.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Contenders that the others are divided by
    #[arg(long, value_name = "CONTENDER", value_delimiter = ',', default_value = "conntrack,accept-all")]
    baseline: Vec<String>,
    /// Write performance.md and performance.svg there too
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
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
  speed                                          measure everything, about 20 minutes
  speed --quick                                  the same, roughly
  speed --only app-fw-on,conntrack,udp-64        one measure
  speed --hold app-fw-on udp-64                  keep the load up while perf looks
  speed --other 'plain=iptables -A OUTPUT -j NFQUEUE && exec some-daemon --queue 0'";

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
    /// Send a packet to each of many addresses, and again when told to
    #[command(hide = true)]
    HoldFlows { flows: u32 },
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

fn named(text: &str) -> Result<(String, String), String> {
    let (name, rest) = text.split_once('=').ok_or("must be NAME=...")?;
    if name.is_empty() || name.contains(',') {
        return Err("the name must not be empty or hold a comma".to_owned());
    }
    Ok((name.to_owned(), rest.to_owned()))
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
        Some(Role::HoldFlows { flows }) => load::hold_flows(*flows),
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
    let supervisor = Supervisor::new()?;
    seclude()?;
    let home = tempfile::TempDir::with_prefix("afw-bench-").context("cannot make a directory")?;
    let selection = Selection::of(arguments, contenders(arguments, home.path())?)?;
    let plan = &selection.plan;
    if arguments.hold.is_some() {
        return hold(&supervisor, plan);
    }
    let report = compare_all(&supervisor, arguments, &selection)?;
    println!("{}", report.text);
    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (name, text) in [("performance.md", &report.text), ("performance.svg", &report.picture)] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(())
}

/// What comes out.
struct Report {
    /// Markdown.
    text: String,
    /// SVG.
    picture: String,
}

fn compare_all(supervisor: &Supervisor, arguments: &Arguments, selection: &Selection) -> Result<Report> {
    let plan = &selection.plan;
    // Before the load is part of it.
    let mut text = machine::facts()?;
    let samples = compare(supervisor, plan)?;
    if !plan.measures.is_empty() {
        text += &speed_tables(arguments, plan, &samples);
    }
    let packet_cost = match selection.cached() {
        Some(contender) if selection.packet_cost => packet_cost::nanoseconds(supervisor, plan, contender)?,
        _ => Vec::new(),
    };
    if selection.memory {
        let table = memory::table_of(supervisor, plan, selection.remembering(), MANY)?;
        text += &format!("\nMemory, with {MANY} flows:\n\n{table}");
    }
    if let Some(contender) = selection.cached() {
        let found = packet_cost::sentences(plan, &samples, contender, &packet_cost);
        text.extend(found.map(|sentences| format!("\n{sentences}")));
    }
    text.extend(targets::table_of(plan, &samples, &packet_cost).map(|table| format!("\n{table}")));
    Ok(Report { text, picture: chart::picture(plan, &samples) })
}

fn speed_tables(arguments: &Arguments, plan: &Plan, samples: &Samples) -> String {
    let (seconds, family) = (plan.duration.as_secs_f64(), if plan.ipv6 { ", IPv6" } else { "" });
    let mut text = format!("- {} rounds of {seconds} s{family}\n", plan.rounds);
    text += &report::circumstances(plan, samples);
    text += &format!("- median over the rounds (least-most)\n\n{}", report::figures(plan, samples));
    for name in &arguments.baseline {
        if let Some(baseline) = plan.contenders.iter().position(|contender| contender.name() == name) {
            text += &format!("\n{}", report::ratio_table(plan, samples, baseline));
        }
    }
    text += &format!("\n{}", report::processor_time(plan, samples));
    if let Some(answered) = report::answered(plan, samples) {
        text += &format!("\n{answered}");
    }
    text
}

/// What is to be done.
struct Selection {
    plan: Plan,
    memory: bool,
    packet_cost: bool,
}

/// Names of what is no measure.
const MEMORY: &str = "memory";
const PACKET_COST: &str = "packet-cost";
/// What `--quick` is about.
const QUICK: [&str; 5] = ["none", "conntrack", "accept-all", "app-fw-off", "app-fw-on"];
const QUICK_MEASURES: [Measure; 4] = [Measure::TcpBulk, Measure::Connect1, Measure::Udp64, Measure::Loaded];

impl Selection {
    fn of(arguments: &Arguments, known: Vec<Contender>) -> Result<Self> {
        let names: BTreeSet<&str> =
            arguments.only.iter().chain(arguments.hold.iter().flatten()).map(String::as_str).collect();
        let named = |name: &str| names.contains(name);
        for name in &names {
            let is_contender = known.iter().any(|contender| contender.name() == *name);
            if !is_contender && ![MEMORY, PACKET_COST].contains(name) && Measure::from_str(name, false).is_err() {
                let known: Vec<&str> = known.iter().map(Contender::name).collect();
                bail!("{name} is neither a contender here ({}) nor a measure or part (see --help)", known.join(", "));
            }
        }
        // Naming none of a kind means all of them.
        let any_contender = known.iter().any(|contender| named(contender.name()));
        let is_meant = |contender: &Contender| match contender {
            _ if any_contender => named(contender.name()),
            Contender::Other { .. } => true,
            _ => !arguments.quick || QUICK.contains(&contender.name()),
        };
        let contenders: Vec<Contender> = known.into_iter().filter(is_meant).collect();
        let mut measures: Vec<Measure> =
            Measure::value_variants().iter().copied().filter(|measure| named(measure.token())).collect();
        if measures.is_empty() && !named(MEMORY) && !named(PACKET_COST) {
            measures = if arguments.quick { QUICK_MEASURES.to_vec() } else { Measure::USUAL.to_vec() };
        }
        contenders.iter().try_for_each(assert_built)?;
        if measures.contains(&Measure::TcpBulk) && Command::new(iperf3::PROGRAM).arg("-v").output().is_err() {
            bail!("iperf3 is missing: apt-get install iperf3, or name other measures (--only)");
        }
        let (rounds, seconds) = if arguments.quick { (3, 1.0) } else { (5, 2.0) };
        let plan = Plan {
            contenders,
            measures,
            duration: Duration::from_secs_f64(arguments.seconds.unwrap_or(seconds)),
            rounds: usize::from(arguments.rounds.unwrap_or(rounds)),
            ipv6: arguments.ipv6,
        };
        let part = |name: &str| names.is_empty() || named(name);
        Ok(Self { plan, memory: part(MEMORY), packet_cost: part(PACKET_COST) })
    }

    /// Whose packets the kernel answers.
    fn cached(&self) -> Option<&Contender> {
        let is_it = |it: &&Contender| matches!(it, Contender::AppFw { cache: Cache::On, flows: 0, .. });
        self.plan.contenders.iter().find(is_it)
    }

    /// Those that remember flows, each in one of its guises.
    fn remembering(&self) -> impl Iterator<Item = &Contender> {
        self.plan.contenders.iter().filter(|contender| match contender {
            Contender::None | Contender::Accept => false,
            Contender::AcceptAll { .. } => contender.name() == "accept-all",
            Contender::AppFw { cache, flows, .. } => *cache != Cache::Cold && *flows == 0,
            Contender::Conntrack | Contender::OpenSnitch(_) | Contender::Other { .. } => true,
        })
    }
}

/// All that can be measured here. Files that they need are made in `home`.
fn contenders(arguments: &Arguments, home: &Path) -> Result<Vec<Contender>> {
    let own = own_path()?;
    let beside = |name: &str| own.with_file_name(name);
    let programs = Programs {
        app_fw: arguments.app_fw.clone().unwrap_or_else(|| beside("app-fw")),
        ctl_fw: arguments.ctl_fw.clone().unwrap_or_else(|| beside("ctl-fw")),
    };
    let app_fw = |name: &str, cache, options: &str| Contender::AppFw {
        name: name.to_owned(),
        options: options.split_whitespace().map(str::to_owned).collect(),
        cache,
        programs: programs.clone(),
        ruleset: None,
        flows: 0,
    };
    let ruleset = home.join("many-rules");
    std::fs::write(&ruleset, rulesets::mixed(MANY, 0, &digest_of(&own)?)).context("cannot write rules")?;
    let mut all = vec![
        Contender::None,
        Contender::Conntrack,
        Contender::Accept,
        Contender::AcceptAll { name: "accept-all", gso: true },
        Contender::AcceptAll { name: "accept-all-again", gso: true },
        Contender::AcceptAll { name: "accept-all-no-gso", gso: false },
        app_fw("app-fw-off", Cache::Off, ""),
        app_fw("app-fw-cold", Cache::Cold, ""),
        app_fw("app-fw-on", Cache::On, ""),
        Contender::AppFw {
            name: "app-fw-on-many".to_owned(),
            options: Vec::new(),
            cache: Cache::On,
            programs: programs.clone(),
            ruleset: Some(ruleset),
            flows: MANY,
        },
    ];
    all.extend(OpenSnitch::prepare(home)?.map(Contender::OpenSnitch));
    all.extend(arguments.variant.iter().map(|(name, options)| app_fw(name, Cache::Off, options)));
    let other = |(name, command): &(String, String)| Contender::Other { name: name.clone(), command: command.clone() };
    all.extend(arguments.other.iter().map(other));
    let names: BTreeSet<&str> = all.iter().map(Contender::name).collect();
    if names.len() < all.len() {
        bail!("two contenders have the same name");
    }
    if let Some(name) = arguments.baseline.iter().find(|name| !names.contains(name.as_str())) {
        bail!("the baseline {name} is not a contender");
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

fn hold(supervisor: &Supervisor, plan: &Plan) -> Result<()> {
    let ([contender], [measure]) = (plan.contenders.as_slice(), plan.measures.as_slice()) else {
        bail!("--hold takes a contender and a measure");
    };
    let lab = Lab::create(plan.ipv6)?;
    let mut guard = contender.stand_guard(supervisor, &lab)?;
    let consumer = guard.pid().map_or("no consumer".to_owned(), |pid| format!("consumer is process {pid}"));
    eprintln!("holding; {consumer}; this is process {}; end with Ctrl-C", std::process::id());
    loop {
        match measure_once(supervisor, &lab, contender, &mut guard, *measure, plan.duration) {
            Ok(_) => {}
            Err(error) if error.downcast_ref::<Interrupted>().is_some() => {
                return guard.stand_down(supervisor).context("after the interruption");
            }
            Err(error) => return Err(error),
        }
    }
}
