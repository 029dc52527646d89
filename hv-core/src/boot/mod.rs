//! Starting a guest as a PVH loader does, or as a loader of Linux does; the file
//! says which.
//!
//! Xen's `docs/misc/pvh.pandoc` and `include/public/arch-x86/hvm/start_info.h`: a
//! 64-bit ELF names its 32-bit entry in a note; the loader copies its segments to
//! their physical addresses, describes the machine in `hvm_start_info`, and enters
//! with EBX pointing to it. For Linux kernels see `linux`.
//!
//! ```text
//!   0          A_0000     E_0000        F_8000       10_0000                    end
//!   | RAM       | reserved | ACPI tables | start info | RAM: image ... initramfs |
//! ```

mod acpi;
mod aml;
mod elf;
mod linux;

pub use elf::ElfError;
pub use linux::LinuxError;

use crate::memory::{GuestMemory, OutsideMemory, PhysMemory};
use crate::platform::pci;
use crate::vcpu::VcpuState;
use crate::{Gpa, PAGE_SIZE};
use zerocopy::{Immutable, IntoBytes};

/// The end of low memory.
const LOW_END: u64 = 0xa_0000;
/// Where the ACPI tables start.
const ACPI: u64 = 0xe_0000;
/// Where the start information is, and so the end of the ACPI tables.
const START_INFO: u64 = 0xf_8000;
/// Where the memory map is.
const MEMORY_MAP: u64 = START_INFO + 0x100;
/// Where the command line is.
const COMMAND_LINE: u64 = START_INFO + PAGE_SIZE;
/// The longest command line, in bytes without the final zero.
const MAX_COMMAND_LINE: usize = 4095;
/// The end of what firmware has below 1 MiB.
const HIGH_START: u64 = 0x10_0000;
/// Guest memory ends below the window of devices.
const MAX_MEMORY: u64 = pci::WINDOW.raw();

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`, and `E820_TYPE_RAM`.
const RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`, and `E820_TYPE_RESERVED`.
const RESERVED: u32 = 2;

/// `struct hvm_start_info`, version 1.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryRange {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// Where the guest's memory ends and where the loader's own data goes.
struct Layout {
    /// The end of memory.
    end: u64,
    /// The ACPI root pointer.
    rsdp: u64,
    /// The start information or boot parameters, one page.
    info: u64,
    /// The command line.
    command_line: u64,
}

impl Layout {
    /// Types are the same for PVH and for a Linux kernel.
    fn memory_map(&self) -> [MemoryRange; 4] {
        let window = pci::WINDOW.raw();
        let range = |start: u64, end: u64, kind| MemoryRange {
            start,
            bytes: end - start,
            kind,
            reserved: 0,
        };
        [
            range(0, LOW_END, RAM),
            range(LOW_END, HIGH_START, RESERVED),
            range(HIGH_START, self.end, RAM),
            range(window, window + pci::WINDOW_BYTES, RESERVED),
        ]
    }
}

/// Why a guest cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BootError {
    /// An ELF file, or a file that is neither.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A Linux kernel.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// The guest has no memory at this address.
    #[error(transparent)]
    Outside(#[from] OutsideMemory),
    /// Memory must start at 0, in one slot, and be 2 MiB to 3 GiB.
    #[error("a guest has one slot of memory from address 0 on, of 2 MiB to 3 GiB")]
    Memory,
    /// The command line is too long.
    #[error("the guest's command line has {0} bytes, the limit is {MAX_COMMAND_LINE}")]
    CommandLine(usize),
    /// An initramfs was given with an image that is not a Linux kernel.
    #[error("an initramfs goes with a Linux kernel only")]
    Initramfs,
    /// The ACPI tables do not fit below the start information, or are too many.
    #[error("the ACPI tables do not fit")]
    AcpiTables,
}

/// What a guest starts with.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// An ELF file with a PVH note, or a Linux kernel (bzImage).
    pub image: &'a [u8],
    /// A Linux kernel's initramfs; empty: none.
    pub initramfs: &'a [u8],
    /// The command line.
    pub command_line: &'a str,
    /// How many CPUs the guest is told of.
    pub cpus: usize,
}

/// Loads the payload into the guest's memory together with the description of its
/// machine, and returns the state its CPU starts in. `tables` are complete ACPI
/// tables to list beside our own, such as a DMAR; their checksums are the caller's.
///
/// The payload is not trusted. On an error the guest's memory may be partly
/// written.
pub fn load<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    payload: &Payload<'_>,
    tables: &[&[u8]],
) -> Result<VcpuState, BootError> {
    let end = memory_end(memory)?;
    if payload.command_line.len() > MAX_COMMAND_LINE {
        return Err(BootError::CommandLine(payload.command_line.len()));
    }
    let rsdp = acpi::write(
        memory,
        Gpa::new(ACPI),
        Gpa::new(START_INFO),
        payload.cpus,
        tables,
    )?;
    let layout = Layout {
        end,
        rsdp: rsdp.raw(),
        info: START_INFO,
        command_line: COMMAND_LINE,
    };
    let Payload {
        image,
        initramfs,
        command_line,
        ..
    } = *payload;
    if linux::is_kernel(image) {
        return Ok(linux::load(
            memory,
            image,
            initramfs,
            command_line,
            &layout,
        )?);
    }
    // What is wrong with the image itself is the better answer.
    let state = load_pvh(memory, image, command_line, &layout)?;
    if !initramfs.is_empty() {
        return Err(BootError::Initramfs);
    }
    Ok(state)
}

fn load_pvh<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    image: &[u8],
    command_line: &str,
    layout: &Layout,
) -> Result<VcpuState, BootError> {
    let entry = elf::load(memory, image, layout.end)?;
    let map = layout.memory_map();
    let start_info = StartInfo {
        magic: MAGIC,
        version: 1,
        flags: 0,
        module_count: 0,
        module_list: 0,
        command_line: layout.command_line,
        rsdp: layout.rsdp,
        memory_map: MEMORY_MAP,
        memory_map_entries: map.len() as u32,
        reserved: 0,
    };
    memory.write(Gpa::new(layout.info), start_info.as_bytes())?;
    memory.write(Gpa::new(MEMORY_MAP), map.as_bytes())?;
    memory.write(Gpa::new(layout.command_line), command_line.as_bytes())?;
    let terminator = layout.command_line + command_line.len() as u64;
    memory.write(Gpa::new(terminator), &[0])?;
    Ok(VcpuState::pvh(entry, layout.info as u32))
}

/// The end of the guest's memory.
fn memory_end<M: PhysMemory>(memory: &GuestMemory<'_, M>) -> Result<u64, BootError> {
    let [slot] = memory.slots() else {
        return Err(BootError::Memory);
    };
    let end = slot
        .frames
        .checked_mul(PAGE_SIZE)
        .ok_or(BootError::Memory)?;
    let fits = (0x20_0000..=MAX_MEMORY).contains(&end);
    (slot.gfn.number() == 0 && fits)
        .then_some(end)
        .ok_or(BootError::Memory)
}

/// Whether `start..end` is memory that a guest's image may occupy.
fn is_free_memory(start: u64, end: u64, memory_end: u64) -> bool {
    end <= LOW_END || (start >= HIGH_START && end <= memory_end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::DirtyLog;
    use crate::memory::Slot;
    use crate::testing::Arena;
    use crate::{Gfn, Hpa};
    use core::sync::atomic::AtomicU64;

    pub(super) fn with_memory(test: impl FnOnce(&GuestMemory<'_, Arena>)) {
        let arena = Arena::new(Hpa::new(0x20_0000), 512);
        let words: [AtomicU64; 9] = Default::default();
        let log = DirtyLog::new(&words, 512);
        let mut memory = GuestMemory::new(&arena, &log);
        let slot = Slot {
            gfn: Gfn::new(0),
            hpa: arena.start(),
            frames: 512,
        };
        memory.add_slot(slot).unwrap();
        test(&memory);
    }

    fn elf<'a>(image: &'a [u8], command_line: &'a str) -> Payload<'a> {
        Payload {
            image,
            initramfs: &[],
            command_line,
            cpus: 1,
        }
    }

    fn u64_at(memory: &GuestMemory<'_, Arena>, gpa: u64) -> u64 {
        memory.read_u64(Gpa::new(gpa)).unwrap()
    }

    #[test]
    fn a_guest_finds_its_command_line_memory_and_tables() {
        with_memory(|memory| {
            let image = elf::tests::image();
            let table = [0xd0; 48];
            let state = load(memory, &elf(&image, "seed=1"), &[&table]).unwrap();
            assert_eq!(state.rip, 0x10_0040);
            let info = u64::from(state.gpr32(crate::vcpu::gpr::RBX));
            assert_eq!(u64_at(memory, info) as u32, MAGIC);
            let mut line = [0; 7];
            memory
                .read(Gpa::new(u64_at(memory, info + 24)), &mut line)
                .unwrap();
            assert_eq!(&line, b"seed=1\0");
            let map = u64_at(memory, info + 40);
            assert_eq!(u64_at(memory, map + 48), HIGH_START);
            assert_eq!(u64_at(memory, map + 56), 0x10_0000);
            let rsdp = u64_at(memory, info + 32);
            assert_eq!(&u64_at(memory, rsdp).to_le_bytes(), b"RSD PTR ");
            let mut bytes = [0; 4];
            memory.read(Gpa::new(0x10_0000), &mut bytes).unwrap();
            assert_eq!(bytes, [1, 2, 3, 4]);
        });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        with_memory(|memory| {
            let image = elf::tests::image();
            let long = std::string::String::from_utf8(std::vec![b'a'; 4096]).unwrap();
            let refused = load(memory, &elf(&image, &long), &[]);
            assert_eq!(refused, Err(BootError::CommandLine(4096)));
            let with_initramfs = Payload {
                initramfs: &[0],
                ..elf(&image, "")
            };
            let refused = load(memory, &with_initramfs, &[]);
            assert_eq!(refused, Err(BootError::Initramfs));
            let no_kernel = Payload {
                image: b"#!/bin/sh",
                ..with_initramfs
            };
            let refused = load(memory, &no_kernel, &[]);
            assert_eq!(refused, Err(ElfError::NotExecutable.into()));
            let huge = std::vec![0; 0x18000];
            let refused = load(memory, &elf(&image, ""), &[&huge]);
            assert_eq!(refused, Err(BootError::AcpiTables));
        });
    }
}
