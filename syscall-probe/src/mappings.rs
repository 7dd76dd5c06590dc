//! Which files a process has mapped, by the kernel's iterator over mappings.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::holders::list;
use crate::layout::{FileMapping, MAPPING_RECORD};

/// Lists mappings of files. Where an overlay shows a file, /proc leads to what the overlay shows now; this tells which file below
/// it was mapped.
#[derive(Debug, Clone)]
pub struct Mappings {
    program: Arc<OwnedFd>,
}

impl Mappings {
    pub(crate) fn new(program: OwnedFd) -> Mappings {
        Mappings { program: Arc::new(program) }
    }

    /// The mappings of a process, in the order of their addresses. None if there is no such process.
    ///
    /// # Errors
    ///
    /// Those of bpf(2) and of read(2) on the iterator.
    pub fn of_process(&self, tgid: u32) -> io::Result<Vec<FileMapping>> {
        let mut found = Vec::new();
        if tgid == 0 {
            return Ok(found); // The kernel would take it for "all".
        }
        list::<MAPPING_RECORD>(&self.program, tgid, |record| {
            found.push(FileMapping::decode(record)?);
            Ok(())
        })?;
        Ok(found)
    }
}
