//! Code that comes into an allowed program for a moment, by another door, or under another name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{ECHO, TO_SINK, Trial, repeat, text};
use crate::pair::Pair;

fn library(pair: &Pair) -> Result<PathBuf> {
    pair.world.library("libforeign.so")
}

/// dlopen, send, dlclose; the library stays until the packet was judged.
#[test]
fn a_library_loaded_for_one_packet() -> Result<()> {
    let (mut trial, library) = Trial::against("flicker", library)?;
    let mut actor = trial.sender(&trial.pair.good)?;
    trial.never(TO_SINK, |_, times| repeat(&mut actor, "flicker", times, &format!("patient {}", text(&library)?)))?;
    trial.always(TO_SINK, |_, times| actor.step(&format!("send {times}")).map(drop))
}

/// dlopen, send, dlclose, as fast as it can be done.
#[test]
fn a_library_gone_before_its_packet_is_judged() -> Result<()> {
    let (mut trial, library) = Trial::against("hasty flicker", library)?;
    let mut actor = trial.sender(&trial.pair.good)?;
    trial.never(TO_SINK, |_, times| repeat(&mut actor, "flicker", times, &format!("hasty {}", text(&library)?)))
}

/// The same with code that goes by something else than munmap.
#[test]
fn a_library_that_goes_by_other_doors() -> Result<()> {
    let (mut trial, library) = Trial::against("other doors out", library)?;
    let mut actor = trial.sender(&trial.pair.good)?;
    for way in ["mremap", "brk", "shmat"] {
        trial
            .never(TO_SINK, |_, times| repeat(&mut actor, "vanish", times, &format!("{way} {}", text(&library)?)))
            .context(way)?;
    }
    Ok(())
}

/// Another thread sends as soon as the mapping is there, while the kernel still reads the file's pages into it.
#[test]
fn a_library_used_before_mmap_returns() -> Result<()> {
    // The longer, the earlier in the call.
    const LENGTH: u64 = 16 << 20;
    let (mut trial, library) = Trial::against("populate", |pair| {
        let library = library(pair)?;
        // By a command: no other test inherits a file that is open for writing.
        pair.world.namespace(harness::Ns::Local).sh(&format!("truncate -s {LENGTH} {}", text(&library)?))?;
        Ok(library)
    })?;
    let mut actor = trial.sender(&trial.pair.good)?;
    trial.never(TO_SINK, |_, times| repeat(&mut actor, "populate", times, text(&library)?))
}

/// A file's code made executable by something else than mmap with PROT_EXEC.
#[test]
fn a_library_mapped_by_other_doors() -> Result<()> {
    let ways =
        ["mprotect", "half-mprotect", "pkey-mprotect", "read-implies-exec", "writable", "fixed", "memfd", "int80"];
    let (mut trial, library) = Trial::against("doors", library)?;
    for way in ways {
        trial
            .never(TO_SINK, |pair, _| {
                let mut actor = pair.start(&pair.good, &["udp", &pair.to4(super::SINK)])?;
                // The packet before makes sure that an answer was kept. The echo server's port is another.
                actor.step(&format!("to {}", pair.to4(ECHO)))?;
                actor.step("converse 1")?;
                actor.step(&format!("map-by {way} {}", text(&library)?))?;
                actor.step(&format!("to {}", pair.to4(super::SINK)))?;
                actor.step("send 3")?;
                actor.step("judged").map(drop)
            })
            .with_context(|| way.to_owned())?;
    }
    Ok(())
}

/// Executable memory that is shared counts as a file, one that no rule knows: only an aggregate says so.
#[test]
fn executable_memory_that_can_be_shared() -> Result<()> {
    let (mut trial, library) = Trial::against("shared memory", library)?;
    trial.rules.remove(0);
    for way in ["shm", "zero"] {
        let act = |pair: &Pair, _| {
            let mut actor = pair.start(&pair.good, &["udp", &pair.to4(super::SINK)])?;
            actor.step(&format!("map-by {way} {}", text(&library)?))?;
            actor.step("send 3")?;
            actor.step("judged").map(drop)
        };
        trial.never(TO_SINK, act).with_context(|| way.to_owned())?;
    }
    Ok(())
}

/// LD_AUDIT, and a library that a program needs found elsewhere (LD_LIBRARY_PATH). LD_PRELOAD: see `images.rs`.
#[test]
fn libraries_that_the_loader_is_told_to_take() -> Result<()> {
    let needed = |pair: &Pair| {
        // The loader asks for it by this name.
        let folder = pair.world.folder().join("elsewhere");
        fs::create_dir(&folder)?;
        pair.world.library("elsewhere/libgcc_s.so.1")
    };
    let audit = |pair: &Pair| {
        let library = pair.world.folder().join("audit.so");
        let source = pair.world.folder().join("audit.c");
        fs::write(&source, "unsigned la_version(unsigned version) { return version; }\n")?;
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
        ensure!(compiled.context("starting cc")?.success(), "cc failed");
        Ok(library)
    };
    let path = |library: &Path| library.parent().unwrap_or(library).to_owned();
    let (trial, library) = Trial::against("needed", needed)?;
    told(trial, &format!("LD_LIBRARY_PATH={}", path(&library).display()))?;
    let (trial, library) = Trial::against("audit", audit)?;
    told(trial, &format!("LD_AUDIT={}", library.display()))
}

/// The allowed program, started with a variable that the loader reads.
fn told(mut trial: Trial, variable: &str) -> Result<()> {
    trial
        .never(TO_SINK, |pair, _| {
            let arguments = [variable, text(&pair.good)?, "udp", &pair.to4(super::SINK)];
            let mut actor = pair.start(Path::new("env"), &arguments)?;
            actor.step("send 3")?;
            actor.step("judged").map(drop)
        })
        .with_context(|| variable.to_owned())
}

/// A user without rights makes a mount namespace in which the denied program lies at the allowed one's path.
#[test]
fn a_path_faked_in_a_user_namespace() -> Result<()> {
    let mut trial = Trial::new("user namespace")?;
    let script = r#"mount --bind "$1" "$2" && exec "$2" udp "$3""#;
    // The world's folder is closed to others; root opens it for this one.
    trial.pair.world.namespace(harness::Ns::Local).sh(&format!("chmod 755 {}", text(trial.pair.world.folder())?))?;
    trial.never(TO_SINK, |pair, _| {
        let to = pair.to4(super::SINK);
        let unshare = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm", "sh", "-c", script, "sh"];
        let arguments = [&unshare[..], &[text(&pair.evil)?, text(&pair.good)?, &to]].concat();
        let mut actor = pair.start(Path::new("setpriv"), &arguments)?;
        actor.step("send 3")?;
        actor.step("judged").map(drop)
    })
}
