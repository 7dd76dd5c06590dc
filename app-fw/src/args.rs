//! The daemon's command line, as plain data.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use shared::Verdict;
use shared::control::{DEFAULT_SOCKET, SOCKET_VARIABLE};

use crate::hook::Place;

/// Application firewall: judges every packet by what the processes behind its socket are made of
///
/// Consumes NFQUEUE. For each packet it finds every process that holds its socket, the SHA-256 digest of every file mapped
/// executable in those processes, and the first rule that fires; ctl-fw(8) manages the rules. With --hook it puts the
/// netfilter rules in place that packets come by; else they come from rules of your own, for instance:
///
///   iptables -I OUTPUT -j NFQUEUE --queue-num 0 --queue-bypass
#[derive(Parser, Clone, Debug)]
#[command(name = "app-fw", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    /// Database of rules, policies and known digests
    #[arg(long, value_name = "PATH", default_value = "/var/lib/app-fw/rules.db")]
    pub db: PathBuf,

    /// Control socket; it appears once the queues are bound
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// File to which events are appended as JSON lines; - is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub log: PathBuf,

    /// Make events of accepted packets too
    #[arg(long)]
    pub log_accept: bool,

    /// Judge packets, but let all of them pass, and record those that would not: ctl-fw learn makes rules of that
    #[arg(long)]
    pub audit: bool,

    /// Most events per second and queue; what is more is left out and counted
    #[arg(long, value_name = "EVENTS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_rate: u64,

    /// eBPF object file to load instead of the built-in one
    #[arg(short = 'e', long, value_name = "OBJ")]
    pub ebpf_obj: Option<PathBuf>,

    /// Do without eBPF: look afresh at every packet
    #[arg(long, conflicts_with = "ebpf_obj")]
    pub no_probe: bool,

    /// Leave a hook of the probe off, as on a kernel that lacks it (repeatable; to try what that costs)
    #[arg(long, value_name = "HOOK", hide = true)]
    pub without_hook: Vec<syscall_probe::Hook>,

    /// Queue, or range of queues for `--queue-balance`, that feeds the OUTPUT chain
    #[arg(long, value_name = "N[:M]", default_value = "0", value_parser = queues)]
    pub queue_out: RangeInclusive<u16>,

    /// Queue or range of queues that feeds the INPUT chain
    #[arg(long, value_name = "N[:M]", default_value = "1", value_parser = queues)]
    pub queue_in: RangeInclusive<u16>,

    /// Queue or range of queues that feeds the FORWARD chain
    #[arg(long, value_name = "N[:M]", default_value = "2", value_parser = queues)]
    pub queue_fwd: RangeInclusive<u16>,

    /// OUTPUT's policy where none was set with ctl-fw -P
    #[arg(long, value_name = "VERDICT", default_value = "ACCEPT")]
    pub pol_out: Verdict,

    /// INPUT's policy where none was set with ctl-fw -P
    #[arg(long, value_name = "VERDICT", default_value = "ACCEPT")]
    pub pol_in: Verdict,

    /// FORWARD's policy where none was set with ctl-fw -P
    #[arg(long, value_name = "VERDICT", default_value = "ACCEPT")]
    pub pol_fwd: Verdict,

    /// Sign what OUTPUT accepts
    #[arg(short = 't', long, value_name = "TYPE", value_enum, default_value_t = SigType::None)]
    pub sig_type: SigType,

    /// Header that carries the signature
    #[arg(short = 'p', long, alias = "sig_proto", value_name = "HEADER", value_enum, default_value_t = SigProto::Ip)]
    pub sig_proto: SigProto,

    /// Key for signatures: the bytes of this file, which only its owner may read
    #[arg(short = 's', long, value_name = "FILE")]
    pub secret: Option<PathBuf>,

    /// Drop forwarded packets without a good signature
    #[arg(short = 'f', long)]
    pub fwd_val: bool,

    /// Drop incoming packets without a good signature
    #[arg(short = 'i', long)]
    pub in_val: bool,

    /// How long a process that ended stays known at least, if there is room
    #[arg(short = 'd', long, value_name = "MS", default_value_t = 50)]
    pub proc_delay: u64,

    /// An object once mapped stays part of the image after it is unmapped
    #[arg(short = 'r', long)]
    pub retain_maps: bool,

    /// Keep the first set of mappings that was read (implies -r); gives up exactness
    #[arg(short = 'R', long)]
    pub no_rescan: bool,

    /// Avoid needless namespace switches; always so
    #[arg(short = 'S', long)]
    pub skip_ns_switch: bool,

    /// Several workers for each chain that has one queue only; packets of a flow may change places
    #[arg(short = 'm', long)]
    pub parallel: bool,

    /// Copy only the head of a packet; always so, unless packets are signed or validated
    #[arg(short = 'P', long)]
    pub partial_read: bool,

    /// Most verdicts in a batch
    #[arg(short = 'b', long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch_count: u16,

    /// Age of the oldest verdict that ends a batch, microseconds
    #[arg(short = 'B', long, value_name = "US", default_value_t = 100)]
    pub batch_timeout: u64,

    /// Bytes to which a queue's receive buffer may grow; it is doubled after each overrun
    #[arg(short = 'n', long, value_name = "BYTES", default_value_t = 256 << 20, value_parser = clap::value_parser!(u32).range(4096..=1 << 30))]
    pub max_nl_bufsz: u32,

    /// Packets read at once from a queue
    #[arg(short = 'c', long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub pkt_prefetch: u8,

    /// Take packets from these netfilter hooks, by rules that are put in place, kept there, and removed at the end
    ///
    /// OUTPUT is what local processes send, INPUT what they get. FORWARD:DEVICE is for containers: what comes from a device, or
    /// from all whose names begin so (br-+), goes to the OUTPUT queue, what leaves by it to the INPUT queue. FORWARD is all
    /// else that passes through. The rules are in table mangle of iptables and ip6tables, in this network namespace: there
    /// they come before Docker's and other firewalls', and what app-fw accepts still has to pass those. app-fw does not
    /// start if the rules cannot be put in place.
    #[arg(long, value_name = "HOOK,...", value_delimiter = ',')]
    pub hook: Vec<Place>,

    /// Packets of --hook pass while no app-fw runs that was not ended by SIGTERM or SIGINT: it crashed, or was killed
    #[arg(long, requires = "hook", overrides_with = "no_bypass")]
    pub bypass: bool,

    /// They are dropped then, until app-fw is started again (default)
    ///
    /// This is the default because otherwise whoever can end the firewall can switch it off, and nobody notices. A machine
    /// that must stay reachable whatever happens to app-fw needs --bypass.
    #[arg(long, requires = "hook", overrides_with = "bypass")]
    pub no_bypass: bool,

    /// The iptables for --hook, such as iptables-legacy; ip6tables and their -save and -restore are called likewise
    ///
    /// By default iptables and ip6tables as found in PATH, unless all rules of this network namespace are of the other kind
    /// (nft, legacy).
    #[arg(long, value_name = "PROGRAM", requires = "hook")]
    pub iptables: Option<PathBuf>,

    /// Verdict cache in the kernel
    #[arg(long, value_name = "on|off", value_enum, default_value_t = Switch::On)]
    pub kernel_cache: Switch,

    /// Directory for the programs of the verdict cache; iptables -m bpf --object-pinned finds them there
    ///
    /// A bpffs is mounted there unless it is on one. By default a directory of this network namespace and queue in
    /// /sys/fs/bpf, or, if no bpffs is mounted there, in one of app-fw's own at /run/app-fw/bpf. ctl-fw status tells which.
    /// The programs stay when app-fw ends, unless --hook removed its rules and no other rule names them.
    #[arg(long, value_name = "DIR")]
    pub pins: Option<PathBuf>,

    /// Has no effect: io_uring is not used
    #[arg(long, value_name = "N", hide = true)]
    pub ring_depth: Option<u64>,

    /// Has no effect: io_uring is not used
    #[arg(long, value_name = "MS", hide = true)]
    pub kthread_to: Option<u64>,
}

const EXAMPLES: &str = "\
Examples:
  app-fw --pol-out DROP --log /var/log/app-fw.json
  app-fw --hook OUTPUT,INPUT,FORWARD:docker0      # this machine and its containers
  app-fw --queue-out 0:3      # with iptables -I OUTPUT -j NFQUEUE --queue-balance 0:3
  app-fw --db /run/try.db --socket /run/try.sock     # one more, in another network namespace

Exit status: 0 stopped by SIGTERM or SIGINT, 1 could not start or go on, 2 wrong options.";

/// Which packets are signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SigType {
    /// None.
    None,
    /// All, over their payload.
    Packet,
    /// All, over their payload and their program.
    App,
}

/// Where a signature goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SigProto {
    /// An IP option.
    Ip,
    /// A TCP option.
    Tcp,
    /// Behind UDP's payload.
    Udp,
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// So many queues a chain may have.
const MAX_QUEUES: u16 = 64;

fn queues(text: &str) -> Result<RangeInclusive<u16>, String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no queue number (0 to 65535)"));
    let (first, last) = match text.split_once(':') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("the range {text} runs backwards"));
    }
    if last - first >= MAX_QUEUES {
        return Err(format!("a chain can have {MAX_QUEUES} queues at most"));
    }
    Ok(first..=last)
}

impl Args {
    /// What clap cannot check.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        let chains =
            [("--queue-out", &self.queue_out), ("--queue-in", &self.queue_in), ("--queue-fwd", &self.queue_fwd)];
        for (index, (name, range)) in chains.iter().enumerate() {
            for (other, taken) in &chains[..index] {
                if range.start() <= taken.end() && taken.start() <= range.end() {
                    return Err(format!("{name} and {other} share a queue: one queue feeds one chain"));
                }
            }
        }
        if self.sig_type == SigType::App {
            return Err("-t app: the signature that names the program has no defined format yet; use -t packet".into());
        }
        if self.sig_type != SigType::None && self.sig_proto != SigProto::Ip {
            return Err("-p: only the IP header can carry a signature yet; use -p ip".into());
        }
        let key_wanted = self.sig_type != SigType::None || self.fwd_val || self.in_val;
        if key_wanted && self.secret.is_none() {
            return Err("signatures need a key: -s FILE".into());
        }
        Ok(())
    }

    /// What was given and has no effect; sentences.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if self.ring_depth.is_some() || self.kthread_to.is_some() {
            notes.push("--ring-depth and --kthread-to have no effect: io_uring is not used");
        }
        if self.skip_ns_switch {
            notes.push("-S has no effect: needless namespace switches are always avoided");
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let args = Args::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        args.check().map(|()| args)
    }

    #[test]
    fn the_manual_page_has_every_option() {
        let command = <Args as clap::CommandFactory>::command();
        let page = String::from_utf8(ctl_fw::manual::app_fw(&command).unwrap()).unwrap().replace("\\-", "-");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            for option in long.into_iter().chain(short) {
                assert!(page.contains(&option), "{option} is missing:\n{page}");
            }
        }
        for section in ["FILES", "SIGNALS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            assert!(page.contains(section), "{section}");
        }
    }

    #[test]
    fn the_table_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn every_option_of_the_published_interface_is_taken() {
        let args = parse(
            "app-fw -e o.bpf.o --queue-out 4 --queue-in 5 --queue-fwd 6:9 --pol-out DROP --pol-in ACCEPT --pol-fwd drop \
             -t packet --sig_proto ip -s key -f -i -d 100 -r -R -S -m -P -b 64 -B 500 -n 1048576 -c 64 --ring-depth 256 \
             --kthread-to 1000 --kernel-cache off",
        )
        .unwrap();
        assert_eq!((args.queue_out, args.queue_fwd), (4..=4, 6..=9));
        assert_eq!((args.pol_out, args.pol_in, args.pol_fwd), (Verdict::Drop, Verdict::Accept, Verdict::Drop));
        assert_eq!((args.batch_count, args.batch_timeout, args.pkt_prefetch), (64, 500, 64));
        let long = "app-fw --ebpf-obj o --sig-type none --sig-proto tcp --secret s --fwd-val --in-val --proc-delay 1 \
                    --retain-maps --no-rescan --skip-ns-switch --parallel --partial-read --batch-count 1 \
                    --batch-timeout 1 --max-nl-bufsz 8192 --pkt-prefetch 1";
        assert!(parse(long).is_ok());
    }

    #[test]
    fn defaults_are_those_of_the_interface() {
        let args = parse("app-fw").unwrap();
        assert_eq!((args.queue_out, args.queue_in, args.queue_fwd), (0..=0, 1..=1, 2..=2));
        assert_eq!(args.max_nl_bufsz, 256 << 20);
        assert_eq!(args.proc_delay, 50);
    }

    #[test]
    fn hooks_are_many_and_the_last_word_about_bypass_counts() {
        let args = parse("app-fw --hook OUTPUT,INPUT --hook FORWARD:docker0 --no-bypass --bypass").unwrap();
        let hooks: Vec<_> = args.hook.iter().map(Place::to_string).collect();
        assert_eq!(hooks, ["OUTPUT", "INPUT", "FORWARD:docker0"]);
        assert!(args.bypass);
        assert!(!parse("app-fw --hook OUTPUT --bypass --no-bypass").unwrap().bypass);
        assert!(!parse("app-fw --hook OUTPUT").unwrap().bypass);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "app-fw --queue-out 1",
            "app-fw --queue-out 3:2",
            "app-fw --queue-out 0:64",
            "app-fw --queue-out x",
            "app-fw --pol-out MAYBE",
            "app-fw -c 65",
            "app-fw -c 0",
            "app-fw -b 0",
            "app-fw -t packet",
            "app-fw -f",
            "app-fw -t app -s key",
            "app-fw -t packet -s key -p tcp",
            "app-fw -e x --no-probe",
            "app-fw --frobnicate",
            "app-fw --hook PREROUTING",
            "app-fw --hook OUTPUT:eth0",
            "app-fw --hook",
            "app-fw --bypass",
            "app-fw --iptables iptables-legacy",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
