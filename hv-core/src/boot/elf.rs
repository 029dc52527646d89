//! A 64-bit ELF executable with a PVH entry note.
//!
//! System V ABI, chapters 4 and 5, with the AMD64 supplement; the note is
//! `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's `include/public/elfnote.h`. The file is not
//! trusted: every offset and size in it is checked.

use super::is_free_memory;
use crate::Gpa;
use crate::memory::{GuestMemory, OutsideMemory, PhysMemory};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// `Elf64_Ehdr`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_size: u16,
    program_header_size: u16,
    program_header_count: u16,
    section_header_size: u16,
    section_header_count: u16,
    section_names: u16,
}

/// `Elf64_Phdr`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

/// ELF magic, 64-bit, little-endian, version 1.
const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
/// `ET_EXEC`.
const EXECUTABLE: u16 = 2;
/// `EM_X86_64`.
const X86_64: u16 = 62;
/// `PT_LOAD`.
const LOAD: u32 = 1;
/// `PT_NOTE`.
const NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u32 = 18;
/// The owner of that note.
const OWNER: &[u8] = b"Xen\0";

/// Why a file is not a guest that can be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file for this machine.
    #[error("the guest is neither a Linux kernel nor a 64-bit little-endian x86-64 ELF executable")]
    NotExecutable,
    /// A header or a segment lies outside the file.
    #[error("the guest's ELF file is cut off or refers to bytes outside itself")]
    Truncated,
    /// A segment would not lie in free guest memory.
    #[error("the guest's segment at {start:#x}, {bytes:#x} bytes, does not fit in its memory")]
    Segment {
        /// Its physical address.
        start: u64,
        /// Its size in memory.
        bytes: u64,
    },
    /// There is no PVH entry note.
    #[error("the guest's ELF file has no PVH entry note (Xen, type 18)")]
    NoPvhNote,
    /// A segment has more bytes in the file than in memory.
    #[error("the guest's ELF file has a segment smaller in memory than in the file")]
    Shrinks,
}

impl From<OutsideMemory> for ElfError {
    fn from(outside: OutsideMemory) -> Self {
        Self::Segment {
            start: outside.0.raw(),
            bytes: 0,
        }
    }
}

/// Copies the segments of `file` to their physical addresses and returns the PVH
/// entry. The whole file is checked before the first byte is written.
pub(super) fn load<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    file: &[u8],
    memory_end: u64,
) -> Result<u32, ElfError> {
    let entry = check(file, memory_end)?;
    for segment in program_headers(file)? {
        let segment = segment?;
        if segment.kind != LOAD {
            continue;
        }
        let bytes = part(file, segment.offset, segment.file_bytes)?;
        memory.write(Gpa::new(segment.physical_address), bytes)?;
        // Checked: neither sum can wrap.
        let mut at = segment.physical_address + segment.file_bytes;
        let end = segment.physical_address + segment.memory_bytes;
        while at < end {
            let zeros = [0; 512];
            let count = zeros.len().min((end - at) as usize);
            memory.write(Gpa::new(at), &zeros[..count])?;
            at += count as u64;
        }
    }
    Ok(entry)
}

/// Checks everything in the file and returns the PVH entry.
fn check(file: &[u8], memory_end: u64) -> Result<u32, ElfError> {
    let mut entry = None;
    for header in program_headers(file)? {
        let header = header?;
        let bytes = part(file, header.offset, header.file_bytes)?;
        match header.kind {
            LOAD => {
                let start = header.physical_address;
                let outside = ElfError::Segment {
                    start,
                    bytes: header.memory_bytes,
                };
                let end = start.checked_add(header.memory_bytes).ok_or(outside)?;
                if !is_free_memory(start, end, memory_end) {
                    return Err(outside);
                }
                if header.file_bytes > header.memory_bytes {
                    return Err(ElfError::Shrinks);
                }
            }
            NOTE => entry = entry.or(pvh_entry(bytes)),
            _ => {}
        }
    }
    entry.ok_or(ElfError::NoPvhNote)
}

fn program_headers(
    file: &[u8],
) -> Result<impl Iterator<Item = Result<ProgramHeader, ElfError>> + '_, ElfError> {
    let (header, _) = FileHeader::read_from_prefix(file).map_err(|_| ElfError::NotExecutable)?;
    let right_kind = header.kind == EXECUTABLE && header.machine == X86_64;
    let right_size = usize::from(header.program_header_size) == size_of::<ProgramHeader>();
    if !header.ident.starts_with(&IDENT) || !right_kind || !right_size {
        return Err(ElfError::NotExecutable);
    }
    let size = size_of::<ProgramHeader>() as u64;
    let table = part(
        file,
        header.program_headers,
        u64::from(header.program_header_count) * size,
    )?;
    Ok(table
        .chunks_exact(size as usize)
        .map(|bytes| ProgramHeader::read_from_bytes(bytes).map_err(|_| ElfError::Truncated)))
}

/// The bytes of the file at `offset`.
fn part(file: &[u8], offset: u64, bytes: u64) -> Result<&[u8], ElfError> {
    let end = offset.checked_add(bytes).ok_or(ElfError::Truncated)?;
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    let (start, end) = range.ok_or(ElfError::Truncated)?;
    file.get(start..end).ok_or(ElfError::Truncated)
}

/// The entry in a note segment: each note has name size, description size, type,
/// then both, padded to four bytes.
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (header, rest) = <[u32; 3]>::read_from_prefix(notes).ok()?;
        let [name_bytes, description_bytes, kind] = header;
        let padded = |bytes: u32| usize::try_from(u64::from(bytes).next_multiple_of(4)).ok();
        let (name, rest) = rest.split_at_checked(padded(name_bytes)?)?;
        let description = rest.get(..usize::try_from(description_bytes).ok()?)?;
        if kind == PHYS32_ENTRY && name == OWNER {
            let (entry, _) = u32::read_from_prefix(description).ok()?;
            return Some(entry);
        }
        // The padding of the last note may be missing.
        notes = rest.get(padded(description_bytes)?..)?;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::with_memory;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const END: u64 = 0x20_0000;
    const FIRST: usize = 64;
    const SECOND: usize = FIRST + 56;

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A file with a segment of four bytes at 1 MiB, zeros to 0x100, and a note.
    pub(in crate::boot) fn image() -> Vec<u8> {
        let mut file = std::vec![0; 220];
        put(&mut file, 0, &IDENT);
        put(&mut file, 16, &EXECUTABLE.to_le_bytes());
        put(&mut file, 18, &X86_64.to_le_bytes());
        put(&mut file, 32, &(FIRST as u64).to_le_bytes());
        put(&mut file, 54, &56u16.to_le_bytes());
        put(&mut file, 56, &2u16.to_le_bytes());
        for (at, kind, offset, address, bytes, memory) in [
            (FIRST, LOAD, 176u64, 0x10_0000u64, 4u64, 0x100u64),
            (SECOND, NOTE, 180, 0, 40, 40),
        ] {
            put(&mut file, at, &kind.to_le_bytes());
            put(&mut file, at + 8, &offset.to_le_bytes());
            put(&mut file, at + 24, &address.to_le_bytes());
            put(&mut file, at + 32, &bytes.to_le_bytes());
            put(&mut file, at + 40, &memory.to_le_bytes());
        }
        put(&mut file, 176, &[1, 2, 3, 4]);
        // A note of somebody else's comes first.
        for (at, word) in [
            (180, 4u32),
            (184, 0),
            (188, 18),
            (196, 4),
            (200, 4),
            (204, 18),
        ] {
            put(&mut file, at, &word.to_le_bytes());
        }
        put(&mut file, 192, b"GNU\0");
        put(&mut file, 208, OWNER);
        put(&mut file, 212, &0x10_0040u32.to_le_bytes());
        file
    }

    #[test]
    fn each_defect_is_named() {
        type Break = fn(&mut Vec<u8>);
        let outside = |start, bytes| ElfError::Segment { start, bytes };
        let cases: [(Break, ElfError); 9] = [
            (|f| f[0] = 0, ElfError::NotExecutable),
            (|f| f[18] = 3, ElfError::NotExecutable),
            (|f| f.truncate(40), ElfError::NotExecutable),
            (|f| f.truncate(100), ElfError::Truncated),
            (|f| f.truncate(179), ElfError::Truncated),
            (
                |f| put(f, FIRST + 8, &u64::MAX.to_le_bytes()),
                ElfError::Truncated,
            ),
            (
                |f| put(f, FIRST + 40, &2u64.to_le_bytes()),
                ElfError::Shrinks,
            ),
            (|f| f[204] = 17, ElfError::NoPvhNote),
            (
                |f| put(f, FIRST + 24, &0xf_0000u64.to_le_bytes()),
                outside(0xf_0000, 0x100),
            ),
        ];
        for (damage, error) in cases {
            let mut file = image();
            damage(&mut file);
            assert_eq!(check(&file, END), Err(error));
        }
        let mut file = image();
        put(&mut file, FIRST + 40, &u64::MAX.to_le_bytes());
        assert_eq!(check(&file, END), Err(outside(0x10_0000, u64::MAX)));
    }

    #[test]
    fn memory_behind_the_file_part_is_cleared() {
        with_memory(|memory| {
            memory.write(Gpa::new(0x10_0000), &[0xff; 0x101]).unwrap();
            assert_eq!(load(memory, &image(), END), Ok(0x10_0040));
            let mut bytes = [9; 0x101];
            memory.read(Gpa::new(0x10_0000), &mut bytes).unwrap();
            assert_eq!(bytes[..4], [1, 2, 3, 4]);
            assert!(bytes[4..0x100].iter().all(|byte| *byte == 0));
            assert_eq!(bytes[0x100], 0xff);
        });
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..220, value: u64, cut in 0usize..221) {
            let mut file = image();
            for (byte, new) in file.iter_mut().skip(at).zip(value.to_le_bytes()) {
                *byte = new;
            }
            file.truncate(cut);
            let _ = check(&file, END);
        }
    }
}
