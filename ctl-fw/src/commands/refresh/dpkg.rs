//! What dpkg recorded of the files it installed. The record is MD5, made by the package's builder: it tells an upgrade from
//! an accident or a careless intruder, not from one who can find collisions or write to /var/lib/dpkg.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use md5::{Digest as _, Md5};

/// Where dpkg keeps its records.
pub(super) const ADMIN: &str = "/var/lib/dpkg";

/// What dpkg's record says of a file's content.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(tag = "record", content = "package", rename_all = "kebab-case")]
pub(super) enum Record {
    /// It is what this package installed.
    Confirmed(String),
    /// It is not what this package installed.
    Contradicted(String),
    /// No package has it, or has a checksum of it.
    Unknown,
}

/// Checksums of the files that were asked for.
#[derive(Debug, Default)]
pub(super) struct Dpkg {
    /// By path: the package, and the MD5 in hexadecimal digits.
    sums: HashMap<PathBuf, (String, Option<String>)>,
}

impl Dpkg {
    /// Asks for `paths`, which are real paths. A system without dpkg knows none.
    pub(super) fn ask(admin: &Path, paths: &[PathBuf]) -> Dpkg {
        let asked: Vec<(PathBuf, &PathBuf)> =
            paths.iter().flat_map(|path| names(path).into_iter().map(move |name| (name, path))).collect();
        if asked.is_empty() {
            return Dpkg::default();
        }
        let output = Command::new("dpkg-query")
            .arg(format!("--admindir={}", admin.display()))
            .arg("--search")
            .arg("--")
            .args(asked.iter().map(|(name, _)| name))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let Ok(output) = output else { return Dpkg::default() };
        let owners = owners(&output.stdout);
        let mut found = Dpkg::default();
        let mut lists: HashMap<String, Vec<u8>> = HashMap::new();
        for (name, path) in asked {
            let Some(package) = owners.get(&name) else { continue };
            let list = lists.entry(package.clone()).or_insert_with(|| checksums(admin, package));
            let sum = checksum(list, &name);
            if sum.is_some() || !found.sums.contains_key(path) {
                found.sums.insert(path.clone(), (package.clone(), sum));
            }
        }
        found
    }

    /// What the record says of a file with this content.
    pub(super) fn record(&self, path: &Path, content: &[u8]) -> Record {
        match self.sums.get(path) {
            Some((package, Some(sum))) => {
                let md5: String = Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
                if md5 == *sum { Record::Confirmed(package.clone()) } else { Record::Contradicted(package.clone()) }
            }
            _ => Record::Unknown,
        }
    }
}

/// Under which names dpkg may know a file: where /bin, /lib and so on are links into /usr, packages may still name them
/// there. Names that dpkg-query would take for patterns are not asked for.
fn names(path: &Path) -> Vec<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\' | b'\n')) || !path.is_absolute() {
        return Vec::new();
    }
    let mut names = vec![path.to_path_buf()];
    if let Ok(rest) = path.strip_prefix("/usr")
        && let Some(first) = rest.iter().next()
        && ["bin", "sbin", "lib", "lib32", "lib64", "libx32"].iter().any(|dir| first == *dir)
    {
        names.push(Path::new("/").join(rest));
    }
    names
}

/// Reads `PACKAGE[, PACKAGE]: PATH` lines.
fn owners(output: &[u8]) -> HashMap<PathBuf, String> {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().filter(|line| !line.starts_with("diversion by ") && !line.starts_with("local diversion "));
    lines
        .filter_map(|line| {
            let (packages, path) = line.split_once(": ")?;
            let package = packages.split(", ").next()?;
            Some((PathBuf::from(path), package.to_owned()))
        })
        .collect()
}

/// A package's list of checksums. Its file may be called with or without the architecture.
fn checksums(admin: &Path, package: &str) -> Vec<u8> {
    let name = package.split(':').next().unwrap_or(package);
    let read = |name: &str| fs::read(admin.join("info").join(format!("{name}.md5sums")));
    read(package).or_else(|_| read(name)).unwrap_or_default()
}

/// Reads `MD5  PATH` lines, where paths have no slash at the beginning.
fn checksum(list: &[u8], path: &Path) -> Option<String> {
    let wanted = path.strip_prefix("/").ok()?.as_os_str().as_bytes();
    let line =
        list.split(|byte| *byte == b'\n').find(|line| line.get(32..34) == Some(b"  ") && &line[34..] == wanted)?;
    let sum = std::str::from_utf8(&line[..32]).ok()?;
    sum.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| sum.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_record_of_this_system_knows_its_shell() {
        if !Path::new(ADMIN).join("status").exists() {
            return eprintln!("skipping: this is no Debian");
        }
        let shell = fs::canonicalize("/bin/sh").unwrap();
        let content = fs::read(&shell).unwrap();
        let dpkg = Dpkg::ask(Path::new(ADMIN), &[shell.clone(), "/nonexistent/*".into(), "/tmp/none".into()]);
        assert!(matches!(dpkg.record(&shell, &content), Record::Confirmed(_)), "{dpkg:?}");
        assert!(matches!(dpkg.record(&shell, b"other"), Record::Contradicted(_)));
        assert_eq!(dpkg.record(Path::new("/tmp/none"), b""), Record::Unknown);
    }

    #[test]
    fn lines_of_dpkg_are_read() {
        let found = owners(b"libc6:amd64, libc6:i386: /lib/a: b\ndiversion by x from: /lib/c\ndash: /bin/sh\n");
        assert_eq!(found[Path::new("/lib/a: b")], "libc6:amd64");
        assert_eq!(found.len(), 2);
        let list = b"0123456789abcdef0123456789ABCDEF  bin/a b\nshort\n";
        assert_eq!(checksum(list, Path::new("/bin/a b")).unwrap(), "0123456789abcdef0123456789abcdef");
        assert_eq!(checksum(list, Path::new("/bin/a")), None);
        assert_eq!(names(Path::new("/usr/lib/x")), [Path::new("/usr/lib/x"), Path::new("/lib/x")]);
        assert_eq!(names(Path::new("/usr/share/x")), [Path::new("/usr/share/x")]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = (owners(&bytes), checksum(&bytes, Path::new("/x")));
        }
    }
}
