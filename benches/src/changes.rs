//! How long changes of the rules take: whole rulesets by `restore`, and single ones by the control socket.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ctl_fw::client::Client;
use shared::control::{Answer, Changed, Done, Edit, Request};

use crate::contender::{Cache, Guard, Programs, start_daemon};
use crate::lab::{Lab, Namespace};
use crate::report::{Spread, table};
use crate::rulesets;
use crate::supervise::{Supervisor, command_in, output_of};

/// How often a single change is made.
const TIMES: usize = 200;
/// The same of changes of sets, which take long.
const SET_TIMES: usize = 20;

/// Asks the daemon for a change.
///
/// # Errors
/// It refuses, or is gone.
pub fn changed(client: &mut Client, request: &Request) -> Result<Changed> {
    match client.call(request)? {
        Answer::Changed(changed) => Ok(changed),
        Answer::Error(failure) => bail!("the daemon refuses: {}", failure.message),
        other => bail!("the daemon answers something else: {other:?}"),
    }
}

/// A change that consists of one edit.
pub fn edit(edit: Edit) -> Request {
    Request::Change { edits: vec![edit], note: None, expected: None }
}

/// Who restores rules.
enum Restorer {
    /// `ctl-fw restore`, with this kind of rules.
    CtlFw(&'static str, fn(u32, u32) -> String),
    /// One of the variants of iptables-restore.
    Iptables(&'static str),
}

const RESTORERS: [Restorer; 4] = [
    Restorer::CtlFw("ctl-fw restore", rulesets::flows),
    Restorer::CtlFw("ctl-fw restore, mixed rules", |count, seed| rulesets::mixed(count, seed, &"f".repeat(64))),
    Restorer::Iptables("iptables-nft-restore"),
    Restorer::Iptables("iptables-legacy-restore"),
];

impl Restorer {
    fn name(&self) -> &'static str {
        match self {
            Restorer::CtlFw(name, _) | Restorer::Iptables(name) => name,
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Restorer::CtlFw(..) => true,
            Restorer::Iptables(name) => ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists()),
        }
    }

    /// Times it in a namespace of its own: into nothing, then over as many others.
    fn run(&self, supervisor: &Supervisor, programs: &Programs, folder: &Path, count: u32) -> Result<[Duration; 2]> {
        let namespace = Namespace::empty("c")?;
        let files = [0, 1].map(|seed| -> Result<PathBuf> {
            let path = folder.join(format!("{seed}"));
            let text = match self {
                Restorer::CtlFw(_, rules) => rules(count, seed),
                Restorer::Iptables(_) => rulesets::iptables(count, seed),
            };
            std::fs::write(&path, text).context("cannot write rules")?;
            Ok(path)
        });
        let daemon = match self {
            Restorer::CtlFw(..) => Some(start_daemon(supervisor, &namespace, programs, Cache::Off, &[])?),
            Restorer::Iptables(_) => None,
        };
        let mut times = [Duration::ZERO; 2];
        for (time, file) in times.iter_mut().zip(files) {
            let mut command = match &daemon {
                Some(daemon) => {
                    let mut command = daemon.ctl_fw(&namespace, programs)?;
                    command.arg("restore");
                    command
                }
                None => command_in(&namespace.path(), self.name())?,
            };
            command.arg(file?);
            supervisor.take_signals()?;
            let begin = Instant::now();
            output_of(&mut command)?;
            *time = begin.elapsed();
        }
        daemon.map_or(Ok(()), |daemon| daemon.stand_down(supervisor))?;
        Ok(times)
    }
}

/// The table of whole rulesets: `rounds` times each, one after the other.
///
/// # Errors
/// A program fails, or [`crate::supervise::Interrupted`].
pub fn restores(supervisor: &Supervisor, programs: &Programs, counts: &[u32], rounds: usize) -> Result<String> {
    let folder = tempfile::tempdir().context("cannot make a directory")?;
    let mut text = String::new();
    for &count in counts {
        let restorers: Vec<_> = RESTORERS.iter().filter(|restorer| restorer.is_there()).collect();
        let mut times = vec![Vec::new(); restorers.len()];
        for round in 0..rounds {
            for turn in 0..restorers.len() {
                let index = (round + turn) % restorers.len();
                let taken = restorers[index].run(supervisor, programs, folder.path(), count)?;
                eprintln!("{count} rules, {}: {taken:.0?}", restorers[index].name());
                times[index].push(taken);
            }
        }
        let header = [format!("{count} rules, ms"), "into nothing".into(), "over as many others".into()];
        let rows = restorers.iter().zip(&times).map(|(restorer, times)| {
            let cell = |which: usize| {
                let spread = Spread::of(times.iter().map(|times| times[which].as_secs_f64() * 1e3));
                spread.map_or("-".to_owned(), |spread| spread.format(|ms| format!("{ms:.0}")))
            };
            vec![restorer.name().to_owned(), cell(0), cell(1)]
        });
        text += &table(&header, rows);
        text.push('\n');
    }
    Ok(text)
}

/// The table of single changes among the rules in `ruleset`, from the request to its acknowledgement.
///
/// # Errors
/// The daemon fails, or [`crate::supervise::Interrupted`].
pub fn singles(supervisor: &Supervisor, lab: &Lab, programs: &Programs, ruleset: &Path) -> Result<String> {
    let daemon = start_daemon(supervisor, &lab.client, programs, Cache::Off, &[])?;
    daemon.restore(&lab.client, programs, ruleset)?;
    let mut rows = vec![("4 KiB to the same disk (fdatasync)", disk(&daemon)?)];
    let mut client = Client::connect(&daemon.socket()?)?;
    let mut ids = Vec::new();
    for (name, position) in [("-A", None), ("-I 0", Some(0))] {
        let mut times = Vec::new();
        for n in 0..TIMES {
            let rule = format!("-c OUTPUT -n any -v DROP -d 203.0.113.{n} -p tcp").parse()?;
            let (time, done) = timed(supervisor, &mut client, Edit::Add { rule, position })?;
            times.push(time);
            ids.extend(done.iter().filter_map(|done| if let Done::Rule(rule) = done { Some(rule.id) } else { None }));
        }
        rows.push((name, times));
    }
    let deleted = ids.iter().take(TIMES).map(|id| Ok(timed(supervisor, &mut client, Edit::Delete { id: *id })?.0));
    rows.push(("-D", deleted.collect::<Result<_>>()?));
    let set = (0..SET_TIMES).map(|n| {
        let elements = vec![format!("203.0.113.{n}")];
        let add = Edit::AddElements { name: rulesets::SET.parse()?, elements };
        Ok(timed(supervisor, &mut client, add)?.0)
    });
    rows.push(("set add", set.collect::<Result<_>>()?));
    daemon.stand_down(supervisor)?;
    let header = ["one change, us", "p50", "p99", "most"].map(str::to_owned);
    Ok(table(&header, rows.into_iter().map(|(name, times)| row(name, times))))
}

fn timed(supervisor: &Supervisor, client: &mut Client, change: Edit) -> Result<(Duration, Vec<Done>)> {
    supervisor.take_signals()?;
    let request = edit(change);
    let begin = Instant::now();
    let done = changed(client, &request)?.done;
    Ok((begin.elapsed(), done))
}

/// What a commit cannot be faster than.
fn disk(daemon: &Guard) -> Result<Vec<Duration>> {
    let file = File::create(daemon.socket()?.with_file_name("beside")).context("cannot make a file")?;
    let write = |_| -> Result<Duration> {
        let begin = Instant::now();
        // Always the same place, as in a log that is long enough already.
        file.write_all_at(&[0x5a; 4096], 0)?;
        file.sync_data()?;
        Ok(begin.elapsed())
    };
    (0..TIMES).map(write).collect()
}

fn row(name: &str, mut times: Vec<Duration>) -> Vec<String> {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_micros().to_string();
    vec![name.to_owned(), at(50), at(99), at(100)]
}
