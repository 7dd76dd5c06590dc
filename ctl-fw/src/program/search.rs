//! Where ld.so(8) looks for a library, in its order. LD_LIBRARY_PATH is not asked: who starts the program chooses it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::ProgramError;
use super::cache::Cache;
use super::elf::{Elf, Machine};

/// Machines by their number (elf.h: EM_386, EM_X86_64, EM_AARCH64) and Debian's name.
const TRIPLETS: [(u16, &str); 3] = [(3, "i386-linux-gnu"), (62, "x86_64-linux-gnu"), (183, "aarch64-linux-gnu")];

pub(super) struct Searcher {
    cache: Cache,
    /// `glibc-hwcaps/x86-64-v3` and so on that this CPU can, best first.
    variants: Vec<&'static str>,
    defaults: Vec<PathBuf>,
}

impl Searcher {
    /// For programs like `program`.
    pub(super) fn new(program: &Elf) -> Searcher {
        let Machine { number, is_wide } = program.machine;
        let mut defaults = Vec::new();
        if let Some((_, triplet)) = TRIPLETS.iter().find(|(machine, _)| *machine == number) {
            defaults.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")].map(PathBuf::from));
        }
        if is_wide {
            defaults.extend(["/lib64", "/usr/lib64"].map(PathBuf::from));
        }
        defaults.extend(["/lib", "/usr/lib"].map(PathBuf::from));
        Searcher { cache: Cache::of_system(), variants: variants(program.machine), defaults }
    }

    /// Files that may be the library `name`, best first. `chain` is the object that needs it, the one that needed that, and
    /// so on up to the program, each with the path that is its `$ORIGIN/...`.
    pub(super) fn candidates(&self, chain: &[(PathBuf, &Elf)], name: &[u8]) -> Result<Vec<PathBuf>, ProgramError> {
        let (asking, asking_elf) = &chain[0];
        if name.contains(&b'/') {
            return Ok(vec![expand(name, asking)?]);
        }
        let file = OsStr::from_bytes(name);
        let mut dirs = Vec::new();
        if asking_elf.runpath.is_none() {
            for (path, elf) in chain.iter().filter(|(_, elf)| elf.runpath.is_none()) {
                dirs.extend(split(elf.rpath.as_deref(), path)?);
            }
        }
        dirs.extend(split(asking_elf.runpath.as_deref(), asking)?);
        let mut found: Vec<PathBuf> = dirs.iter().flat_map(|dir| self.in_dir(dir, file)).collect();
        if !asking_elf.no_default {
            let mut cached: Vec<&Path> = self.cache.paths(name).filter(|path| self.rank(path).is_some()).collect();
            cached.sort_by_key(|path| self.rank(path));
            found.extend(cached.into_iter().map(Path::to_path_buf));
            found.extend(self.defaults.iter().flat_map(|dir| self.in_dir(dir, file)));
        }
        found.retain(|path| path.exists());
        Ok(found)
    }

    fn in_dir(&self, dir: &Path, file: &OsStr) -> Vec<PathBuf> {
        let variants = self.variants.iter().map(|variant| dir.join("glibc-hwcaps").join(variant).join(file));
        variants.chain([dir.join(file)]).collect()
    }

    /// Lower is better; `None`: for another CPU.
    fn rank(&self, path: &Path) -> Option<usize> {
        let mut parts = path.iter();
        match parts.find(|part| *part == "glibc-hwcaps").and_then(|_| parts.next()) {
            None => Some(self.variants.len()),
            Some(variant) => self.variants.iter().position(|known| variant == *known),
        }
    }
}

/// Levels of x86-64 that this CPU has, the highest first, by the features of the psABI.
#[cfg(target_arch = "x86_64")]
fn variants(machine: Machine) -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let mut found = Vec::new();
    let wide = machine == Machine { number: 62, is_wide: true };
    let second = wide && has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3");
    let third = second
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let fourth =
        third && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    for (is_there, name) in [(fourth, "x86-64-v4"), (third, "x86-64-v3"), (second, "x86-64-v2")] {
        if is_there {
            found.push(name);
        }
    }
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn variants(_: Machine) -> Vec<&'static str> {
    Vec::new()
}

/// Directories of a DT_RPATH or DT_RUNPATH.
fn split(path: Option<&[u8]>, of: &Path) -> Result<Vec<PathBuf>, ProgramError> {
    let parts = path.into_iter().flat_map(|path| path.split(|byte| *byte == b':'));
    parts.filter(|part| !part.is_empty()).map(|part| expand(part, of)).collect()
}

/// Puts the directory of `of` in the place of `$ORIGIN`.
fn expand(path: &[u8], of: &Path) -> Result<PathBuf, ProgramError> {
    let origin = of.parent().unwrap_or(Path::new("/"));
    let mut expanded = Vec::new();
    let mut rest = path;
    while let Some(dollar) = rest.iter().position(|byte| *byte == b'$') {
        expanded.extend(&rest[..dollar]);
        let after = &rest[dollar..];
        rest =
            [&b"$ORIGIN"[..], b"${ORIGIN}"].iter().find_map(|token| after.strip_prefix(*token)).ok_or_else(|| {
                ProgramError::Token { path: of.into(), token: String::from_utf8_lossy(path).into_owned() }
            })?;
        expanded.extend(origin.as_os_str().as_bytes());
    }
    expanded.extend(rest);
    Ok(Path::new(OsStr::from_bytes(&expanded)).to_path_buf())
}

/// What /etc/ld.so.preload puts into every program.
pub(super) fn preloaded() -> Vec<Vec<u8>> {
    let text = fs::read("/etc/ld.so.preload").unwrap_or_default();
    let lines =
        text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b'#').next().unwrap_or_default());
    lines
        .flat_map(|line| line.split(|byte| byte.is_ascii_whitespace() || *byte == b':'))
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_expanded() {
        let at = |path: &str| expand(path.as_bytes(), Path::new("/opt/app/bin/x"));
        assert_eq!(at("$ORIGIN/../lib").unwrap(), Path::new("/opt/app/bin/../lib"));
        assert_eq!(at("${ORIGIN}").unwrap(), Path::new("/opt/app/bin"));
        assert_eq!(at("/lib").unwrap(), Path::new("/lib"));
        assert!(matches!(at("/usr/$LIB"), Err(ProgramError::Token { .. })));
    }

    #[test]
    fn rpath_is_for_those_without_runpath() {
        let searcher = Searcher { cache: Cache::default(), variants: vec![], defaults: vec![] };
        let dir = tempfile::tempdir().unwrap();
        for name in ["r", "run", "up"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("libx.so"), "").unwrap();
        }
        let path = |name: &str| Some(dir.path().join(name).into_os_string().into_encoded_bytes());
        let program = Elf { rpath: path("up"), ..Elf::default() };
        let names = |elf: &Elf| -> Vec<_> {
            let chain = [(PathBuf::from("/a"), elf), (PathBuf::from("/p"), &program)];
            let found = searcher.candidates(&chain, b"libx.so").unwrap();
            found.iter().map(|path| path.parent().unwrap().file_name().unwrap().to_owned()).collect()
        };
        let both = Elf { rpath: path("r"), runpath: path("run"), ..Elf::default() };
        assert_eq!(names(&both), ["run"]);
        let old = Elf { rpath: path("r"), ..Elf::default() };
        assert_eq!(names(&old), ["r", "up"]);
    }
}
