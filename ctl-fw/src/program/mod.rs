//! What a program will be made of when it runs: itself, its loader and the libraries it is linked with, found as glibc's
//! ld.so(8) finds them, without running it.

mod cache;
mod elf;
mod search;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use shared::Digest;

use crate::hash;
use crate::progress::Progress;
use elf::{Elf, Kind};
use search::Searcher;

/// Interpreters of interpreters that the kernel follows (`BINPRM_MAX_RECURSION` and the like in fs/exec.c).
const MOST_INTERPRETERS: usize = 5;
/// Objects of one program; more are a mistake.
const MOST_OBJECTS: usize = 4096;
/// S_ISUID, S_ISGID.
const SET_ID: u32 = 0o6000;

/// Why nobody can tell what a program will be made of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is no regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    #[error("{} is no program: neither ELF nor a script", .0.display())]
    NotAProgram(PathBuf),
    #[error("{} makes no sense as ELF: {what}", path.display())]
    Nonsense { path: PathBuf, what: String },
    #[error(
        "{} is setuid or setgid: its loader works by other rules; start it and use --pid, or name the file with --exe",
        .0.display()
    )]
    SetId(PathBuf),
    #[error("{} is run by {}, which is not glibc's loader: start it and use --pid", program.display(), loader.display())]
    OtherLoader { program: PathBuf, loader: PathBuf },
    #[error("{} is a script for `env`, which finds the interpreter when it runs: name the interpreter itself", .0.display())]
    Env(PathBuf),
    #[error("{}: too many interpreters", .0.display())]
    TooDeep(PathBuf),
    #[error("{} needs the library {name}, which is not to be found", path.display())]
    NotFound { path: PathBuf, name: String },
    #[error("{}: it is not known here what {token:?} in the path of its libraries stands for", path.display())]
    Token { path: PathBuf, token: String },
    #[error("there is no program {0:?} in PATH")]
    NotInPath(String),
}

/// A program that would run.
#[derive(Debug)]
pub(crate) struct Program {
    /// The program that runs: its real path. For a script, that of the interpreter.
    pub(crate) path: PathBuf,
    /// The script that was asked for, if it is one.
    pub(crate) script: Option<PathBuf>,
    /// What is mapped executable, by real path; the program is first.
    pub(crate) objects: Vec<(PathBuf, Digest)>,
}

impl Program {
    /// The aggregate it will have.
    pub(crate) fn aggregate(&self) -> Digest {
        hash::aggregate(self.objects.clone())
    }

    /// What is to be known of it.
    pub(crate) fn note(&self) -> Option<String> {
        let script = self.script.as_ref()?;
        let (script, program) = (script.display(), self.path.display());
        Some(format!("{script} is a script: what runs is {program}, and every other script of it is the same program"))
    }
}

/// Whether the file at `path` begins as ELF does.
pub(crate) fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The file of the command `name`: itself if it has a slash, else the first in PATH.
pub(crate) fn in_path(name: &str) -> Result<PathBuf, ProgramError> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(is_program)
        .ok_or_else(|| ProgramError::NotInPath(name.into()))
}

/// A file with its content.
#[derive(Debug)]
struct Content {
    /// As it was opened, absolute.
    opened: PathBuf,
    /// As the kernel shows it when it is mapped.
    real: PathBuf,
    /// Device and inode.
    key: (u64, u64),
    bytes: Vec<u8>,
    mode: u32,
}

fn load(path: &Path, progress: &mut Progress<'_>) -> Result<Content, ProgramError> {
    let io_error = |source| ProgramError::Io { path: path.into(), source };
    let real = fs::canonicalize(path).map_err(io_error)?;
    progress.tick(|| format!("reading {}", real.display()));
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(io_error)?;
    let before = file.metadata().map_err(io_error)?;
    if !before.is_file() {
        return Err(ProgramError::NotAFile(path.into()));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io_error)?;
    let after = file.metadata().map_err(io_error)?;
    if hash::version(&before) != hash::version(&after) {
        return Err(ProgramError::Changed(path.into()));
    }
    let opened = std::path::absolute(path).map_err(io_error)?;
    Ok(Content { opened, real, key: (before.dev(), before.ino()), bytes, mode: before.mode() })
}

/// An object of the program.
struct Loaded {
    content: Content,
    elf: Elf,
    /// Which object asked for it first; `None` for the program.
    parent: Option<usize>,
    /// What others call it.
    names: Vec<Vec<u8>>,
}

/// Finds out what the program at `path` will be made of.
pub(crate) fn predict(path: &Path, progress: &mut Progress<'_>) -> Result<Program, ProgramError> {
    let (content, elf, script) = program(path, progress)?;
    let path = content.real.clone();
    if content.mode & SET_ID != 0 {
        return Err(ProgramError::SetId(path));
    }
    let loader = elf.interpreter.clone();
    let mut loaded = vec![Loaded { content, elf, parent: None, names: Vec::new() }];
    if let Some(loader) = loader {
        let loader = Path::new(std::ffi::OsStr::from_bytes(&loader)).to_path_buf();
        if !is_glibc(&loader) {
            return Err(ProgramError::OtherLoader { program: path, loader });
        }
        link(&mut loaded, &loader, progress)?;
    }
    let objects = loaded
        .iter()
        .filter(|object| object.elf.has_code)
        .map(|object| (object.content.real.clone(), Digest::of(&object.content.bytes)))
        .collect();
    Ok(Program { path, script, objects })
}

/// `ld-linux-x86-64.so.2`, `ld-linux.so.2`, `ld-linux-aarch64.so.1`, `ld64.so.2`.
fn is_glibc(loader: &Path) -> bool {
    let name = loader.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b"ld-linux") || name.starts_with(b"ld64.so")
}

/// The ELF file that runs when `path` is executed, and the script if `path` is one.
fn program(path: &Path, progress: &mut Progress<'_>) -> Result<(Content, Elf, Option<PathBuf>), ProgramError> {
    let mut next = path.to_path_buf();
    let mut script = None;
    for _ in 0..MOST_INTERPRETERS {
        let content = load(&next, progress)?;
        match elf::kind(&content.bytes) {
            Kind::Elf => {
                let elf = Elf::read(&content.bytes)
                    .map_err(|what| ProgramError::Nonsense { path: content.real.clone(), what })?;
                return Ok((content, elf, script));
            }
            Kind::Script(interpreter) => {
                next = Path::new(std::ffi::OsStr::from_bytes(interpreter)).to_path_buf();
                if next.file_name().is_some_and(|name| name == "env") {
                    return Err(ProgramError::Env(content.real));
                }
                script.get_or_insert(content.real);
            }
            Kind::Other => return Err(ProgramError::NotAProgram(content.real)),
        }
    }
    Err(ProgramError::TooDeep(path.into()))
}

/// Adds the loader and all libraries to the program, breadth first as ld.so does.
fn link(loaded: &mut Vec<Loaded>, loader: &Path, progress: &mut Progress<'_>) -> Result<(), ProgramError> {
    let searcher = Searcher::new(&loaded[0].elf);
    let content = load(loader, progress)?;
    let elf = read_library(&content)?;
    let loader_name = loader.file_name().unwrap_or_default().as_bytes().to_vec();
    loaded.push(Loaded { content, elf, parent: Some(0), names: vec![loader_name] });
    let mut waiting: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
    waiting.extend(search::preloaded().into_iter().map(|name| (0, name)));
    waiting.extend(loaded[0].elf.needed.iter().map(|name| (0, name.clone())));
    waiting.extend(loaded[1].elf.needed.iter().map(|name| (1, name.clone())));
    while let Some((asking, name)) = waiting.pop_front() {
        let is_it = |object: &Loaded| object.elf.soname.as_ref() == Some(&name) || object.names.contains(&name);
        if loaded.iter().skip(1).any(is_it) {
            continue;
        }
        let found = find(&searcher, loaded, asking, &name, progress)?;
        if let Some(same) = loaded.iter_mut().find(|object| object.content.key == found.content.key) {
            same.names.push(name);
            continue;
        }
        if loaded.len() >= MOST_OBJECTS {
            return Err(ProgramError::TooDeep(loaded[0].content.real.clone()));
        }
        let index = loaded.len();
        waiting.extend(found.elf.needed.iter().map(|name| (index, name.clone())));
        loaded.push(Loaded { names: vec![name], ..found });
    }
    Ok(())
}

fn read_library(content: &Content) -> Result<Elf, ProgramError> {
    Elf::read(&content.bytes).map_err(|what| ProgramError::Nonsense { path: content.real.clone(), what })
}

/// The library `name` that the object `asking` needs.
fn find(
    searcher: &Searcher,
    loaded: &[Loaded],
    asking: usize,
    name: &[u8],
    progress: &mut Progress<'_>,
) -> Result<Loaded, ProgramError> {
    let mut chain = vec![&loaded[asking]];
    while let Some(parent) = chain.last().and_then(|object| object.parent) {
        chain.push(&loaded[parent]);
    }
    let chain: Vec<_> = chain.iter().map(|object| (object.content.opened.as_path(), &object.elf)).collect();
    // The program's own origin is its real path: ld.so asks /proc/self/exe.
    let origin =
        |index: usize, path: &Path| if index + 1 == chain.len() { loaded[0].content.real.clone() } else { path.into() };
    let chain: Vec<_> = chain.iter().enumerate().map(|(index, (path, elf))| (origin(index, path), *elf)).collect();
    for candidate in searcher.candidates(&chain, name)? {
        // What cannot be opened, or is for another machine, is passed over.
        let Ok(content) = load(&candidate, progress) else { continue };
        let Ok(elf) = Elf::read(&content.bytes) else { continue };
        if elf.machine == loaded[0].elf.machine {
            return Ok(Loaded { content, elf, parent: Some(asking), names: Vec::new() });
        }
    }
    let path = loaded[asking].content.real.clone();
    Err(ProgramError::NotFound { path, name: String::from_utf8_lossy(name).into_owned() })
}

#[cfg(test)]
mod tests;
