use super::*;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lookup::{ProcessError, aggregate_of};

fn quiet() -> Progress<'static> {
    Progress::none()
}

/// What a really running process is made of, once it has got as far as its own code.
fn aggregate_when_running(program: &str, args: &[&str]) -> Option<Digest> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // It waits in its own code; until then its loader may be at work.
    let waits = || {
        let state = fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
        let calls = fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
        let number = calls.split(' ').next().and_then(|number| number.parse::<i64>().ok());
        // read, select, ppoll, clock_nanosleep, pselect6, poll, wait4
        !state.is_empty() && matches!(number, Some(0 | 7 | 23 | 61 | 230 | 270 | 271))
    };
    while !waits() && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let found = aggregate_of(child.id(), &mut quiet());
    let _ = child.kill();
    let _ = child.wait();
    match found {
        Err(ProcessError::Io { .. }) => None,
        found => Some(found.unwrap()),
    }
}

#[test]
fn what_is_predicted_is_what_runs() {
    for (program, args) in
        [("/bin/sleep", &["60"][..]), ("/bin/cat", &[]), ("/usr/bin/sort", &[]), ("/bin/bash", &["-c", "read x; exit"])]
    {
        if !Path::new(program).exists() {
            continue;
        }
        let predicted = predict(Path::new(program), &mut quiet()).unwrap();
        let Some(real) = aggregate_when_running(program, args) else {
            return eprintln!("skipping: map_files cannot be read here");
        };
        assert_eq!(predicted.aggregate(), real, "{program}: {:#?}", predicted.objects);
        assert_eq!(predicted.path, fs::canonicalize(program).unwrap());
    }
}

/// curl has dozens of libraries; while it reads its configuration from a pipe they are all there.
#[test]
fn a_program_with_many_libraries() {
    let curl = Path::new("/usr/bin/curl");
    if !curl.exists() {
        return eprintln!("skipping: there is no curl here");
    }
    let predicted = predict(curl, &mut quiet()).unwrap();
    assert!(predicted.objects.len() > 10, "{:#?}", predicted.objects);
    if let Some(real) = aggregate_when_running("/usr/bin/curl", &["-K", "-"]) {
        assert_eq!(predicted.aggregate(), real, "{:#?}", predicted.objects);
    }
}

#[test]
fn a_library_beside_its_program_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("lib.c", "int answer(void) { return 42; }");
    write(
        "main.c",
        "#include <unistd.h>\nint answer(void); int main(void) { char c; answer(); return read(0, &c, 1); }",
    );
    let compile = |words: &str| {
        let words = words.split(' ').map(String::from);
        Command::new("cc").current_dir(dir.path()).args(words).status().is_ok_and(|status| status.success())
    };
    if !compile("-shared -fPIC -Wl,-soname,libanswer.so.1 -o libanswer.so.1 lib.c") {
        return eprintln!("skipping: there is no C compiler here");
    }
    for (name, flags) in
        [("runpath", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"), ("rpath", "-Wl,--disable-new-dtags,-rpath,${ORIGIN}/.")]
    {
        assert!(compile(&format!("-o {name} main.c libanswer.so.1 {flags}")));
        let program = dir.path().join(name);
        let predicted = predict(&program, &mut quiet()).unwrap();
        assert!(predicted.objects.iter().any(|(path, _)| path.ends_with("libanswer.so.1")), "{predicted:?}");
        if let Some(real) = aggregate_when_running(program.to_str().unwrap(), &[]) {
            assert_eq!(predicted.aggregate(), real, "{:#?}", predicted.objects);
        }
    }
    // Data alone is not mapped executable.
    write("data.c", "const char data[] = \"x\";");
    assert!(compile("-shared -nostdlib -Wl,-soname,libdata.so.1 -o libdata.so.1 data.c"));
    assert!(compile("-o with-data main.c libanswer.so.1 -Wl,--no-as-needed libdata.so.1 -Wl,-rpath,$ORIGIN"));
    let program = dir.path().join("with-data");
    let predicted = predict(&program, &mut quiet()).unwrap();
    assert!(!predicted.objects.iter().any(|(path, _)| path.ends_with("libdata.so.1")), "{predicted:?}");
    if let Some(real) = aggregate_when_running(program.to_str().unwrap(), &[]) {
        assert_eq!(predicted.aggregate(), real, "{:#?}", predicted.objects);
    }
    assert!(compile("-o lost main.c libanswer.so.1"));
    assert!(matches!(predict(&dir.path().join("lost"), &mut quiet()), Err(ProgramError::NotFound { .. })));
    if compile("-static -o fixed main.c lib.c") {
        let predicted = predict(&dir.path().join("fixed"), &mut quiet()).unwrap();
        assert_eq!(predicted.objects.len(), 1);
        if let Some(real) = aggregate_when_running(dir.path().join("fixed").to_str().unwrap(), &[]) {
            assert_eq!(predicted.aggregate(), real);
        }
    }
    fs::set_permissions(dir.path().join("runpath"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert!(matches!(predict(&dir.path().join("runpath"), &mut quiet()), Err(ProgramError::SetId(_))));
}

#[test]
fn a_script_is_its_interpreter() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let script = predict(&write("a", "#!/bin/sh\nexit\n"), &mut quiet()).unwrap();
    let shell = predict(Path::new("/bin/sh"), &mut quiet()).unwrap();
    assert_eq!((script.aggregate(), &script.path), (shell.aggregate(), &shell.path));
    assert!(script.note().unwrap().contains("is a script") && shell.note().is_none());
    assert!(matches!(predict(&write("b", "#!/usr/bin/env sh\n"), &mut quiet()), Err(ProgramError::Env(_))));
    assert!(matches!(predict(&write("c", "text"), &mut quiet()), Err(ProgramError::NotAProgram(_))));
    let loops = write("d", "");
    write("d", &format!("#!{}\n", loops.display()));
    assert!(matches!(predict(&loops, &mut quiet()), Err(ProgramError::TooDeep(_))));
    assert!(matches!(predict(dir.path(), &mut quiet()), Err(ProgramError::NotAFile(_))));
    assert!(matches!(predict(&dir.path().join("none"), &mut quiet()), Err(ProgramError::Io { .. })));
    assert!(in_path("sh").is_ok() && in_path("no-such-program-here").is_err());
}
