//! The ACPI table that says where the AMD-Vi units are (AMD IOMMU 3.0, chapter 5
//! "I/O Virtualization ACPI Table").
//!
//! ```text
//! offset  0  "IVRS"  length  revision  checksum  OEM ids       (ACPI header)
//!        36  IVinfo, 8 reserved bytes
//!        48  blocks: type (1), flags (1), length (2), body
//!                IVHD (10h, 11h, 40h): a unit and its devices
//!                IVMD (20h to 22h): memory devices must go on reaching
//! ```
//!
//! A unit may be described by several IVHD blocks, one for each generation of
//! software; the highest type has it all and is the one that is read.
//!
//! Firmware is not trusted to be right: [`Ivrs::parse`] checks every length, down
//! to the device entries, so that reading on cannot fail.

use crate::acpi_table::{self, TableError, u16_at, u64_at};
use crate::reserved::ReservedRegion;
use crate::unit::SourceId;
use bitflags::bitflags;
use hv_core::Hpa;

const SIGNATURE: &[u8; 4] = b"IVRS";
/// Where the blocks start.
const BLOCKS: usize = 48;
/// The types of IVHD blocks, and where their device entries start.
const IVHD_10: u8 = 0x10;
const IVHD_11: u8 = 0x11;
const IVHD_40: u8 = 0x40;
const IVHD_10_SIZE: usize = 24;
const IVHD_11_SIZE: usize = 40;
/// The types of IVMD blocks: for all devices, for one, for a range.
const IVMD_ALL: u8 = 0x20;
const IVMD_ONE: u8 = 0x21;
const IVMD_RANGE: u8 = 0x22;
const IVMD_SIZE: usize = 32;

/// Why a table was refused. Offsets are in bytes from the table's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IvrsError {
    /// Its header.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A block is shorter than its type demands or goes past the table.
    #[error("the block at offset {0} has a wrong length")]
    Block(usize),
    /// A device entry goes past its block, or a range of devices has no end.
    #[error("a device entry of the block at offset {0} is cut short")]
    Entry(usize),
}

bitflags! {
    /// How firmware wants a unit set up: the flags of an IVHD block.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct IvhdFlags: u8 {
        /// HtTunEn: translate HyperTransport tunnel traffic.
        const TUNNEL = 1 << 0;
        /// PassPW: the unit's posted writes may pass others.
        const PASS_POSTED = 1 << 1;
        /// ResPassPW: responses may pass posted writes.
        const RESPONSE_PASS_POSTED = 1 << 2;
        /// Isoc: the unit's own requests are isochronous.
        const ISOCHRONOUS = 1 << 3;
        /// IotlbSup: device TLBs are supported.
        const DEVICE_TLB = 1 << 4;
        /// Coherent: the unit can snoop the CPU's caches.
        const COHERENT = 1 << 5;
    }
}

/// A checked table.
#[derive(Clone, Copy, Debug)]
pub struct Ivrs<'t> {
    /// All blocks, checked.
    blocks: &'t [u8],
}

impl<'t> Ivrs<'t> {
    /// Checks the table at the start of `bytes`, which may be longer than it.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, IvrsError> {
        let (_, blocks) = acpi_table::parse(bytes, SIGNATURE, BLOCKS)?;
        check(blocks)?;
        Ok(Self { blocks })
    }

    /// The unit that translates for `device` of PCI segment `segment`, and the
    /// requester id under which it knows the device.
    pub fn unit_for(&self, segment: u16, device: SourceId) -> Option<(Ivhd<'t>, SourceId)> {
        self.units()
            .filter(|unit| unit.segment == segment)
            .find_map(|unit| Some((unit, unit.requester(device)?)))
    }

    /// The units, each in its fullest description.
    pub fn units(&self) -> impl Iterator<Item = Ivhd<'t>> + use<'t> {
        let described = blocks(self.blocks);
        let all = self.blocks;
        described.filter_map(Ivhd::read).filter(move |unit| {
            !blocks(all)
                .filter_map(Ivhd::read)
                .any(|other| other.is_same_unit(unit) && other.kind > unit.kind)
        })
    }

    /// Whether it says under which requester ids I/O APICs send interrupts. Without that
    /// nobody who needs them can have interrupts remapped; QEMU's table says it if the
    /// unit shall remap any, and no flag does.
    pub fn names_io_apics(&self) -> bool {
        let mut entries = self.units().flat_map(|unit| entries(unit.entries));
        entries.any(|entry| matches!(entry, Entry::IoApic))
    }

    /// The first memory that firmware has `device` go on reaching: with any it cannot be
    /// passed through.
    pub fn reserved_for(&self, device: SourceId) -> Option<ReservedRegion> {
        self.reserved_regions()
            .find(|region| (region.first.raw()..=region.last.raw()).contains(&device.raw()))
            .map(|region| ReservedRegion {
                first: region.base,
                last: Hpa::new(
                    region
                        .base
                        .raw()
                        .saturating_add(region.bytes.saturating_sub(1)),
                ),
            })
    }

    /// Memory that firmware lets some devices use behind the system's back, or
    /// that must not be used for IOVAs. A device cannot be passed through as long
    /// as it uses such memory.
    pub fn reserved_regions(&self) -> impl Iterator<Item = Ivmd> + use<'t> {
        blocks(self.blocks).filter_map(Ivmd::read)
    }
}

/// IVHD: a remapping unit (5.2.2).
#[derive(Clone, Copy, Debug)]
pub struct Ivhd<'t> {
    kind: u8,
    /// How firmware wants it set up.
    pub flags: IvhdFlags,
    /// The PCI function that the unit is.
    pub function: SourceId,
    /// Where the IOMMU capability is in that function's configuration space.
    pub capability: u16,
    /// Where its registers are.
    pub registers: Hpa,
    /// The PCI segment.
    pub segment: u16,
    entries: &'t [u8],
}

impl<'t> Ivhd<'t> {
    fn read(block: Block<'t>) -> Option<Self> {
        let size = ivhd_size(block.kind)?;
        let bytes = block.bytes;
        Some(Self {
            kind: block.kind,
            flags: IvhdFlags::from_bits_truncate(*bytes.get(1)?),
            function: SourceId::new(u16_at(bytes, 4)?),
            capability: u16_at(bytes, 6)?,
            registers: Hpa::new(u64_at(bytes, 8)?),
            segment: u16_at(bytes, 16)?,
            entries: bytes.get(size..)?,
        })
    }

    fn is_same_unit(&self, other: &Self) -> bool {
        (self.segment, self.function) == (other.segment, other.function)
    }

    /// The requester id under which the unit sees the DMA of `device`: its own, or
    /// an alias for a device behind an old bridge. `None` if the unit does not
    /// translate for it. A later entry about the device counts, as with the
    /// entries for all devices that lists begin with.
    pub fn requester(&self, device: SourceId) -> Option<SourceId> {
        entries(self.entries)
            .filter_map(Entry::devices)
            .filter(|entry| (entry.first.raw()..=entry.last.raw()).contains(&device.raw()))
            .last()
            .map(|entry| entry.alias.unwrap_or(device))
    }
}

/// IVMD: a reserved memory region (5.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ivmd {
    /// The first device that uses it.
    pub first: SourceId,
    /// The last one.
    pub last: SourceId,
    /// The first byte.
    pub base: Hpa,
    /// Its size in bytes, as firmware says.
    pub bytes: u64,
}

impl Ivmd {
    fn read(block: Block<'_>) -> Option<Self> {
        let bytes = block.bytes;
        let device = u16_at(bytes, 4)?;
        let (first, last) = match block.kind {
            IVMD_ALL => (0, u16::MAX),
            IVMD_ONE => (device, device),
            IVMD_RANGE => (device, u16_at(bytes, 6)?),
            _ => return None,
        };
        Some(Self {
            first: SourceId::new(first),
            last: SourceId::new(last),
            base: Hpa::new(u64_at(bytes, 16)?),
            bytes: u64_at(bytes, 24)?,
        })
    }
}

/// Devices, by what one or two device entries say (5.2.2.1).
#[derive(Clone, Copy)]
struct Devices {
    first: SourceId,
    last: SourceId,
    alias: Option<SourceId>,
}

/// What a device entry is about (5.2.2.1).
#[derive(Clone, Copy)]
enum Entry {
    Devices(Devices),
    /// A special device: an I/O APIC.
    IoApic,
    /// Padding, other special devices (HPET) and what is yet to come.
    Other,
}

impl Entry {
    fn devices(self) -> Option<Devices> {
        match self {
            Self::Devices(devices) => Some(devices),
            Self::IoApic | Self::Other => None,
        }
    }
}

/// A block, with its header.
#[derive(Clone, Copy)]
struct Block<'t> {
    kind: u8,
    bytes: &'t [u8],
}

/// Where the device entries of an IVHD block start; `None` for other blocks.
const fn ivhd_size(kind: u8) -> Option<usize> {
    match kind {
        IVHD_10 => Some(IVHD_10_SIZE),
        IVHD_11 | IVHD_40 => Some(IVHD_11_SIZE),
        _ => None,
    }
}

/// The block at the start of `bytes`, and the rest. A length of at least the
/// header makes every step go forward.
fn first_block(bytes: &[u8]) -> Option<(Block<'_>, &[u8])> {
    let kind = *bytes.first()?;
    let length = usize::from(u16_at(bytes, 2)?);
    let least = match kind {
        IVMD_ALL..=IVMD_RANGE => IVMD_SIZE,
        _ => ivhd_size(kind).unwrap_or(4),
    };
    let (bytes, rest) = bytes.split_at_checked(length)?;
    (length >= least).then_some((Block { kind, bytes }, rest))
}

/// The entry at the start of `bytes`, and the rest. `None` if it is cut short.
fn first_entry(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    /// The types of device entries.
    const ALL: u8 = 1;
    const SELECT: u8 = 2;
    const RANGE: u8 = 3;
    const ALIAS_SELECT: u8 = 66;
    const ALIAS_RANGE: u8 = 67;
    const EXTENDED_SELECT: u8 = 70;
    const EXTENDED_RANGE: u8 = 71;
    const SPECIAL: u8 = 72;
    const ACPI_DEVICE: u8 = 240;
    /// The variety of a special device.
    const IO_APIC: u8 = 1;

    let kind = *bytes.first()?;
    let length = match kind {
        // HID, CID, and the length of the unique id that follows.
        ACPI_DEVICE => 22 + usize::from(*bytes.get(21)?),
        _ => 4 << (kind >> 6),
    };
    let (entry, rest) = bytes.split_at_checked(length)?;
    let device = SourceId::new(u16_at(entry, 1)?);
    let alias = |entry| u16_at(entry, 5).map(SourceId::new);
    let one = |alias| Devices {
        first: device,
        last: device,
        alias,
    };
    match kind {
        ALL => {
            let devices = Devices {
                first: SourceId::new(0),
                last: SourceId::new(u16::MAX),
                alias: None,
            };
            Some((Entry::Devices(devices), rest))
        }
        SELECT | EXTENDED_SELECT | ACPI_DEVICE => Some((Entry::Devices(one(None)), rest)),
        ALIAS_SELECT => Some((Entry::Devices(one(alias(entry))), rest)),
        RANGE | EXTENDED_RANGE | ALIAS_RANGE => {
            let (last, rest) = end_of_range(rest)?;
            let devices = Devices {
                first: device,
                last,
                alias: alias(entry).filter(|_| kind == ALIAS_RANGE),
            };
            Some((Entry::Devices(devices), rest))
        }
        SPECIAL if entry.get(7) == Some(&IO_APIC) => Some((Entry::IoApic, rest)),
        _ => Some((Entry::Other, rest)),
    }
}

/// The entry that ends a range, which follows the one that starts it.
fn end_of_range(bytes: &[u8]) -> Option<(SourceId, &[u8])> {
    const END: u8 = 4;
    let (entry, rest) = bytes.split_at_checked(4)?;
    let is_end = *entry.first()? == END;
    is_end.then_some((SourceId::new(u16_at(entry, 1)?), rest))
}

/// Goes through all blocks, and all entries of those that have any.
fn check(blocks: &[u8]) -> Result<(), IvrsError> {
    let mut rest = blocks;
    while !rest.is_empty() {
        let offset = BLOCKS + blocks.len() - rest.len();
        let (block, after) = first_block(rest).ok_or(IvrsError::Block(offset))?;
        let mut entries = ivhd_size(block.kind)
            .and_then(|size| block.bytes.get(size..))
            .unwrap_or_default();
        while !entries.is_empty() {
            (_, entries) = first_entry(entries).ok_or(IvrsError::Entry(offset))?;
        }
        rest = after;
    }
    Ok(())
}

fn blocks(mut rest: &[u8]) -> impl Iterator<Item = Block<'_>> {
    core::iter::from_fn(move || {
        let (block, after) = first_block(rest)?;
        rest = after;
        Some(block)
    })
}

fn entries(mut rest: &[u8]) -> impl Iterator<Item = Entry> {
    core::iter::from_fn(move || {
        let (entry, after) = first_entry(rest)?;
        rest = after;
        Some(entry)
    })
}
