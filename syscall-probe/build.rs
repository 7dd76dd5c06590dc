//! Compiles `bpf/probe.bpf.c` for the eBPF machine; `src/probe.rs` embeds the object.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Tried after `$CLANG` and `clang`: Debian installs a versioned name only, if `clang` itself is not asked for.
const VERSIONS: std::ops::RangeInclusive<u32> = 12..=25;

const REMEDY: &str = "\
The eBPF programs need a C compiler for the eBPF machine and libbpf's headers. On Debian:

    apt-get install clang libbpf-dev

A compiler of another name is taken from $CLANG.";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}\n\n{REMEDY}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if architecture != "x86_64" {
        return Err(format!("bpf/calls.h knows the system calls of x86_64 only, not those of {architecture}"));
    }
    let clang = compiler().ok_or("no clang found")?;
    let object = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?).join("probe.bpf.o");
    let status = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-g", "-O2"])
        .args(["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror"])
        // <linux/bpf.h> includes <asm/types.h>, which Debian keeps in a folder per architecture that this target does
        // not search.
        .arg("-I/usr/include/x86_64-linux-gnu")
        .args(["-c", "bpf/probe.bpf.c", "-o"])
        .arg(&object)
        .status()
        .map_err(|error| format!("cannot run {}: {error}", Path::new(&clang).display()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed ({status}); its messages are above", Path::new(&clang).display()))
    }
}

/// `$CLANG` as it is, or the first name that runs.
fn compiler() -> Option<OsString> {
    if let Some(named) = env::var_os("CLANG") {
        return Some(named);
    }
    std::iter::once("clang".to_owned())
        .chain(VERSIONS.rev().map(|version| format!("clang-{version}")))
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
        .map(OsString::from)
}
