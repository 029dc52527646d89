//! A Linux kernel image (bzImage) and its initramfs.
//!
//! The Linux kernel's `Documentation/arch/x86/boot.rst`, protocol 2.12 and its
//! 32-bit entry, and `zero-page.rst`. The kernel is not trusted: every offset and
//! size in its header is checked.
//!
//! ```text
//!   setup (512-byte sectors: header at 1F1h) | protected-mode kernel
//!                  |                                   |
//!                  v                                   v
//!          boot_params (zero page)           its preferred address
//! ```

use super::{Layout, MAX_COMMAND_LINE};
use crate::memory::{GuestMemory, OutsideMemory, PhysMemory};
use crate::vcpu::{VcpuState, gpr};
use crate::{Gpa, PAGE_SIZE};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Where the setup header is in the file and in `boot_params`.
const HEADER_AT: usize = 0x1f1;
/// `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// `header`: "HdrS".
const MAGIC: [u8; 4] = *b"HdrS";
/// The oldest protocol with `xloadflags`.
const OLDEST: u16 = 0x020c;
/// `loadflags`, LOADED_HIGH: the kernel belongs above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `type_of_loader`: one without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const SECTOR: u64 = 512;
/// What `setup_sects` 0 means.
const DEFAULT_SETUP_SECTORS: u64 = 4;
/// `__BOOT_CS` and `__BOOT_DS`, which the 32-bit entry expects.
const BOOT_SELECTORS: (u16, u16) = (0x10, 0x18);

/// `struct setup_header`, up to where version 2.12 ends.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct SetupHeader {
    setup_sectors: u8,
    root_flags: u16,
    system_size: u32,
    ram_size: u16,
    video_mode: u16,
    root_device: u16,
    boot_flag: u16,
    jump: u16,
    magic: [u8; 4],
    version: u16,
    realmode_switch: u32,
    start_system: u16,
    kernel_version: u16,
    type_of_loader: u8,
    load_flags: u8,
    setup_move_size: u16,
    code32_start: u32,
    initramfs_address: u32,
    initramfs_size: u32,
    bootsect_kludge: u32,
    heap_end: u16,
    ext_loader_version: u8,
    ext_loader_type: u8,
    command_line: u32,
    initramfs_max: u32,
    kernel_alignment: u32,
    relocatable: u8,
    min_alignment: u8,
    xload_flags: u16,
    command_line_max: u32,
    hardware_subarch: u32,
    hardware_subarch_data: u64,
    payload_offset: u32,
    payload_length: u32,
    setup_data: u64,
    preferred_address: u64,
    init_size: u32,
}

const _: () = assert!(HEADER_AT + size_of::<SetupHeader>() == 0x264);

/// `struct boot_e820_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct E820Entry {
    start: u64,
    bytes: u64,
    kind: u32,
}

/// `struct boot_params`, as far as it is filled in here.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
struct BootParams {
    unused0: [u8; 0x70],
    rsdp: u64,
    unused1: [u8; 0x170],
    memory_map_entries: u8,
    unused2: [u8; 8],
    header: SetupHeader,
    unused3: [u8; 0x6c],
    memory_map: [E820Entry; 128],
    unused4: [u8; 0x330],
}

const _: () = assert!(size_of::<BootParams>() == PAGE_SIZE as usize);
const _: () = assert!(core::mem::offset_of!(BootParams, header) == HEADER_AT);
const _: () = assert!(core::mem::offset_of!(BootParams, memory_map_entries) == 0x1e8);
const _: () = assert!(core::mem::offset_of!(BootParams, memory_map) == 0x2d0);

/// Why a Linux kernel cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinuxError {
    /// It speaks an older boot protocol.
    #[error("the kernel's boot protocol {}.{} is older than 2.12", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// It belongs below 1 MiB.
    #[error("the kernel is not a bzImage: it is to be loaded below 1 MiB")]
    LoadedLow,
    /// The setup part is longer than the file.
    #[error("the kernel's file is cut off")]
    Truncated,
    /// Its start or what it needs while it unpacks does not fit.
    #[error("the kernel needs {bytes:#x} bytes at {start:#x}, and memory ends at {end:#x}")]
    Kernel {
        /// Where it wants to be.
        start: u64,
        /// What it needs there.
        bytes: u64,
        /// Where the guest's memory ends.
        end: u64,
    },
    /// The initramfs does not fit behind the kernel.
    #[error(
        "the initramfs has {bytes:#x} bytes, and there is room for {room:#x} behind the kernel"
    )]
    Initramfs {
        /// Its size.
        bytes: u64,
        /// The room between the kernel and the end of memory.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel takes a command line of at most {0} bytes")]
    CommandLine(u32),
    /// The guest has no memory at this address.
    #[error(transparent)]
    Outside(#[from] OutsideMemory),
}

/// Whether a file is a Linux kernel with a setup header, of whatever version.
pub(super) fn is_kernel(file: &[u8]) -> bool {
    header(file).is_some_and(|header| header.boot_flag == BOOT_FLAG && header.magic == MAGIC)
}

fn header(file: &[u8]) -> Option<SetupHeader> {
    let (header, _) = SetupHeader::read_from_prefix(file.get(HEADER_AT..)?).ok()?;
    Some(header)
}

/// Where the parts of a checked kernel and its initramfs go.
struct Plan<'a> {
    header: SetupHeader,
    kernel: &'a [u8],
    initramfs_at: u64,
}

/// Loads kernel, initramfs, command line and boot parameters, and returns the
/// state of the CPU at the kernel's 32-bit entry.
pub(super) fn load<M: PhysMemory>(
    memory: &GuestMemory<'_, M>,
    file: &[u8],
    initramfs: &[u8],
    command_line: &str,
    layout: &Layout,
) -> Result<VcpuState, LinuxError> {
    let plan = check(file, initramfs.len() as u64, command_line, layout.end)?;
    let mut header = plan.header;
    let entry = header.preferred_address;
    memory.write(Gpa::new(entry), plan.kernel)?;
    memory.write(Gpa::new(plan.initramfs_at), initramfs)?;
    memory.write(Gpa::new(layout.command_line), command_line.as_bytes())?;
    let terminator = layout.command_line + command_line.len() as u64;
    memory.write(Gpa::new(terminator), &[0])?;

    // All of these lie below 4 GiB: guest memory ends there.
    header.type_of_loader = UNDEFINED_LOADER;
    header.code32_start = entry as u32;
    header.command_line = layout.command_line as u32;
    header.initramfs_address = plan.initramfs_at as u32;
    header.initramfs_size = initramfs.len() as u32;
    let mut params = BootParams::new_zeroed();
    params.header = header;
    params.rsdp = layout.rsdp;
    let map = layout.memory_map();
    params.memory_map_entries = map.len() as u8;
    for (to, from) in params.memory_map.iter_mut().zip(map) {
        *to = E820Entry {
            start: from.start,
            bytes: from.bytes,
            kind: from.kind,
        };
    }
    memory.write(Gpa::new(layout.info), params.as_bytes())?;

    let mut state = VcpuState::pvh(entry as u32, 0);
    state.gpr[gpr::RSI] = layout.info;
    state.cs.selector = BOOT_SELECTORS.0;
    for segment in [&mut state.ds, &mut state.es, &mut state.ss] {
        segment.selector = BOOT_SELECTORS.1;
    }
    Ok(state)
}

fn check<'a>(
    file: &'a [u8],
    initramfs_bytes: u64,
    command_line: &str,
    end: u64,
) -> Result<Plan<'a>, LinuxError> {
    let header = header(file).ok_or(LinuxError::Truncated)?;
    if header.version < OLDEST {
        return Err(LinuxError::Protocol(header.version));
    }
    if header.load_flags & LOADED_HIGH == 0 {
        return Err(LinuxError::LoadedLow);
    }
    let limit = header.command_line_max.min(MAX_COMMAND_LINE as u32);
    if command_line.len() as u64 > u64::from(limit) {
        return Err(LinuxError::CommandLine(limit));
    }
    let setup_bytes = match header.setup_sectors {
        0 => (DEFAULT_SETUP_SECTORS + 1) * SECTOR,
        sectors => (u64::from(sectors) + 1) * SECTOR,
    };
    let kernel = file
        .get(setup_bytes as usize..)
        .filter(|kernel| !kernel.is_empty())
        .ok_or(LinuxError::Truncated)?;

    // The kernel unpacks itself in place, so it needs more than its file has.
    let start = header.preferred_address;
    let bytes = u64::from(header.init_size).max(kernel.len() as u64);
    let kernel_end = start
        .checked_add(bytes)
        .filter(|kernel_end| start >= super::HIGH_START && *kernel_end <= end)
        .ok_or(LinuxError::Kernel { start, bytes, end })?;
    // At the end of memory, as far as the kernel can reach.
    let room_end = end.min(u64::from(header.initramfs_max).saturating_add(1));
    let initramfs_at = room_end
        .checked_sub(initramfs_bytes)
        .map(|at| at & !(PAGE_SIZE - 1))
        .filter(|at| *at >= kernel_end)
        .ok_or(LinuxError::Initramfs {
            bytes: initramfs_bytes,
            room: room_end.saturating_sub(kernel_end),
        })?;
    Ok(Plan {
        header,
        kernel,
        initramfs_at,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::with_memory;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Two MiB, as `with_memory` has.
    const END: u64 = 0x20_0000;
    const PREFERRED: u64 = 0x10_0000;
    const INIT_SIZE: u64 = 0x8_0000;
    const INITRAMFS_MAX: u64 = 0x1f_ffff;

    /// A kernel with one setup sector and eight bytes of code.
    fn image() -> Vec<u8> {
        let mut file = std::vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &BOOT_FLAG.to_le_bytes());
        put(0x202, &MAGIC);
        put(0x206, &0x20fu16.to_le_bytes());
        put(0x211, &[LOADED_HIGH]);
        put(0x22c, &(INITRAMFS_MAX as u32).to_le_bytes());
        put(0x238, &255u32.to_le_bytes());
        put(0x258, &PREFERRED.to_le_bytes());
        put(0x260, &(INIT_SIZE as u32).to_le_bytes());
        file.extend_from_slice(b"kernel!!");
        file
    }

    fn layout() -> Layout {
        Layout {
            end: END,
            rsdp: 0xe_0000,
            info: super::super::START_INFO,
            command_line: super::super::COMMAND_LINE,
        }
    }

    #[test]
    fn a_kernel_finds_itself_its_initramfs_and_its_command_line() {
        with_memory(|memory| {
            let state = load(memory, &image(), b"ramfs", "quiet", &layout()).unwrap();
            assert_eq!(state.rip, PREFERRED);
            let mut params = [0; 4096];
            let info = Gpa::new(state.gpr[gpr::RSI]);
            memory.read(info, &mut params).unwrap();
            let params = BootParams::read_from_bytes(&params).unwrap();
            let bytes_at = |at: u64| {
                let mut bytes = [0; 8];
                memory.read(Gpa::new(at), &mut bytes).unwrap();
                bytes
            };
            assert_eq!(&bytes_at(PREFERRED), b"kernel!!");
            let header = params.header;
            assert_eq!({ header.initramfs_size }, 5);
            let at = u64::from(header.initramfs_address);
            assert_eq!(at, END - PAGE_SIZE);
            assert_eq!(&bytes_at(at)[..5], b"ramfs");
            assert_eq!(&bytes_at(header.command_line.into())[..6], b"quiet\0");
            let [_, _, high, ..] = params.memory_map;
            assert_eq!({ high.start } + { high.bytes }, END);
            assert_eq!((params.memory_map_entries, { params.rsdp }), (4, 0xe_0000));
        });
    }

    #[test]
    fn each_defect_is_named() {
        type Break = fn(&mut Vec<u8>);
        let kernel = |start, bytes| LinuxError::Kernel {
            start,
            bytes,
            end: END,
        };
        let cases: [(Break, LinuxError); 6] = [
            (|f| f[0x206] = 0x0b, LinuxError::Protocol(0x20b)),
            (|f| f[0x211] = 0, LinuxError::LoadedLow),
            (|f| f.truncate(1024), LinuxError::Truncated),
            (|f| f[0x1f1] = 0xff, LinuxError::Truncated),
            (
                |f| f[0x25f] = 0xff,
                kernel(0xff00_0000_0010_0000, INIT_SIZE),
            ),
            (|f| f[0x262] = 0x11, kernel(PREFERRED, 0x11_0000)),
        ];
        for (damage, error) in cases {
            let mut file = image();
            damage(&mut file);
            assert!(is_kernel(&file));
            assert_eq!(check(&file, 0, "", END).err(), Some(error));
        }
        let long = "x".repeat(256);
        let refused = check(&image(), 0, &long, END).err();
        assert_eq!(refused, Some(LinuxError::CommandLine(255)));
    }

    #[test]
    fn an_initramfs_fits_exactly_or_is_refused() {
        let room = END - PREFERRED - INIT_SIZE;
        assert!(check(&image(), room, "", END).is_ok());
        for bytes in [room + 1, u64::MAX] {
            let refused = check(&image(), bytes, "", END).err();
            assert_eq!(refused, Some(LinuxError::Initramfs { bytes, room }));
        }
    }

    proptest! {
        #[test]
        fn damaged_kernels_never_panic(at in 0x1f1usize..0x270, value: u64, cut in 0usize..1033) {
            let mut file = image();
            for (byte, new) in file.iter_mut().skip(at).zip(value.to_le_bytes()) {
                *byte = new;
            }
            file.truncate(cut);
            if is_kernel(&file) {
                with_memory(|memory| {
                    let _ = load(memory, &file, b"ramfs", "quiet", &layout());
                });
            }
        }
    }
}
