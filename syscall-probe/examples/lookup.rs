//! How long it takes to find who holds a socket among many processes with many open files.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io};

use syscall_probe::{Options, Probe, SocketEnds, SocketRecord};

const PROCESSES: usize = 500;
const FILES: usize = 200;
const ROUNDS: usize = 21;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if env::args().nth(1).as_deref() == Some("hold") {
        let files: Vec<File> = (0..FILES).map(|_| File::open("/dev/null")).collect::<Result<_, _>>()?;
        println!("ready");
        io::stdin().read_line(&mut String::new())?;
        drop(files);
        return Ok(());
    }
    let probe = Probe::load(&Options::default())?;
    let holders = probe.holders().ok_or("no iterator")?;
    let hold = |_| {
        let mut command = Command::new(env::current_exe()?);
        let mut child = command.arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = io::BufReader::new(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
        io::BufRead::read_line(&mut said, &mut String::new())?;
        Ok(child)
    };
    let others: Vec<Child> = (0..PROCESSES).map(hold).collect::<io::Result<_>>()?;
    let files: Vec<File> = (0..FILES).map(|_| File::open("/dev/null")).collect::<Result<_, _>>()?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let me = std::process::id();
    let mut records = Vec::new();
    let mut measure = |what: &str, of: &mut dyn FnMut(&mut Vec<SocketRecord>) -> io::Result<()>| -> io::Result<()> {
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..ROUNDS {
            records.clear();
            let begun = Instant::now();
            of(&mut records)?;
            times.push(begun.elapsed());
            assert!(records.iter().any(|record| record.tgid == me));
        }
        times.sort_unstable();
        println!("{what}: {:?} ({:?}-{:?})", times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
        Ok(())
    };
    println!("{PROCESSES} processes with {FILES} files each; median (least-most) of {ROUNDS}");
    measure("all open sockets of all processes", &mut |records| holders.all(records))?;
    let mut mine = Vec::new();
    holders.of_process(me, &mut mine)?;
    let [mine] = mine[..] else { return Err("this process has one socket".into()) };
    let ends = SocketEnds::from(&mine);
    let mut by_file = |records: &mut Vec<SocketRecord>| {
        assert!(holders.of_socket(&ends, 0, records)?, "it is found");
        Ok(())
    };
    measure("the holders of one socket", &mut by_file)?;
    let mut in_one = |records: &mut Vec<SocketRecord>| holders.of_socket(&ends, me, records).map(drop);
    measure("the same, of one process", &mut in_one)?;
    measure("all open sockets of one process", &mut |records| holders.of_process(me, records))?;
    drop((others, files, socket));
    Ok(())
}
