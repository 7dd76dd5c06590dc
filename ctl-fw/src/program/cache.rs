//! /etc/ld.so.cache: where ldconfig(8) found libraries. The format is that of glibc's sysdeps/generic/dl-cache.h.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const FILE: &str = "/etc/ld.so.cache";
/// Old files have another cache before it.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// `struct cache_file_new`, and an entry of it.
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// Names of libraries and where they are.
#[derive(Debug, Default)]
pub(super) struct Cache(Vec<(Vec<u8>, PathBuf)>);

impl Cache {
    /// That of this system. One that is missing or makes no sense is empty, as for ld.so.
    pub(super) fn of_system() -> Cache {
        fs::read(FILE).ok().and_then(|bytes| Cache::parse(&bytes)).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<Cache> {
        let start = bytes.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        let bytes = &bytes[start..];
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let string = |at: usize| bytes.get(at..)?.split(|byte| *byte == 0).next();
        let mut entries = Vec::new();
        for index in 0..number(MAGIC.len())? {
            let entry = index.checked_mul(ENTRY)?.checked_add(HEADER)?;
            let (name, path) = (string(number(entry + 4)?)?, string(number(entry + 8)?)?);
            entries.push((name.to_vec(), Path::new(std::ffi::OsStr::from_bytes(path)).to_path_buf()));
        }
        Some(Cache(entries))
    }

    /// Where the library `name` is.
    pub(super) fn paths<'a>(&'a self, name: &[u8]) -> impl Iterator<Item = &'a Path> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, path)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_systems_cache_knows_the_c_library() {
        if Path::new(FILE).exists() {
            assert!(Cache::of_system().paths(b"libc.so.6").next().is_some());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Cache::parse(&bytes);
            let _ = Cache::parse(&[MAGIC, &[2, 0, 0, 0], &[0; 24], &bytes].concat());
        }
    }
}
