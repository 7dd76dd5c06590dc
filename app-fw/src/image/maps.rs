//! /proc/PID/maps: the lines of executable mappings. See proc_pid_maps(5).

/// An executable mapping of a file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Inode number as the file system shows it.
    pub inode: u64,
    /// Path bytes as the kernel shows them: seen from the reader's root, with " (deleted)" behind a file that lost its
    /// name. For people and for ordering, never for opening.
    pub path: Vec<u8>,
    /// What is written into it stays with the process and does not go to the file.
    pub private: bool,
}

impl Mapping {
    /// Its name under /proc/PID/map_files: the addresses without the zeros that maps pads them with.
    pub fn file_name(&self) -> String {
        format!("{:x}-{:x}", self.start, self.end)
    }
}

/// What is mapped executable.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Executable {
    /// Files.
    pub files: Vec<Mapping>,
    /// The kernel's own code, which a process can write over as it can over a file's.
    pub kernel: Vec<Mapping>,
    /// Some memory is executable that no file holds the content of, or that can come to be so by a mere store. Pages of
    /// a private mapping that were written to while it was not executable do not show here, see [`super::pages`].
    pub anonymous: bool,
}

/// A line that is not what the kernel writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {0} of maps makes no sense")]
pub struct MapsError(pub usize);

/// Reads the executable mappings.
///
/// # Errors
/// A line makes no sense.
pub fn parse(text: &[u8]) -> Result<Executable, MapsError> {
    let mut executable = Executable::default();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for (number, line) in lines.enumerate() {
        match parse_line(line).ok_or(MapsError(number + 1))? {
            Line::File { mapping, unlike_file } => {
                executable.files.push(mapping);
                executable.anonymous |= unlike_file;
            }
            Line::Kernel(mapping) => executable.kernel.push(mapping),
            Line::Anonymous => executable.anonymous = true,
            Line::Other => {}
        }
    }
    Ok(executable)
}

enum Line {
    File {
        mapping: Mapping,
        /// Its memory need not be what the file says.
        unlike_file: bool,
    },
    Kernel(Mapping),
    Anonymous,
    Other,
}

/// `start-end perms offset major:minor inode      path`
fn parse_line(line: &[u8]) -> Option<Line> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let range = fields.next()?;
    let permissions = fields.next()?;
    if permissions.len() != 4 {
        return None;
    }
    if permissions[2] != b'x' {
        return Some(Line::Other);
    }
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let (start, end) = (number(&range[..dash], 16)?, number(&range[dash + 1..], 16)?);
    let (_offset, _device) = (fields.next()?, fields.next()?);
    let inode = number(fields.next()?, 10)?;
    // Padded with blanks; whatever else a path starts with is its own.
    let padded = fields.next().unwrap_or_default();
    let path = padded.iter().position(|byte| *byte != b' ').and_then(|start| padded.get(start..)).unwrap_or_default();
    if inode != 0 {
        let private = permissions[3] == b'p';
        let unlike_file = permissions[1] == b'w' && private || is_anonymous(path);
        return Some(Line::File { mapping: Mapping { start, end, inode, path: unescape(path), private }, unlike_file });
    }
    // The kernel's own code in every process; anything else without a file is anonymous, whatever it is called.
    Some(match path {
        b"[vsyscall]" => Line::Other,
        b"[vdso]" | b"[uprobes]" if permissions[1] != b'w' => {
            Line::Kernel(Mapping { start, end, inode, path: path.to_vec(), private: true })
        }
        _ => Line::Anonymous,
    })
}

/// Memory for which the kernel made a file of its own: shared anonymous memory, huge pages, and either under a name that
/// the process gave it (PR_SET_VMA_ANON_NAME). Paths begin with a slash, so the name is no path; files that are really
/// called so count as well. memfd and System V segments have files that can be read and hashed, as everybody who knows
/// them can write them.
fn is_anonymous(path: &[u8]) -> bool {
    path.starts_with(b"[anon_shmem:") || matches!(path, b"/dev/zero (deleted)" | b"/anon_hugepage (deleted)")
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.starts_with('+') { None } else { u64::from_str_radix(text, radix).ok() }
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

    const SAMPLE: &[u8] = b"\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus daemon
00651000-00652000 r--p 00051000 08:02 173521      /usr/bin/dbus daemon
7f1e4c000000-7f1e4c021000 rwxp 00000000 00:00 0
7f1e50a00000-7f1e50b00000 r-xp 00001000 fd:01 42                         /tmp/a\\012b (deleted)
7f1e50c00000-7f1e50d00000 r-xs 00001000 00:01 77                         /memfd:x (deleted)
7ffd5a3d8000-7ffd5a3da000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn executable_files_with_odd_names() {
        let executable = parse(SAMPLE).unwrap();
        let paths: Vec<_> = executable.files.iter().map(|file| file.path.as_slice()).collect();
        assert_eq!(paths, [&b"/usr/bin/dbus daemon"[..], b"/tmp/a\nb (deleted)", b"/memfd:x (deleted)"]);
        assert_eq!(executable.files[0].file_name(), "400000-452000");
        assert_eq!(executable.files[1].inode, 42);
        assert!(executable.anonymous);
    }

    #[test]
    fn the_kernels_own_code_is_not_anonymous() {
        let own: Vec<u8> = SAMPLE.split_inclusive(|b| *b == b'\n').skip(5).flatten().copied().collect();
        let executable = parse(&own).unwrap();
        assert!(executable.files.is_empty() && !executable.anonymous, "{executable:?}");
        // What can be written over is to be looked at.
        assert_eq!(executable.kernel.iter().map(|mapping| mapping.path.as_slice()).collect::<Vec<_>>(), [b"[vdso]"]);
        assert!(parse(b"1000-2000 r-xp 00000000 00:00 0 [heap]\n").unwrap().anonymous);
    }

    #[test]
    fn memory_that_only_looks_like_a_file() {
        let anonymous = |permissions: &str, path: &str| {
            parse(format!("1000-2000 {permissions} 00000000 00:01 77       {path}\n").as_bytes()).unwrap().anonymous
        };
        for path in ["/dev/zero (deleted)", "/anon_hugepage (deleted)", "[anon_shmem:jit]"] {
            assert!(anonymous("r-xs", path) && !anonymous("rw-s", path), "{path}");
        }
        // Stores into it go to no file; those into a shared mapping do.
        assert!(anonymous("rwxp", "/usr/bin/a"));
        assert!(!anonymous("rwxs", "/usr/bin/a"));
        for path in ["/usr/bin/a", "/memfd:x (deleted)", "/SYSV00000000 (deleted)", "/dev/zero"] {
            assert!(!anonymous("r-xp", path), "{path}");
        }
        assert!(parse(b"1000-2000 r-xp 0 00:01 77 /a\n").unwrap().files[0].private);
        // The kernel's own code, unless it can be stored to.
        let kernel = |permissions: &str| {
            parse(format!("1000-2000 {permissions} 00000000 00:00 0       [vdso]\n").as_bytes()).unwrap()
        };
        assert!(!kernel("r-xp").anonymous && kernel("r-xp").kernel.len() == 1);
        assert!(kernel("rwxp").anonymous);
    }

    #[test]
    fn nonsense_is_an_error() {
        for bad in
            [&b"hello\n"[..], b"1-2 rx 0 0 0\n", b"x-y r-xp 0 0:0 0\n", b"12 r-xp 0 0:0 0\n", b"1-2 r-xp 0 0:0 -5\n"]
        {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert_eq!(parse(b""), Ok(Executable::default()));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }

        #[test]
        fn any_path_survives(path in "[^\0\n\\\\ ][^\0\n\\\\]{0,60}") {
            let line = format!("1000-2000 r-xp 00000000 08:02 1                          {path}\n");
            prop_assert_eq!(&parse(line.as_bytes()).unwrap().files[0].path, path.as_bytes());
        }
    }
}
