//! `-H`: digests of files as the daemon computes them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};
use shared::Digest;

use crate::progress::Progress;

/// Bytes read at once.
const CHUNK: usize = 1 << 17;

/// Digests of files.
#[derive(Debug)]
pub struct DigestListing {
    /// The files that could be read, in the order asked for.
    pub files: Vec<HashedFile>,
    /// SHA-256 over the binary digests in the byte order of the real paths (no link, absolute); a real path that was named
    /// twice counts once, as a file that is mapped is one object of its image however often it is mapped. `None` if a
    /// file could not be read.
    pub aggregate: Option<Digest>,
}

/// A file's digest.
#[derive(Debug)]
pub struct HashedFile {
    /// The path as it was given.
    pub path: PathBuf,
    /// Of its content.
    pub digest: Digest,
}

/// Why a file has no digest.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The system refuses.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A directory, a device, a pipe: nothing that can be mapped executable.
    #[error("{} is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// Its digest would be that of no content it ever had.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
}

/// Hashes files. What cannot be read is returned beside the rest.
pub(crate) fn hash_files(paths: &[PathBuf], progress: &mut Progress<'_>) -> (DigestListing, Vec<HashError>) {
    let (mut files, mut real, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        match hash_file(path, progress) {
            Ok((real_path, digest)) => {
                files.push(HashedFile { path: path.clone(), digest });
                real.push((real_path, digest));
            }
            Err(error) => failures.push(error),
        }
    }
    let aggregate = failures.is_empty().then(|| aggregate(real));
    (DigestListing { files, aggregate }, failures)
}

pub(crate) fn aggregate(mut files: Vec<(PathBuf, Digest)>) -> Digest {
    // Not the order of `Path`, which compares component by component.
    files.sort_by(|(a, _), (b, _)| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    files.dedup_by(|(a, _), (b, _)| a == b);
    Digest::aggregate(files.iter().map(|(_, digest)| digest))
}

/// The real path and the digest of the file that `path` leads to.
pub(crate) fn hash_file(path: &Path, progress: &mut Progress<'_>) -> Result<(PathBuf, Digest), HashError> {
    let io_error = |source| HashError::Io { path: path.into(), source };
    let real = fs::canonicalize(path).map_err(io_error)?;
    // A pipe without a writer would keep us waiting.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(io_error)?;
    if !file.metadata().map_err(io_error)?.is_file() {
        return Err(HashError::NotAFile(path.into()));
    }
    let digest = hash_open(&mut file, &real, progress)?;
    Ok((real, digest))
}

/// The digest of an open file that is called `path`.
pub(crate) fn hash_open(file: &mut File, path: &Path, progress: &mut Progress<'_>) -> Result<Digest, HashError> {
    let io_error = |source| HashError::Io { path: path.into(), source };
    let before = file.metadata().map_err(io_error)?;
    let mut done = 0u64;
    let digest = hash_content(file, |length| {
        done += length as u64;
        progress.tick(|| format!("hashing {}: {} of {} MiB", path.display(), done >> 20, before.size() >> 20));
    })
    .map_err(io_error)?;
    let after = file.metadata().map_err(io_error)?;
    if version(&before) != version(&after) {
        return Err(HashError::Changed(path.into()));
    }
    Ok(digest)
}

/// What moves when the content changes.
pub(crate) fn version(file: &Metadata) -> (u64, i64, i64, i64, i64) {
    (file.size(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

/// By read(2), never mmap: a file that is cut short while it is mapped kills its reader.
fn hash_content(file: &mut File, mut read: impl FnMut(usize)) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Digest(hash.finalize().into())),
            Ok(length) => {
                hash.update(&chunk[..length]);
                read(length);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 by another implementation: coreutils.
    fn sha256sum(bytes: &[u8]) -> String {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()[..64].into()
    }

    fn binary(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn digests_are_those_of_sha256sum_and_the_aggregate_goes_by_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        // In byte order "a-b" comes before "a/x", in path order after.
        fs::create_dir(path("a")).unwrap();
        let contents = [vec![], b"some\0bytes".to_vec(), vec![7; CHUNK * 2 + 5]];
        for (name, content) in ["a/x", "a-b", "z"].iter().zip(&contents) {
            fs::write(path(name), content).unwrap();
        }
        std::os::unix::fs::symlink("z", path("0-link-to-z")).unwrap();

        let asked = ["0-link-to-z", "a/x", "a-b", "a/../a/x"].map(path);
        let (listing, failures) = hash_files(&asked, &mut Progress::none());
        assert!(failures.is_empty());
        let [x, ab, z] = contents.map(|content| sha256sum(&content));
        let found: Vec<_> = listing.files.iter().map(|file| (file.path.clone(), file.digest.to_string())).collect();
        let digests = [&z, &x, &ab, &x].map(Clone::clone);
        assert_eq!(found, asked.into_iter().zip(digests).collect::<Vec<_>>());
        let joined = [binary(&ab), binary(&x), binary(&z)].concat();
        assert_eq!(listing.aggregate.unwrap().to_string(), sha256sum(&joined));
    }

    #[test]
    fn what_cannot_be_hashed_is_named_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let good = dir.path().join("good");
        fs::write(&good, "x").unwrap();
        let (listing, failures) =
            hash_files(&[fifo, dir.path().into(), dir.path().join("absent"), good], &mut Progress::none());
        assert_eq!(listing.files.len(), 1);
        assert!(listing.aggregate.is_none());
        assert!(matches!(&failures[..], [HashError::NotAFile(_), HashError::NotAFile(_), HashError::Io { .. }]));
    }
}
