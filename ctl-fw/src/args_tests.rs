use super::*;
use crate::rule_options::Part;
use shared::Predicate;
use shared::rule::LabelKind;

const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn parse(line: &str) -> Result<Invocation, clap::Error> {
    read(std::iter::once("ctl-fw").chain(line.split_whitespace()).map(OsString::from))
}

fn task(line: &str) -> Task {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).task
}

/// The parts of a rule.
fn parts(line: &str) -> Vec<Part> {
    match task(&format!("-A -c OUTPUT -v DROP {line}")) {
        Task::Add { rule, .. } => rule.parts.0,
        other => panic!("{other:?}"),
    }
}

/// Its predicates, as text.
fn predicates(line: &str) -> Vec<String> {
    let text = |part| match part {
        Part::Match(predicate) => predicate.to_string(),
        other => panic!("{other:?}"),
    };
    parts(line).into_iter().map(text).collect()
}

fn error(line: &str) -> String {
    let error = parse(line).expect_err(line);
    assert!(error.use_stderr(), "{line}");
    error.render().to_string()
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

#[test]
fn the_known_command_line_works_in_any_order() {
    let predicate = Predicate::parse(false, "--sng-hash", HEX).unwrap().unwrap();
    let rule = RuleArgs {
        chain: Some(Chain::Output),
        namespace: Some(Place { negated: false, selector: Selector::File("/proc/12/ns/net".into()) }),
        verdict: Some(Verdict::Drop),
        parts: Parts(vec![Part::Match(predicate)]),
        ..RuleArgs::default()
    };
    let expected = Task::Add { rule: Box::new(rule), position: None };
    for line in [
        format!("-A -c OUTPUT -v DROP -n /proc/12/ns/net --sng-hash {HEX}"),
        format!("--sng-hash {HEX} -n /proc/12/ns/net -v DROP -c OUTPUT -A"),
        format!("-v DROP -Ac OUTPUT --sng-hash={HEX} -n/proc/12/ns/net"),
        format!("--append --chain output --verdict drop --namespace /proc/12/ns/net --sng-hash {HEX}"),
    ] {
        assert_eq!(task(&line), expected, "{line}");
    }
}

#[test]
fn every_match_option_is_read_and_negated() {
    let all = format!(
        "-s 10.1.2.3/8 -d 2001:db8::1 -p tcp --sport 1 --dport 65535 --traced --sng-hash {HEX} --anon-exec \
         --agg-hash {}",
        HEX.to_uppercase()
    );
    let expected = [
        "-s 10.0.0.0/8",
        "-d 2001:db8::1/128",
        "-p tcp",
        "--sport 1",
        "--dport 65535",
        "--traced",
        &format!("--sng-hash {HEX}"),
        "--anon-exec",
        &format!("--agg-hash {HEX}"),
    ];
    assert_eq!(predicates(&all), expected);
    let negated = format!(
        "! -s10.1.2.3/8 -! -d 2001:db8::1 -!p tcp ! --sport=1 -! --dport 65535 ! --traced -! --sng-hash {HEX} \
         -! --anon-exec ! --agg-hash={HEX}"
    );
    assert_eq!(predicates(&negated), expected.map(|predicate| format!("! {predicate}")));
    // One negation, one option.
    assert_eq!(predicates("-! --sport 1 --dport 2"), ["! --sport 1", "--dport 2"]);
    assert_eq!(predicates("-p 47"), ["-p gre"]);
    assert!(predicates("").is_empty());
}

#[test]
fn lists_and_look_ups_keep_their_order() {
    let found = parts(&format!("--exe /bin/sh --sng-hash {HEX} --from exe:/x ! --uid root,7 --container web -s @lan"));
    let lookup = |kind, name: &str| Part::Lookup { kind, negated: false, name: name.into() };
    let matched = |option, value| Part::Match(Predicate::parse(false, option, value).unwrap().unwrap());
    assert_eq!(
        found,
        [
            lookup(LabelKind::Exe, "/bin/sh"),
            matched("--sng-hash", HEX),
            Part::From("exe:/x".parse().unwrap()),
            Part::Ids { groups: false, negated: true, names: "root,7".into() },
            lookup(LabelKind::Container, "web"),
            matched("-s", "@lan"),
        ]
    );
    let Task::Add { rule, .. } = task("-A -c OUTPUT -v REJECT ! -n host --for 10m --no-log --comment x") else {
        panic!()
    };
    assert_eq!(rule.namespace, Some(Place { negated: true, selector: Selector::Host }));
    assert_eq!((rule.log(), rule.verdict), (Log::Never, Some(Verdict::Reject)));
    assert_eq!(rule.end(), Some(Moment::In(std::time::Duration::from_secs(600))));
}

#[test]
fn every_command_is_read() {
    let host = Some(Selector::Host);
    let add = |position, signature_layer| {
        let (chain, verdict) = (Some(Chain::Forward), Some(Verdict::Accept));
        let rule = RuleArgs { chain, verdict, signature_layer, ..RuleArgs::default() };
        Task::Add { rule: Box::new(rule), position }
    };
    assert_eq!(task("-I 0 -c FORWARD -v ACCEPT"), add(Some(0), None));
    assert_eq!(task("-I7 -c FORWARD -v ACCEPT -l l4"), add(Some(7), Some(SignatureLayer::L4)));
    assert_eq!(task("-L"), Task::List { chain: None, namespace: None });
    assert_eq!(task("-L -c INPUT -n host"), Task::List { chain: Some(Chain::Input), namespace: host.clone() });
    let deleted = Task::DeleteAt { chain: Chain::Input, namespace: None, position: 3 };
    assert_eq!(task("-D 3 -c INPUT"), deleted);
    assert_eq!(task("-D --id 3 --id 4"), Task::Delete(vec![3, 4]));
    assert_eq!(task("-F"), Task::Flush { chain: None, namespace: None });
    assert_eq!(task("-c OUTPUT -F -n any"), Task::Flush { chain: Some(Chain::Output), namespace: Some(Selector::Any) });
    let policy = Task::Policy { chain: Chain::Output, namespace: host, verdict: Verdict::Drop };
    assert_eq!(task("-n host -P output drop"), policy);
    assert_eq!(task("status"), Task::Command(Box::new(Command::Status)));
    assert_eq!(task("-H a b -H status --json"), Task::Hash(["a", "b", "status"].map(PathBuf::from).to_vec()));
    for line in [
        "rule delete 7 8",
        "rule move 7 0",
        "rule replace 7 -c OUTPUT -v DROP ! -d 192.0.2.1 --exe /bin/sh",
        "set create lan addresses 10.0.0.0/8,::1",
        "set add lan 10.1.0.0/16",
        "set list",
        "save",
        "save /tmp/x --json",
        "restore",
        "restore - --if-revision 7",
        "check a b",
        "history",
        "undo --to 3",
        "monitor --packets",
        "hash a b",
    ] {
        assert!(matches!(task(line), Task::Command(_)), "{line}");
    }
}

#[test]
fn namespaces_are_files_names_or_words() {
    let of = |text: &str| match task(&format!("-L -n {text}")) {
        Task::List { namespace, .. } => namespace.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(of("blue"), Selector::Named("blue".into()));
    assert_eq!(of("netns:blue"), Selector::Named("blue".into()));
    assert_eq!(of("./blue"), Selector::File("./blue".into()));
    assert_eq!(of("any"), Selector::Any);
    let lifetime = "lifetime:7@6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11";
    assert_eq!(of(lifetime).to_string(), lifetime);
}

#[test]
fn general_options_stand_anywhere() {
    for line in ["--json --socket /x status", "status --json --socket=/x", "--json status --socket /x"] {
        let Invocation { json, socket, task } = parse(line).unwrap();
        assert_eq!((json, socket, task), (true, "/x".into(), Task::Command(Box::new(Command::Status))), "{line}");
    }
    assert!(parse("-L --json --socket x").unwrap().json);
    assert!(!parse("-L --socket x").unwrap().json);
}

#[test]
fn bad_values_say_what_is_wanted() {
    let add = |rest: &str| error(&format!("-A -c OUTPUT -v DROP {rest}"));
    for (found, wanted) in [
        (add("--sng-hash abc"), "64 hex digits"),
        (add("! --agg-hash abc"), "64 hex digits"),
        (add(&format!("--sng-hash {}", HEX.replace('b', "g"))), "64 hex digits"),
        (add("--sng-hash"), "a value is required for '--sng-hash <HEX,...>'"),
        (add("-s 10.0.0.0/33"), "192.0.2.0/24"),
        (add("! -d example.org"), "address or prefix"),
        (add("--dport 65536"), "0 to 65535"),
        (add("--sport http"), "0 to 65535"),
        (add("-p quic"), "0 to 255"),
        (add("-n a\\b"), "/run/netns"),
        (add("-l l5"), "l3 or l4"),
        (add("--limit 1/x"), "10/s"),
        (add("--for 1"), "2h30m"),
        (add("--until 25:00"), "2026-12-31"),
        (add("--owner onwed"), "did you mean owned?"),
        (error("-A -c OUTPT -v DROP"), "did you mean OUTPUT?"),
        (error("-A -c OUTPUT -v ACEPT"), "did you mean ACCEPT?"),
        (error("set create x adresses"), "did you mean addresses?"),
        (error("-P OUTPUT REJECT"), "ACCEPT or DROP"),
        (add("--traced ! --traced"), "cannot be used with"),
        (add("--anon-exec=yes"), "unexpected value"),
        (error("-A -c SIDEWAYS -v DROP"), "OUTPUT, INPUT, FORWARD"),
        (error("-A -c OUTPUT -v MAYBE"), "ACCEPT, DROP"),
        (error("-I x -c OUTPUT -v DROP"), "'--insert <N>'"),
        (error("-D -1 -c OUTPUT"), "-1"),
        (error("-P SIDEWAYS DROP"), "OUTPUT, INPUT, FORWARD"),
        (error("-P OUTPUT MAYBE"), "ACCEPT, DROP"),
        (error("-P OUTPUT"), "2 values"),
        (error("--sng-hsh x"), "--sng-hash"),
    ] {
        assert!(found.contains(wanted), "{found} should say {wanted}");
    }
}

#[test]
fn wrong_combinations_are_told() {
    for (line, wanted) in [
        ("", "required"),
        ("-c OUTPUT", "required"),
        ("-A -c OUTPUT", "--verdict"),
        ("-A -v DROP", "--chain"),
        ("-I 1 -v DROP", "--chain"),
        ("-D 1", "--chain"),
        ("-L -F", "cannot be used with"),
        ("-A -I 0 -c OUTPUT -v DROP", "cannot be used with"),
        ("-L -v DROP", "cannot be used with"),
        ("-D 0 -c OUTPUT --dport 1", "cannot be used with"),
        ("-D 0 -c OUTPUT ! --traced", "cannot be used with"),
        ("-P OUTPUT DROP -c OUTPUT", "cannot be used with"),
        ("-H x -n host", "cannot be used with"),
        ("-A -c OUTPUT -v DROP status", "cannot be used with 'status'"),
        ("-A -c OUTPUT -v DROP --until 10:00 --for 1h", "cannot be used with"),
        ("-A -c OUTPUT -v DROP --log --no-log", "cannot be used with"),
        ("-A -c OUTPUT -v DROP --id 7", "app-fw gives ids"),
        ("-L ! -n host", "goes with -A"),
        ("-D 1 --id 7 -c OUTPUT", "cannot be used with"),
        ("-D 1 --id 7", "not both"),
        ("-D", "--id"),
        ("save --dport 1", "unexpected argument"),
        ("restroe", "restore"),
        ("set crate x", "create"),
        ("-L extra", "extra"),
        ("-A -c OUTPUT ! -v DROP", "cannot be negated"),
        ("-A -c OUTPUT -v DROP !", "nothing follows"),
        ("stauts", "status"),
    ] {
        let found = error(line);
        assert!(found.contains(wanted), "{line}: {found} should say {wanted}");
    }
}

#[test]
fn the_examples_of_the_help_work() {
    let help = parse("--help").unwrap_err();
    assert!(!help.use_stderr());
    let text = help.render().to_string().replace("\\\n", "");
    let examples: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("    ctl-fw ")).filter(|line| line.starts_with('-')).collect();
    assert_eq!(examples.len(), 3, "{text}");
    for example in examples {
        // What the shell does.
        let line = match example.split_once("$(") {
            Some((before, _)) => format!("{before}{HEX}"),
            None => example.into(),
        };
        task(&line.replace("$$", "12"));
    }
    assert!(text.contains("has no such object") && text.contains("Exit codes"));
}
