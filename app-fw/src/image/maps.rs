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
    /// Some memory without a file is executable.
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
            Line::File(mapping) => executable.files.push(mapping),
            Line::Anonymous => executable.anonymous = true,
            Line::Other => {}
        }
    }
    Ok(executable)
}

enum Line {
    File(Mapping),
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
        return Some(Line::File(Mapping { start, end, inode, path: unescape(path) }));
    }
    // The kernel's own code in every process; anything else without a file is anonymous, whatever it is called.
    Some(match path {
        b"[vdso]" | b"[vsyscall]" | b"[uprobes]" => Line::Other,
        _ => Line::Anonymous,
    })
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
        assert_eq!(parse(&own), Ok(Executable::default()));
        assert!(parse(b"1000-2000 r-xp 00000000 00:00 0 [heap]\n").unwrap().anonymous);
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
