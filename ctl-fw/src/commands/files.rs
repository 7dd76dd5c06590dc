//! `-H` and `hash`: digests of files.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Exit;
use crate::hash::{self, DigestListing, HashError};
use crate::session::Session;
use crate::style::{Style, json};
use crate::trouble::Trouble;

/// Hashes files. What cannot be read is said beside the rest.
pub(super) fn hash(paths: &[PathBuf], session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    let (mut files, mut failures) = (Vec::new(), Vec::new());
    paths.iter().for_each(|path| below(path, true, &mut files, &mut failures));
    let (mut listing, unreadable) = hash::hash_files(&files, &mut session.progress());
    failures.extend(unreadable);
    if !failures.is_empty() {
        listing.aggregate = None;
    }
    let style = session.style;
    digests(session.out(), &listing, style)?;
    for failure in &failures {
        session.say(&format!("error: {failure}"));
    }
    Ok(if failures.is_empty() { Exit::Done } else { Exit::Error })
}

/// The regular files in a directory and below, in the order of their names; links in it are not followed. Anything else that was
/// named is itself.
fn below(path: &Path, was_named: bool, files: &mut Vec<PathBuf>, failures: &mut Vec<HashError>) {
    let found = if was_named { path.metadata() } else { path.symlink_metadata() };
    let is_dir = found.as_ref().is_ok_and(std::fs::Metadata::is_dir);
    if !is_dir {
        if was_named || found.is_ok_and(|found| found.is_file()) {
            files.push(path.into());
        }
        return;
    }
    let listed = std::fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    match listed {
        Ok(mut entries) => {
            entries.sort_by_key(std::fs::DirEntry::file_name);
            entries.iter().for_each(|entry| below(&entry.path(), false, files, failures));
        }
        Err(source) => failures.push(HashError::Io { path: path.into(), source }),
    }
}

/// Digests of files: lines as sha256sum(1) has them, `-c` of which reads all but the last.
fn digests(out: &mut dyn Write, listing: &DigestListing, style: Style) -> io::Result<()> {
    if style.json {
        let files: Vec<_> = listing.files.iter().map(|file| JsonFile::new(&file.path, file.digest)).collect();
        return json(out, &serde_json::json!({ "files": files, "aggregate": listing.aggregate }), style);
    }
    for file in &listing.files {
        let (mark, path) = escape(&file.path);
        write!(out, "{mark}{}  ", file.digest)?;
        out.write_all(&path)?;
        writeln!(out)?;
    }
    match listing.aggregate {
        Some(aggregate) => writeln!(out, "{aggregate}  aggregate"),
        None => Ok(()),
    }
}

#[derive(Serialize)]
struct JsonFile {
    path: String,
    /// The bytes of a path that is no UTF-8, which JSON cannot hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    digest: shared::Digest,
}

impl JsonFile {
    fn new(path: &Path, digest: shared::Digest) -> JsonFile {
        let bytes = path.as_os_str().as_bytes();
        let path_hex = path.to_str().is_none().then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        JsonFile { path: path.to_string_lossy().into(), path_hex, digest }
    }
}

/// A path in one line: where it has a backslash or a line end, these are escaped and the line starts with a backslash, as
/// in coreutils.
fn escape(path: &Path) -> (&'static str, Vec<u8>) {
    let bytes = path.as_os_str().as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r')) {
        return ("", bytes.to_vec());
    }
    let mut escaped = Vec::with_capacity(bytes.len() + 8);
    for &byte in bytes {
        match byte {
            b'\\' => escaped.extend(br"\\"),
            b'\n' => escaped.extend(br"\n"),
            b'\r' => escaped.extend(br"\r"),
            byte => escaped.push(byte),
        }
    }
    ("\\", escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::HashedFile;
    use shared::Digest;

    #[test]
    fn paths_stay_on_their_line() {
        use std::ffi::OsStr;
        let odd = OsStr::from_bytes(b"a\n\\\xff").into();
        let digest = Digest::of(b"abc");
        let files = DigestListing { files: vec![HashedFile { path: odd, digest }], aggregate: None };
        let mut out = Vec::new();
        digests(&mut out, &files, Style { for_people: true, ..Style::default() }).unwrap();
        assert_eq!(out, [b"\\", digest.to_string().as_bytes(), b"  a\\n\\\\\xff\n"].concat());
        let mut out = Vec::new();
        digests(&mut out, &files, Style { json: true, ..Style::default() }).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["files"][0]["path_hex"], "610a5cff");
        assert_eq!(value["files"][0]["digest"], digest.to_string());
        assert!(value["aggregate"].is_null());
    }
}
