//! What a running process is made of: read as the daemon reads it, from /proc/PID/map_files, never by path.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use shared::Digest;

use crate::hash::{self, HashError};
use crate::progress::Progress;

/// Why a process has no aggregate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("there is no process {0}")]
    Gone(u32),
    #[error("process {0} is a thread of the kernel, or ends: no file is mapped in it")]
    Empty(u32),
    #[error("process {0} changed while it was read; try again")]
    Changing(u32),
    #[error("cannot read {path}: {source} (this needs root, or CAP_SYS_PTRACE and CAP_SYS_ADMIN)")]
    Io { path: String, source: io::Error },
    #[error("/proc/{0}/maps makes no sense")]
    Nonsense(u32),
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// An executable mapping of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    /// As in /proc/PID/map_files.
    range: String,
    inode: u64,
    pub(crate) path: Vec<u8>,
}

/// What must be the same before and after.
#[derive(PartialEq, Eq)]
struct Look {
    start: String,
    exe: (u64, u64),
    mappings: Vec<Mapping>,
}

/// The aggregate digest of a process.
pub(crate) fn aggregate_of(pid: u32, progress: &mut Progress<'_>) -> Result<Digest, ProcessError> {
    let before = look(pid)?;
    if before.mappings.is_empty() {
        return Err(ProcessError::Empty(pid));
    }
    // A file counts once, under the first path it is mapped by.
    let mut objects: Vec<((u64, u64), Vec<u8>, Digest)> = Vec::new();
    for mapping in &before.mappings {
        let name = format!("/proc/{pid}/map_files/{}", mapping.range);
        let mut file = File::open(&name).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ProcessError::Changing(pid),
            _ => ProcessError::Io { path: name.clone(), source },
        })?;
        let facts = file.metadata().map_err(|source| ProcessError::Io { path: name, source })?;
        let key = (facts.dev(), facts.ino());
        if facts.ino() != mapping.inode {
            return Err(ProcessError::Changing(pid));
        }
        match objects.iter_mut().find(|(other, ..)| *other == key) {
            Some((_, path, _)) => *path = mapping.path.clone().min(std::mem::take(path)),
            None => {
                let shown = PathBuf::from(String::from_utf8_lossy(&mapping.path).into_owned());
                let digest = hash::hash_open(&mut file, &shown, progress)?;
                objects.push((key, mapping.path.clone(), digest));
            }
        }
    }
    if look(pid)? != before {
        return Err(ProcessError::Changing(pid));
    }
    objects.sort_by(|(_, a, x), (_, b, y)| a.cmp(b).then(x.cmp(y)));
    Ok(Digest::aggregate(objects.iter().map(|(_, _, digest)| digest)))
}

fn look(pid: u32) -> Result<Look, ProcessError> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| {
        fs::read(dir.join(name)).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ProcessError::Io { path: dir.join(name).display().to_string(), source },
            _ => ProcessError::Gone(pid),
        })
    };
    let exe = exe(&dir.join("exe")).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if dir.exists() => ProcessError::Empty(pid),
        io::ErrorKind::NotFound => ProcessError::Gone(pid),
        _ => ProcessError::Io { path: dir.join("exe").display().to_string(), source },
    })?;
    let start = start(&read("stat")?).ok_or(ProcessError::Nonsense(pid))?;
    let mappings = executable(&read("maps")?).ok_or(ProcessError::Nonsense(pid))?;
    Ok(Look { start, exe, mappings })
}

fn exe(path: &Path) -> io::Result<(u64, u64)> {
    let facts = fs::metadata(path)?;
    Ok((facts.dev(), facts.ino()))
}

/// When the process started: field 22 of /proc/PID/stat. The second is a name in parentheses that may hold any character.
fn start(stat: &[u8]) -> Option<String> {
    let stat = String::from_utf8_lossy(stat);
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(String::from)
}

/// The executable mappings of files in /proc/PID/maps; see proc_pid_maps(5).
pub(crate) fn executable(maps: &[u8]) -> Option<Vec<Mapping>> {
    let mut found = Vec::new();
    for line in maps.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let range = std::str::from_utf8(fields.next()?).ok()?;
        let permissions = fields.next()?;
        let (_offset, _device) = (fields.next()?, fields.next()?);
        let inode: u64 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        if permissions.get(2) != Some(&b'x') || inode == 0 {
            continue;
        }
        let path = fields.next()?.trim_ascii_start();
        let (start, end) = range.split_once('-')?;
        let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let range = format!("{:x}-{:x}", number(start)?, number(end)?);
        found.push(Mapping { range, inode, path: unescape(path) });
    }
    Some(found)
}

/// The kernel writes a newline in a path as `\012` and nothing else so.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(tail) => {
                plain.push(b'\n');
                rest = tail;
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn executable_files_and_nothing_else() {
        let maps = b"\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus daemon
00651000-00652000 r--p 00051000 08:02 173521      /usr/bin/dbus daemon
7f1e4c000000-7f1e4c021000 rwxp 00000000 00:00 0
7f1e50a00000-7f1e50b00000 r-xp 00001000 fd:01 42                         /tmp/a\\012b (deleted)
7ffd5a3d8000-7ffd5a3da000 r-xp 00000000 00:00 0                          [vdso]
";
        let found = executable(maps).unwrap();
        let shown: Vec<_> = found.iter().map(|mapping| (mapping.range.as_str(), mapping.path.as_slice())).collect();
        assert_eq!(
            shown,
            [("400000-452000", &b"/usr/bin/dbus daemon"[..]), ("7f1e50a00000-7f1e50b00000", b"/tmp/a\nb (deleted)")]
        );
        assert_eq!(start(b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n"), Some("4711".into()));
    }

    /// The digests of what this process has mapped, by path, give the same.
    #[test]
    fn the_aggregate_is_over_what_is_mapped() {
        let aggregate = match aggregate_of(std::process::id(), &mut Progress::none()) {
            Err(ProcessError::Io { .. }) => return eprintln!("skipping: map_files cannot be read here"),
            aggregate => aggregate.unwrap(),
        };
        let maps = executable(&fs::read("/proc/self/maps").unwrap()).unwrap();
        let paths: Vec<PathBuf> =
            maps.into_iter().map(|mapping| String::from_utf8(mapping.path).unwrap().into()).collect();
        let (listing, failures) = hash::hash_files(&paths, &mut Progress::none());
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(listing.aggregate, Some(aggregate));
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert!(matches!(aggregate_of(u32::MAX >> 1, &mut Progress::none()), Err(ProcessError::Gone(_))));
        // kthreadd, in the initial pid namespace.
        if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
            assert!(matches!(aggregate_of(2, &mut Progress::none()), Err(ProcessError::Empty(_))));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = (executable(&text), start(&text));
        }
    }
}
