use super::*;
use crate::rule_options::OPTIONS;
use shared::Match;
use shared::document::Document;
use std::process::{Command, Stdio};

fn pages() -> [(&'static str, String); 2] {
    let text = |page: io::Result<Vec<u8>>| String::from_utf8(page.unwrap()).unwrap();
    [("ctl-fw.8", text(ctl_fw())), ("app-fw-rules.5", text(rules()))]
}

/// Text without what roff needs.
fn plain(page: &str) -> String {
    page.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "").replace("\\fI", "").replace("\\e", "\\")
}

fn every_option_is_in(command: &clap::Command, page: &str) {
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        let name = match argument.get_long() {
            Some(long) => format!("--{long}"),
            None => argument.get_value_names().unwrap_or_default().first().unwrap().to_string(),
        };
        assert!(
            page.to_lowercase().contains(&name.to_lowercase()),
            "{}: {name} is not in the page",
            command.get_name()
        );
    }
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        assert!(page.contains(command.get_name()), "{}", command.get_name());
        every_option_is_in(command, page);
    }
}

#[test]
fn pages_are_complete() {
    let [(_, ctl), (_, rules)] = pages().map(|(name, page)| (name, plain(&page)));
    every_option_is_in(&crate::args::command(), &ctl);
    for part in ["SYNOPSIS", "COMMANDS", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
        assert!(ctl.contains(part), "{part}");
    }
    for option in Match::OPTIONS {
        assert!(rules.contains(&format!("\n{option}")), "{option}");
    }
    for option in OPTIONS.iter().filter(|option| option.can_be_negated()) {
        assert!(rules.contains(option.example), "{}", option.example);
    }
}

#[test]
fn the_example_ruleset_is_one() {
    let document = Document::parse(text::RULES_EXAMPLE).unwrap();
    assert_eq!((document.sets.len(), document.policies.len(), document.rules.len()), (2, 1, 3));
}

#[test]
fn pages_are_good_roff() {
    for (name, page) in pages() {
        let mut child = match Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(_) => return eprintln!("skipping: there is no groff here"),
        };
        child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        // A page without a date is warned of by no version, lines that do not fit are.
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{name}");
    }
}

#[test]
fn completions_are_scripts() {
    let script = |shell| String::from_utf8(completions(&crate::args::command(), shell)).unwrap();
    for shell in SHELLS {
        let script = script(shell);
        assert!(script.contains("sng-hash") && script.contains("restore") && !script.contains("not-traced"), "{shell}");
    }
    if let Ok(mut child) = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn() {
        child.stdin.take().unwrap().write_all(script(Shell::Bash).as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn bash_completes_what_stands_behind_a_subcommand() {
    let script = String::from_utf8(completions(&crate::args::command(), Shell::Bash)).unwrap();
    for (words, wanted) in [("ctl-fw set ", "create"), ("ctl-fw learn --", "--apply"), ("ctl-fw import ", "iptables")] {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             case '{words}' in *--) unset 'COMP_WORDS[COMP_CWORD]'; COMP_CWORD=$((COMP_CWORD - 1));; esac\n\
             _ctl__fw ctl-fw \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let Ok(output) = Command::new("bash").args(["--norc", "-c", &ask]).output() else { return };
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.split_whitespace().any(|word| word == wanted), "{words}: {output:?}");
    }
}

#[test]
fn all_is_written() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).unwrap();
    let daemon = clap::Command::new("app-fw").about("Judges").arg(clap::arg!(--db <PATH> "Database"));
    write_app_fw(&daemon, dir.path()).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        "_app-fw",
        "_ctl-fw",
        "app-fw-rules.5",
        "app-fw.8",
        "app-fw.bash",
        "app-fw.fish",
        "ctl-fw.8",
        "ctl-fw.bash",
        "ctl-fw.fish",
    ];
    assert_eq!(names, expected);
    let page = plain(&std::fs::read_to_string(dir.path().join("app-fw.8")).unwrap());
    assert!(page.contains("--db") && page.contains("SIGTERM"));
}
