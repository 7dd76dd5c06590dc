//! Sections of the manual pages that no definition says.

use super::Section;
use super::roff::Block::{Code, Item, Text};

pub(super) const CTL_FW: &[Section<'static>] = &[
    (
        "NEGATION",
        &[Text(
            "! or -! before a match option turns it round: ! --dport 443, -! -d 192.0.2.0/24. \
             ! --sng-hash HEX means that no file with this digest is mapped executable in the process. ! -n NAMESPACE is a \
             rule for any other namespace.\n\nWith several owners of a socket, a DROP or REJECT rule fires if one of them \
             matches, an ACCEPT rule only if all of them do. Negation does not change that.",
        )],
    ),
    (
        "FILES",
        &[
            Item("/run/app-fw/ctl.sock", "Where app-fw listens, unless --socket or APP_FW_SOCKET names another place."),
            Item(
                "/etc/apt/apt.conf.d/90app-fw",
                "Runs ctl-fw refresh after each transaction of dpkg; written by refresh --install-hook.",
            ),
            Item("/var/lib/dpkg", "What refresh compares changed files with. The record is MD5."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            Item("APP_FW_SOCKET", "The control socket."),
            Item("NO_COLOR", "If it is not empty, no colours."),
            Item("DOCKER_HOST", "unix://PATH: where dockerd is asked for the id of a container."),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            Item("0", "Done."),
            Item(
                "1",
                "The answer is no: there is no such rule, position, set or revision; a checked file has errors; refresh left something as it was.",
            ),
            Item("2", "Error: wrong arguments, app-fw not running, not allowed, unreadable file."),
        ],
    ),
    (
        "EXAMPLES",
        &[
            Text(
                "Block curl in the network namespace of this shell, until it is upgraded and, with refresh, after that:",
            ),
            Code("ctl-fw -A -c OUTPUT -v DROP -n /proc/$$/ns/net --exe /usr/bin/curl"),
            Text("No process that has this library mapped may talk:"),
            Code("ctl-fw -I 0 -c OUTPUT -v REJECT -n any --lib /usr/lib/x86_64-linux-gnu/liblzma.so.5"),
            Text("Change everything at once, or nothing:"),
            Code("ctl-fw save rules.txt\nctl-fw check rules.txt\nctl-fw restore rules.txt\nctl-fw undo"),
        ],
    ),
    ("SEE ALSO", &[Text("app-fw(8), app-fw-rules(5), iptables(8), dpkg(1)")]),
];

pub(super) const APP_FW: &[Section<'static>] = &[
    (
        "SIGNALS",
        &[Item("SIGTERM, SIGINT", "Remove the rules of --hook, settle what is queued, and end with status 0.")],
    ),
    (
        "FILES",
        &[
            Item("/var/lib/app-fw/rules.db", "Rules, policies, sets, history and known digests."),
            Item(
                "/sys/fs/bpf/app-fw, /run/app-fw/bpf",
                "The programs of the verdict cache, on a bpffs; a directory for each network namespace and first OUTPUT queue.",
            ),
            Item(
                "/run/app-fw/ctl.sock",
                "The control socket. Root may change rules; members of the group app-fw may list them and ask for the status.",
            ),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            Item("APP_FW_SOCKET", "The control socket."),
            Item("APP_FW_LOG", "How much is said on the standard error: error, warn, info, debug, trace."),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            Item("0", "Stopped by SIGTERM or SIGINT."),
            Item("1", "Could not start or go on."),
            Item("2", "Wrong options."),
        ],
    ),
    (
        "EXAMPLES",
        &[
            Code(
                "app-fw --pol-out DROP --log /var/log/app-fw.json\n\
                 iptables -I OUTPUT -j NFQUEUE --queue-num 0 --queue-bypass",
            ),
            Text("Four queues, each with a worker:"),
            Code("app-fw --queue-out 0:3\niptables -I OUTPUT -j NFQUEUE --queue-balance 0:3"),
        ],
    ),
    ("SEE ALSO", &[Text("ctl-fw(8), app-fw-rules(5), iptables(8), ip-netns(8)")]),
];

pub(super) const RULES_BEFORE: &[Section<'static>] = &[(
    "DESCRIPTION",
    &[
        Text(
            "A ruleset is everything that app-fw(8) judges packets by: named sets, policies and rules. ctl-fw save writes \
             it, ctl-fw restore and ctl-fw check read it. Each line is what stands behind ctl-fw on a command line that \
             makes its part. Blank lines mean nothing, nor do lines that begin with #.\n\nWords stand between blanks. \
             Double quotes hold a word together; in them a backslash takes the meaning from the character that follows.",
        ),
        Item(
            "set create NAME KIND [ELEMENT,...]",
            "A named set. KIND is addresses, ports or digests. Rules name it @NAME.",
        ),
        Item("-P CHAIN VERDICT -n NAMESPACE", "What happens in a chain where no rule fires: ACCEPT or DROP."),
        Item(
            "-A -c CHAIN -n NAMESPACE -v VERDICT [[!] MATCH]... [OPTION]... [--id N]",
            "A rule. In each chain of each namespace the rules stand in the order of their lines. Rules with an id keep it, \
             and with it their counters.",
        ),
    ],
)];

pub(super) const MATCHES: &str = "All matches of a rule must hold. ! before one turns it round. An option that is given \
    again adds to its list: one of all is enough, or if it is negated, none must hold.";

pub(super) const LOOKUPS: &str = "ctl-fw takes these too, and looks them up when the rule is made. In the text form stands \
    what was found, with --from to say where: names of users and groups become numbers, and these become digests.";

pub(super) const RULES_AFTER: &[Section<'static>] = &[
    (
        "OPTIONS",
        &[
            Item("-c CHAIN", "OUTPUT, INPUT or FORWARD."),
            Item("-n NAMESPACE", "netns:NAME, host, any, lifetime:COOKIE@BOOT, or a namespace file."),
            Item("-v VERDICT", "ACCEPT, DROP, or REJECT: the program that sent the packet is told at once."),
            Item("-l l3|l4", "Where the signature of an accepted packet goes."),
            Item("--until TIME", "When the rule is gone by itself, RFC 3339: 2030-01-01T00:00:00Z."),
            Item("--log, --no-log", "Tell of every packet for which it fires, or of none."),
            Item("--comment TEXT", "A remark, at most 256 bytes."),
            Item(
                "--from LABEL",
                "Where the digest or id before it was taken from: exe:PATH, lib:PATH, exec:PATH, pid:N, container:NAME. Never matched.",
            ),
            Item("--id N", "The rule's stable id."),
        ],
    ),
    (
        "JSON",
        &[Text(
            "A file that begins with { is JSON: an object with the arrays sets, policies and rules. ctl-fw save --json \
             writes it.",
        )],
    ),
    ("EXAMPLES", &[Code(RULES_EXAMPLE)]),
    ("SEE ALSO", &[Text("ctl-fw(8), app-fw(8)")]),
];

/// A ruleset.
pub(super) const RULES_EXAMPLE: &str = "\
# What the office may do.
set create lan addresses 10.0.0.0/8,fd00::/8
set create web ports 80,443
-P OUTPUT DROP -n host
-A -c OUTPUT -n host -v ACCEPT -d @lan --id 7
-A -c OUTPUT -n host -v ACCEPT -p tcp --dport @web --time mon-fri@08:00-18:00 --uid 1000-1999
-A -c OUTPUT -n any -v REJECT --anon-exec ! --program-path /usr/lib/firefox/** --log --comment \"code of unknown origin\"
";
