//! Pages that a process has of its own inside a mapping of a file: what was written there, by the process or by a
//! debugger, is in no file. See "/proc/pid/pagemap" in the kernel's Documentation/admin-guide/mm/pagemap.rst.

use std::io;
use std::os::unix::fs::FileExt;

use super::maps::Mapping;
use super::process::ProcDir;

/// Bytes that stand for a page.
const ENTRY: usize = 8;
/// Entries read at once: 16 MiB of a mapping.
const ENTRIES: usize = 4096;

/// Bytes of all mappings together that are looked at. A mapping may be far larger than its file, and each of its pages costs
/// time, there or not.
const BOUND: u64 = 4 << 30;

/// The page is a file's, or shared memory.
const OF_FILE: u64 = 1 << 61;
/// The page is swapped out.
const SWAPPED: u64 = 1 << 62;
/// The page is there.
const PRESENT: u64 = 1 << 63;

/// Whether a private mapping has pages of its own. `None` if the kernel does not tell (CONFIG_PROC_PAGE_MONITOR), or if the
/// mappings are larger than any code is.
///
/// # Errors
/// The mappings changed meanwhile, or the process is gone.
pub fn any_own<'a>(dir: &ProcDir, mappings: impl Iterator<Item = &'a Mapping>) -> io::Result<Option<bool>> {
    let pagemap = match dir.open_file("pagemap") {
        Ok(pagemap) => pagemap,
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.start().is_ok() => return Ok(None),
        Err(error) => return Err(error),
    };
    let page = page_size();
    let mut entries = vec![0; ENTRIES * ENTRY];
    let mut left = BOUND;
    for mapping in mappings {
        match left.checked_sub(mapping.end.saturating_sub(mapping.start)) {
            Some(rest) => left = rest,
            None => return Ok(None),
        }
        // In bytes of pagemap.
        let mut at = mapping.start / page * ENTRY as u64;
        let end = mapping.end / page * ENTRY as u64;
        while at < end {
            let wanted = usize::try_from(end - at).map_or(entries.len(), |left| left.min(entries.len()));
            let read = pagemap.read_at(&mut entries[..wanted], at)?;
            if read == 0 {
                // The process has begun to end.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if entries[..read].chunks_exact(ENTRY).any(is_own) {
                return Ok(Some(true));
            }
            at += read as u64;
        }
    }
    Ok(Some(false))
}

fn is_own(entry: &[u8]) -> bool {
    let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
}

/// Bytes.
fn page_size() -> u64 {
    // x86-64 has no other, and app-fw runs on nothing else.
    4096
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::maps;

    #[test]
    fn entries() {
        for (entry, own) in
            [(0, false), (PRESENT | OF_FILE | 1, false), (PRESENT, true), (SWAPPED, true), (SWAPPED | OF_FILE, false)]
        {
            assert_eq!(is_own(&u64::to_ne_bytes(entry)), own, "{entry:x}");
        }
    }

    #[test]
    fn this_process_wrote_to_its_data_and_not_to_its_code() {
        let dir = ProcDir::hold(std::process::id()).unwrap();
        let text = dir.read("maps").unwrap();
        let code = maps::parse(&text).unwrap();
        assert_eq!(code.kernel.len(), 1, "[vdso]");
        assert_eq!(any_own(&dir, code.files.iter().chain(&code.kernel)).unwrap(), Some(false));
        // Its stack stands for what was written to.
        let text = String::from_utf8(text).unwrap();
        let stack = text.lines().find(|line| line.ends_with("[stack]")).unwrap().replace("rw-p", "r-xp");
        let (range, _) = stack.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let address = |digits| u64::from_str_radix(digits, 16).unwrap();
        let written = Mapping { start: address(start), end: address(end), inode: 1, path: Vec::new(), private: true };
        assert_eq!(any_own(&dir, [&written].into_iter()).unwrap(), Some(true));
        // More than a packet should wait for.
        let endless = Mapping { end: address(start) + BOUND + 1, ..written };
        assert_eq!(any_own(&dir, [&endless].into_iter()).unwrap(), None);
    }
}
