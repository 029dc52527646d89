//! What the boot loader says: `struct hvm_start_info` of the PVH boot protocol
//! (Xen, `public/arch-x86/hvm/start_info.h`), version 1.
//!
//! Everything is copied and checked here once, so that nothing later depends on
//! memory the boot loader chose.

use crate::physical::{PhysRange, ReadPhys, Unreadable};
use heapless::{String, Vec};
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// The most regions of the memory map that are looked at.
pub const MAX_REGIONS: usize = 64;
/// The most boot modules.
pub const MAX_MODULES: usize = 4;
/// The longest command line, in bytes.
pub const MAX_COMMAND_LINE: usize = 1024;

/// `hvm_start_info`: the fields of version 1.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, zerocopy::Immutable)]
#[repr(C)]
struct StartInfo {
    /// [`MAGIC`].
    magic: u32,
    /// 1 or later: older ones have no memory map.
    version: u32,
    /// Xen's own flags.
    flags: u32,
    /// Entries of the module list.
    modules: u32,
    /// The module list.
    module_list: u64,
    /// The command line, ending with a zero byte; 0 if there is none.
    command_line: u64,
    /// The ACPI root pointer; 0 if there is none.
    rsdp: u64,
    /// The memory map.
    memory_map: u64,
    /// Entries of the memory map.
    memory_map_entries: u32,
    reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;

/// `hvm_modlist_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, zerocopy::Immutable)]
#[repr(C)]
struct ModuleEntry {
    address: u64,
    bytes: u64,
    /// The module's own command line, which is not used.
    command_line: u64,
    reserved: u64,
}

/// `hvm_memmap_table_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, zerocopy::Immutable)]
#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    bytes: u64,
    /// As in ACPI's address range types.
    kind: u32,
    reserved: u32,
}

/// What a region of physical memory is for (ACPI 6, table "Address Range Types").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionKind {
    /// Free RAM.
    Usable,
    /// Not to be touched.
    Reserved,
    /// Tables of the firmware, free once they are read.
    AcpiReclaimable,
    /// Firmware's own.
    AcpiNonVolatile,
    /// Broken RAM.
    Unusable,
    /// Anything else; treat it as reserved.
    Other(u32),
}

impl RegionKind {
    const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Usable,
            2 => Self::Reserved,
            3 => Self::AcpiReclaimable,
            4 => Self::AcpiNonVolatile,
            5 => Self::Unusable,
            other => Self::Other(other),
        }
    }
}

/// A region of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it is. Regions may overlap; the more restrictive one then counts.
    pub range: PhysRange,
    /// What it is for.
    pub kind: RegionKind,
}

/// What the boot loader said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BootInfo {
    regions: Vec<Region, MAX_REGIONS>,
    modules: Vec<PhysRange, MAX_MODULES>,
    command_line: String<MAX_COMMAND_LINE>,
    rsdp: Option<u64>,
}

/// Why the start information cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BootInfoError {
    /// A part of it cannot be read.
    #[error("the boot loader's start information: {0}")]
    Unreadable(#[from] Unreadable),
    /// It does not begin with the magic number: this is another boot protocol.
    #[error("the boot loader does not speak PVH: magic {0:#x}, expected {MAGIC:#x}")]
    Magic(u32),
    /// It is too old to have a memory map.
    #[error("the boot loader's start information is version {0}; 1 or later is needed")]
    Version(u32),
    /// The memory map has no entries, or more than fit.
    #[error("the boot loader's memory map has {0} entries; 1 to {MAX_REGIONS} are supported")]
    MemoryMapLength(u32),
    /// More modules than fit.
    #[error("the boot loader gives {0} modules; at most {MAX_MODULES} are supported")]
    ModuleCount(u32),
    /// A range wraps around the address space.
    #[error("the boot loader names {1:#x} bytes at {0:#x}, which wraps around")]
    Wraps(u64, u64),
    /// A module is not in usable memory.
    #[error("boot module {0} is not in usable memory")]
    ModuleOutsideMemory(usize),
    /// No zero byte within [`MAX_COMMAND_LINE`].
    #[error("the command line is longer than {MAX_COMMAND_LINE} bytes")]
    CommandLineLength,
    /// Bytes that are not UTF-8.
    #[error("the command line is not valid UTF-8")]
    CommandLineText,
}

impl BootInfo {
    /// Reads the start information at physical address `at`.
    pub fn read(memory: &impl ReadPhys, at: u64) -> Result<Self, BootInfoError> {
        let info: StartInfo = read_struct(memory, at)?;
        if info.magic != MAGIC {
            return Err(BootInfoError::Magic(info.magic));
        }
        if info.version == 0 {
            return Err(BootInfoError::Version(info.version));
        }
        let regions = read_memory_map(memory, &info)?;
        let modules = read_modules(memory, &info, &regions)?;
        Ok(Self {
            regions,
            modules,
            command_line: read_command_line(memory, info.command_line)?,
            rsdp: (info.rsdp != 0).then_some(info.rsdp),
        })
    }

    /// The memory map, in the boot loader's order. At least one region.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Where the boot modules lie, all within usable memory.
    pub fn modules(&self) -> &[PhysRange] {
        &self.modules
    }

    /// The command line, empty if there is none.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// The physical address of the ACPI root pointer, unchecked.
    pub fn rsdp(&self) -> Option<u64> {
        self.rsdp
    }

    /// The bytes of boot module `index`.
    #[cfg(strandline_image)]
    #[allow(unsafe_code)]
    pub fn module_bytes(&'static self, index: usize) -> Option<&'static [u8]> {
        let range = self.modules.get(index)?;
        if range.end() > crate::paging::MAPPED_BYTES || range.start == 0 {
            return None;
        }
        // SAFETY: usable RAM (checked by `read_modules`), mapped at its own
        // address, and left alone: nobody is given memory that a module is in.
        Some(unsafe { core::slice::from_raw_parts(range.start as *const u8, range.bytes as usize) })
    }
}

fn read_struct<T: FromBytes + IntoBytes>(memory: &impl ReadPhys, at: u64) -> Result<T, Unreadable> {
    let mut value = T::new_zeroed();
    memory.read(at, value.as_mut_bytes())?;
    Ok(value)
}

/// Reads entry `index` of a list of `T` at `list`.
fn read_entry<T: FromBytes + IntoBytes>(
    memory: &impl ReadPhys,
    list: u64,
    index: u32,
) -> Result<T, Unreadable> {
    let at = u64::from(index) * size_of::<T>() as u64;
    read_struct(memory, list.checked_add(at).ok_or(Unreadable(list))?)
}

fn checked_range(start: u64, bytes: u64) -> Result<PhysRange, BootInfoError> {
    PhysRange::new(start, bytes).ok_or(BootInfoError::Wraps(start, bytes))
}

fn read_memory_map(
    memory: &impl ReadPhys,
    info: &StartInfo,
) -> Result<Vec<Region, MAX_REGIONS>, BootInfoError> {
    let count = info.memory_map_entries;
    let wrong_length = BootInfoError::MemoryMapLength(count);
    if count == 0 {
        return Err(wrong_length);
    }
    let mut regions = Vec::new();
    for index in 0..count {
        let entry: MemoryMapEntry = read_entry(memory, info.memory_map, index)?;
        let region = Region {
            range: checked_range(entry.address, entry.bytes)?,
            kind: RegionKind::from_raw(entry.kind),
        };
        regions.push(region).map_err(|_| wrong_length)?;
    }
    Ok(regions)
}

fn read_modules(
    memory: &impl ReadPhys,
    info: &StartInfo,
    regions: &[Region],
) -> Result<Vec<PhysRange, MAX_MODULES>, BootInfoError> {
    let mut modules = Vec::new();
    for index in 0..info.modules {
        let entry: ModuleEntry = read_entry(memory, info.module_list, index)?;
        let range = checked_range(entry.address, entry.bytes)?;
        let is_usable = regions
            .iter()
            .any(|region| region.kind == RegionKind::Usable && region.range.contains(&range));
        if !is_usable {
            return Err(BootInfoError::ModuleOutsideMemory(index as usize));
        }
        modules
            .push(range)
            .map_err(|_| BootInfoError::ModuleCount(info.modules))?;
    }
    Ok(modules)
}

fn read_command_line(
    memory: &impl ReadPhys,
    at: u64,
) -> Result<String<MAX_COMMAND_LINE>, BootInfoError> {
    if at == 0 {
        return Ok(String::new());
    }
    let mut bytes = Vec::<u8, MAX_COMMAND_LINE>::new();
    for address in at.. {
        let mut byte = [0];
        memory.read(address, &mut byte)?;
        match byte {
            [0] => break,
            [byte] => bytes
                .push(byte)
                .map_err(|_| BootInfoError::CommandLineLength)?,
        }
    }
    String::from_utf8(bytes).map_err(|_| BootInfoError::CommandLineText)
}

#[cfg(test)]
mod tests;
