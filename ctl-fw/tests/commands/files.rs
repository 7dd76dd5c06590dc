//! Rules made of files, of other firewalls' rules, and of what was learned.

use std::fs;
use std::path::Path;
use std::process::Command;

use ctl_fw::Exit;
use shared::control::{self, Answer, Done, Edit, Listing, Request};
use shared::document::Document;
use shared::{Chain, Digest, Selector, Verdict};

use super::common::{ask, ask_all, changed, edit, listed_rule, listing, rule, ruled, run};

#[test]
fn a_file_is_looked_up_when_the_rule_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap().join("tool");
    fs::write(&path, "\x7fELF").unwrap();
    std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
    let line =
        format!("-A -c OUTPUT -v DROP -n any ! --exe {} --lib {}", dir.path().join("link").display(), path.display());
    let (outcome, asked) = ask(&line, ruled(false));
    let digest = Digest::of(b"\x7fELF");
    // The link is what will lead to another file after an upgrade.
    let (link, path) = (dir.path().join("link"), path.display());
    let link = link.display();
    let expected = format!(
        "-c OUTPUT -n any -v DROP ! --sng-hash {digest} --from exe:{link} --sng-hash {digest} --from lib:{path}"
    );
    assert_eq!(edit(asked).0, Edit::Add { rule: rule(&expected), position: None });
    assert_eq!(outcome.err, "");

    for (line, wanted) in [
        ("--exe /nonexistent/x", "/nonexistent/x"),
        ("--pid 4000000000", "no process"),
        ("--pid x", "process id"),
        ("--exec /nonexistent/x", "/nonexistent/x"),
        ("--uid no-such-user", "no-such-user"),
        ("--until 2001-01-01", "before it begins"),
        ("--from exe:/x", "stands after"),
        ("--dport 80 --from exe:/x", "takes no --from"),
        ("--limit 1/s --limit 2/s", "given twice"),
    ] {
        let outcome = run(Path::new("/nonexistent"), &format!("-A -c OUTPUT -v DROP {line}"));
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""), "{line}");
        assert!(outcome.err.contains(wanted), "{line}: {}", outcome.err);
    }
}

#[test]
fn programs_are_told_of_errors_too() {
    let error = |line: &str| {
        let outcome = run(Path::new("/nonexistent"), line);
        let value: serde_json::Value = serde_json::from_str(&outcome.err).unwrap();
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Error, ""), "{line}");
        value["error"]["kind"].as_str().unwrap().to_owned()
    };
    assert_eq!(error("-L --json"), "no-answer");
    assert_eq!(error("-A -c OUTPUT -v DROP --exe /nonexistent/x --json"), "lookup");
    assert_eq!(error("check /nonexistent/x --json"), "io");
}

#[test]
fn rules_follow_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(dir.path()).unwrap();
    let (tool, other) = (root.join("tool"), root.join("other"));
    fs::write(&tool, "new").unwrap();
    fs::write(&other, "same").unwrap();
    let (old, new, same) = (Digest::of(b"old"), Digest::of(b"new"), Digest::of(b"same"));
    let text = |digest: Digest| {
        format!(
            "-c OUTPUT -n any -v DROP --sng-hash {digest} --from exe:{} ! --sng-hash {same} --from lib:{}",
            tool.display(),
            other.display()
        )
    };
    let listing = Listing { rules: vec![listed_rule(4, false, &text(old))], ..listing() };
    // A system of dpkg's of its own, whose one package has the file.
    let admin = root.join("dpkg");
    let package = |md5: &str| {
        fs::create_dir_all(admin.join("info")).unwrap();
        fs::create_dir_all(admin.join("updates")).unwrap();
        let status = "Package: pack\nStatus: install ok installed\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n\n";
        fs::write(admin.join("status"), status).unwrap();
        let name = tool.display();
        fs::write(admin.join("info/pack.list"), format!("{name}\n")).unwrap();
        fs::write(admin.join("info/pack.md5sums"), format!("{md5}  {}\n", &name.to_string()[1..])).unwrap();
    };
    let refresh = |options: &str, answers: Vec<Answer>| {
        ask_all(&format!("refresh --admin-dir {} {options}", admin.display()), answers)
    };
    let listed = || Answer::Listing(listing.clone());
    let done = || changed(vec![Done::Rule(Box::new(listed_rule(4, false, &text(new))))]);

    let (outcome, asked) = refresh("--dry-run", vec![listed()]);
    assert_eq!((outcome.exit, asked.len()), (Exit::Done, 1), "{outcome:?}");
    assert!(
        outcome.out.contains("of no package") && outcome.out.contains("would update 1 of 1 digest"),
        "{}",
        outcome.out
    );
    let (outcome, asked) = refresh("--dpkg", vec![listed()]);
    assert_eq!((outcome.exit, asked.len()), (Exit::Negative, 1), "{outcome:?}");
    assert!(outcome.err.contains("of no package") && !outcome.err.contains("--force"), "{outcome:?}");

    let replaced = |asked: &Request| {
        let Request::Change { edits, expected: Some(7), .. } = asked else { panic!("{asked:?}") };
        assert_eq!(edits, &[Edit::Replace { id: 4, rule: rule(&text(new)) }]);
    };
    let (outcome, asked) = refresh("", vec![listed(), done()]);
    assert_eq!(outcome.exit, Exit::Done);
    replaced(&asked[1]);

    if Command::new("dpkg-query").arg("--version").output().is_ok() {
        // MD5 of "new".
        package("22af645d1859cb5ca6da0c484f1f37ea");
        let (outcome, asked) = refresh("--dpkg --json", vec![listed(), done()]);
        let value: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
        assert_eq!(
            (&value["changed"][0]["record"], &value["changed"][0]["package"]),
            (&"confirmed".into(), &"pack".into())
        );
        replaced(&asked[1]);
        package("00000000000000000000000000000000");
        let (outcome, asked) = refresh("", vec![listed()]);
        assert_eq!((outcome.exit, asked.len()), (Exit::Negative, 1), "{outcome:?}");
        assert!(outcome.out.contains("NOT as pack has it") && outcome.err.contains("--force"), "{outcome:?}");
        let (outcome, asked) = refresh("--force", vec![listed(), done()]);
        assert_eq!(outcome.exit, Exit::Done);
        replaced(&asked[1]);
    }

    fs::remove_file(&tool).unwrap();
    let (outcome, asked) = refresh("", vec![listed()]);
    assert_eq!((outcome.exit, asked.len()), (Exit::Negative, 1));
    assert!(outcome.err.contains("note: exe:") && outcome.out.starts_with("all other"), "{outcome:?}");
    // Also apt's hook says so: the rule means nobody any more.
    let (outcome, _) = refresh("--quiet", vec![listed()]);
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Done, ""));
    assert!(outcome.err.contains("note: exe:"), "{outcome:?}");
    assert_eq!(run(&root.join("none"), "refresh --quiet").exit, Exit::Done);
    assert_eq!(run(&root.join("none"), "refresh").exit, Exit::Error);
}

#[test]
fn a_program_that_does_not_run_is_explained() {
    let answer = control::Explanation {
        chain: Chain::Input,
        namespace: Selector::Any,
        owners: vec![],
        rules: vec![],
        policy: Verdict::Drop,
        verdict: Some(Verdict::Drop),
        reason: Some(shared::Reason::Policy),
    };
    let (outcome, asked) = ask("explain sh -c INPUT -n any", Answer::Explanation(Box::new(answer)));
    let Request::Explain { subject: control::Subject::Program { objects }, chain, flow, namespace } = asked else {
        panic!("{asked:?}")
    };
    assert_eq!((chain, flow, namespace), (Chain::Input, None, Some(Selector::Any)));
    let shell = fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(objects[0].path, shell.to_str().unwrap());
    assert_eq!(objects[0].digest, Some(Digest::of(&fs::read(&shell).unwrap())));
    assert_eq!(outcome.exit, Exit::Done);
    assert!(outcome.out.ends_with("Verdict: DROP: No rule fired; the chain's policy decided.\n"), "{}", outcome.out);
}

#[test]
fn what_was_learned_is_applied_in_one_change() {
    let time = "2026-11-21T12:00:00Z".parse().unwrap();
    let learned = control::Learned {
        chain: Chain::Output,
        namespace: Selector::Host,
        programs: vec![control::LearnedProgram {
            path: "/usr/bin/curl".into(),
            digest: Some(Digest::of(b"curl")),
            aggregate: None,
        }],
        protocol: shared::Protocol::UDP,
        remote: "192.0.2.53".parse().unwrap(),
        port: Some(53),
        near: false,
        packets: 7,
        reason: shared::Reason::Policy,
        first: time,
        last: time,
    };
    // Answers of a server go to ports that never come again; what a rule keeps back is left to whoever made the rule.
    let served =
        control::Learned { near: true, port: Some(8081), remote: "192.0.2.9".parse().unwrap(), ..learned.clone() };
    let kept_back = control::Learned { reason: shared::Reason::Rule, port: Some(99), ..learned.clone() };
    let all = Answer::Learned(vec![learned.clone(), served, kept_back]);
    let (outcome, _) = ask("learn", all);
    assert!(outcome.out.contains("-d 192.0.2.9/32 --sport 8081 "), "{}", outcome.out);
    assert!(!outcome.out.contains("--dport 99"), "{}", outcome.out);
    assert!(outcome.out.contains("which a rule of yours keeps back"), "{}", outcome.out);
    let listing = Listing { rules: vec![], ..listing() };
    let answers =
        vec![Answer::Learned(vec![learned]), Answer::Listing(listing), changed(vec![]), Answer::Learned(vec![])];
    let (outcome, mut asked) = ask_all("learn --apply --clear", answers);
    asked.remove(1);
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Done, "revision 9: added 1 rule\n"));
    assert_eq!(asked[0], Request::Learned { clear: false });
    let expected = format!(
        "-c OUTPUT -n host -v ACCEPT -p udp -d 192.0.2.53 --dport 53 --sng-hash {} --from exe:/usr/bin/curl \
         --comment \"learned: curl, 7 packets\"",
        Digest::of(b"curl")
    );
    assert_eq!(edit(asked[1].clone()).0, Edit::Add { rule: rule(&expected), position: None });
    assert_eq!(asked[2], Request::Learned { clear: true });
    let (outcome, _) = ask("learn --apply", Answer::Learned(vec![]));
    assert_eq!(outcome.exit, Exit::Negative);
}

#[test]
fn imported_rules_are_added_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("v4");
    fs::write(&file, "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1/32 -j DROP\n-A INPUT -m u32 -j DROP\n")
        .unwrap();
    let line = format!("import iptables -n any {}", file.display());
    let outcome = run(Path::new("/nonexistent"), &line);
    assert_eq!(outcome.exit, Exit::Done);
    assert!(
        outcome.out.ends_with("-P INPUT ACCEPT -n any\n-A -c INPUT -n any -v DROP -s 192.0.2.1/32\n"),
        "{}",
        outcome.out
    );
    let expected = format!("{}:4: -m u32 has no counterpart: -A INPUT -m u32 -j DROP\n", file.display());
    assert_eq!(outcome.err, expected);
    Document::parse(&outcome.out).unwrap();
    let outcome = run(Path::new("/nonexistent"), &format!("{line} --apply"));
    assert!(outcome.exit == Exit::Error && outcome.err.contains("--partial"), "{}", outcome.err);
    let (outcome, asked) = ask(&format!("{line} --apply --partial"), changed(vec![]));
    let Request::Change { edits, .. } = asked else { panic!() };
    assert_eq!(edits.len(), 2);
    assert_eq!(outcome.out, "revision 9: added 1 rule\n");
}
