//! What the loader reads of an ELF file; see elf(5).

use object::Endianness;
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// Bytes of a script's first line that the kernel reads (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE: usize = 256;

/// What a file is, by its first bytes.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Kind<'a> {
    Elf,
    /// `#!INTERPRETER`.
    Script(&'a [u8]),
    Other,
}

pub(super) fn kind(bytes: &[u8]) -> Kind<'_> {
    if bytes.starts_with(b"\x7fELF") {
        return Kind::Elf;
    }
    let Some(line) = bytes.strip_prefix(b"#!") else { return Kind::Other };
    let line = &line[..line.len().min(SCRIPT_LINE - 2)];
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    match line.split(is_blank).find(|word| !word.is_empty()) {
        Some(interpreter) => Kind::Script(interpreter),
        None => Kind::Other,
    }
}

/// An ELF file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Elf {
    pub(super) machine: Machine,
    /// PT_INTERP.
    pub(super) interpreter: Option<Vec<u8>>,
    /// DT_NEEDED.
    pub(super) needed: Vec<Vec<u8>>,
    /// DT_SONAME.
    pub(super) soname: Option<Vec<u8>>,
    /// DT_RPATH.
    pub(super) rpath: Option<Vec<u8>>,
    /// DT_RUNPATH.
    pub(super) runpath: Option<Vec<u8>>,
    /// DF_1_NODEFLIB: neither cache nor default directories.
    pub(super) no_default: bool,
    /// Some of it is mapped executable.
    pub(super) has_code: bool,
}

/// For what it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Machine {
    /// e_machine.
    pub(super) number: u16,
    /// 64 bits.
    pub(super) is_wide: bool,
}

impl Elf {
    pub(super) fn read(bytes: &[u8]) -> Result<Elf, String> {
        match bytes.get(4) {
            Some(1) => read::<FileHeader32<Endianness>>(bytes),
            Some(2) => read::<FileHeader64<Endianness>>(bytes),
            _ => return Err("neither of 32 nor of 64 bits".into()),
        }
        .map_err(|error| error.to_string())
    }
}

fn read<H: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> object::Result<Elf> {
    let header = H::parse(bytes)?;
    let endian = header.endian()?;
    let machine = Machine { number: header.e_machine(endian), is_wide: header.is_class_64() };
    let mut found = Elf { machine, ..Elf::default() };
    let segments = header.program_headers(endian, bytes)?;
    for segment in segments {
        if segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian) & elf::PF_X != 0 {
            found.has_code = true;
        }
        if let Some(path) = segment.interpreter(endian, bytes)? {
            found.interpreter = Some(path.to_vec());
        }
        let Some(entries) = segment.dynamic(endian, bytes)? else { continue };
        let entries: Vec<(i64, u64)> = entries
            .iter()
            .map(|entry| (entry.d_tag(endian).into(), entry.d_val(endian).into()))
            .take_while(|(tag, _)| *tag != elf::DT_NULL)
            .collect();
        let value = |wanted: i64| entries.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        found.no_default = value(elf::DT_FLAGS_1).is_some_and(|flags| flags & u64::from(elf::DF_1_NODEFLIB) != 0);
        let (Some(address), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else { continue };
        let mut strings: &[u8] = &[];
        for segment in segments {
            if let Ok(Some(data)) = segment.data_range(endian, bytes, address, size) {
                strings = data;
            }
        }
        let string = |offset: u64| -> Option<Vec<u8>> {
            let rest = strings.get(usize::try_from(offset).ok()?..)?;
            rest.split(|byte| *byte == 0).next().map(<[u8]>::to_vec)
        };
        found.needed = entries
            .iter()
            .filter(|(tag, _)| *tag == elf::DT_NEEDED)
            .filter_map(|(_, offset)| string(*offset))
            .collect();
        found.soname = value(elf::DT_SONAME).and_then(string);
        found.rpath = value(elf::DT_RPATH).and_then(string);
        found.runpath = value(elf::DT_RUNPATH).and_then(string);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scripts_name_their_interpreter() {
        assert_eq!(kind(b"#!/bin/sh -e\nexit"), Kind::Script(b"/bin/sh"));
        assert_eq!(kind(b"#! \t/usr/bin/env python3\n"), Kind::Script(b"/usr/bin/env"));
        assert_eq!(kind(b"#!\n/bin/sh"), Kind::Other);
        assert_eq!(kind(b"\x7fELF"), Kind::Elf);
        assert_eq!(kind(b""), Kind::Other);
    }

    #[test]
    fn this_program_is_elf() {
        let elf = Elf::read(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
        assert!(elf.has_code && elf.interpreter.is_some() && elf.needed.contains(&b"libc.so.6".to_vec()), "{elf:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), class in 0..3u8) {
            let _ = (kind(&bytes), Elf::read(&bytes));
            let mut file = b"\x7fELF".to_vec();
            file.extend([class, 1, 1]);
            file.extend(bytes);
            let _ = Elf::read(&file);
        }

        #[test]
        fn no_damage_panics(at in 0..4096usize, byte in any::<u8>()) {
            let mut file = std::fs::read("/bin/true").unwrap();
            if let Some(slot) = file.get_mut(at) {
                *slot = byte;
            }
            let _ = Elf::read(&file);
        }
    }
}
