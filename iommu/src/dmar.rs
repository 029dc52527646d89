//! The ACPI table that says where the VT-d units are (VT-d 4.1, chapter 8 "BIOS
//! Considerations").
//!
//! ```text
//! offset  0  "DMAR"  length  revision  checksum  OEM ids       (ACPI header)
//!        36  host address width - 1, flags, 10 reserved bytes
//!        48  remapping structures: type (2), length (2), body
//!                DRHD (0): a unit      RMRR (1): memory devices must go on reaching
//! ```
//!
//! Firmware is not trusted to be right: [`Dmar::parse`] checks every length, down
//! to the device scopes, so that reading on cannot fail.

use crate::acpi_table::{self, TableError, bytes_at, u16_at, u64_at};
use crate::reserved::ReservedRegion;
use crate::unit::SourceId;
use bitflags::bitflags;
use hv_core::platform::ioapic;
use hv_core::{Gpa, Hpa};

const SIGNATURE: &[u8; 4] = b"DMAR";
/// Where the remapping structures start.
const STRUCTURES: usize = 48;
const DRHD: u16 = 0;
const RMRR: u16 = 1;
/// The fixed parts of the structures; device scopes follow.
const DRHD_SIZE: usize = 16;
const RMRR_SIZE: usize = 24;
/// The fixed part of a device scope; its path follows.
const SCOPE_SIZE: usize = 6;
/// Device scope: an I/O APIC.
const SCOPE_IOAPIC: u8 = 3;
/// The guest's DRHD: with one scope, whose path has one step.
const GUEST_DRHD_SIZE: usize = DRHD_SIZE + SCOPE_SIZE + 2;
/// DRHD flag INCLUDE_PCI_ALL.
const INCLUDE_PCI_ALL: u8 = 1;

/// Why a table was refused. Offsets are in bytes from the table's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DmarError {
    /// Its header.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A structure is shorter than its type demands or goes past the table.
    #[error("the remapping structure at offset {0} has a wrong length")]
    Structure(usize),
    /// A device scope is too short, odd, or goes past its structure.
    #[error("a device scope of the remapping structure at offset {0} has a wrong length")]
    Scope(usize),
}

bitflags! {
    /// The table's flags.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DmarFlags: u8 {
        /// Units that can remap interrupts may be used so.
        const INTERRUPT_REMAPPING = 1 << 0;
        /// Firmware asks the system to stay out of x2APIC mode.
        const X2APIC_OPT_OUT = 1 << 1;
        /// Firmware asks for DMA remapping from early on.
        const DMA_CONTROL_OPT_IN = 1 << 2;
    }
}

/// A checked table.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'t> {
    host_address_width: u8,
    flags: DmarFlags,
    /// All remapping structures, checked.
    structures: &'t [u8],
}

impl<'t> Dmar<'t> {
    /// Checks the table at the start of `bytes`, which may be longer than it.
    pub fn parse(bytes: &'t [u8]) -> Result<Self, DmarError> {
        let (header, structures) = acpi_table::parse(bytes, SIGNATURE, STRUCTURES)?;
        let [width, flags] = bytes_at(header, 36).ok_or(TableError::Length)?;
        check(structures)?;
        Ok(Self {
            host_address_width: width.saturating_add(1),
            flags: DmarFlags::from_bits_truncate(flags),
            structures,
        })
    }

    /// How many physical address bits the platform has for DMA.
    pub fn host_address_width(&self) -> u8 {
        self.host_address_width
    }

    /// The table's flags.
    pub fn flags(&self) -> DmarFlags {
        self.flags
    }

    /// The units, in the table's order. One with explicit scopes for a device goes
    /// before the one for all the rest.
    pub fn units(&self) -> impl Iterator<Item = Drhd<'t>> + use<'t> {
        structures(self.structures).filter_map(Drhd::read)
    }

    /// The unit that translates for a device of a PCI segment: the one that names
    /// it, or else the one for all devices that no other unit names.
    ///
    /// Which buses lie behind a bridge the table does not say. So a device that
    /// could lie behind one that is named in its place is not found: its unit might
    /// be another than the one for all the rest.
    pub fn unit_for(&self, segment: u16, device: SourceId) -> Option<Drhd<'t>> {
        let names_it =
            |unit: &Drhd<'_>| unit.scopes().any(|scope| scope.endpoint() == Some(device));
        let units = || self.units().filter(|unit| unit.segment == segment);
        let may_be_named_by_bridge = || {
            let is_unresolved =
                |scope: &DeviceScope<'_>| scope.is_pci() && scope.endpoint().is_none();
            // No bridge leads to bus 0.
            device.bus() != 0
                && units().any(|unit| unit.scopes().any(|scope| is_unresolved(&scope)))
        };
        units().find(names_it).or_else(|| {
            units()
                .find(|unit| unit.include_all)
                .filter(|_| !may_be_named_by_bridge())
        })
    }

    /// The first memory that firmware has `device`, of a PCI segment, go on reaching:
    /// with any it cannot be passed through. A region that is named for a bridge counts
    /// for every device that could lie behind it.
    pub fn reserved_for(&self, segment: u16, device: SourceId) -> Option<ReservedRegion> {
        let may_be = |scope: DeviceScope<'_>| match scope.endpoint() {
            Some(endpoint) => endpoint == device,
            // No bridge leads to bus 0.
            None => scope.is_pci() && device.bus() != 0,
        };
        self.reserved_regions()
            .filter(|region| region.segment == segment)
            .find(|region| region.scopes().any(may_be))
            .map(|region| ReservedRegion {
                first: region.base,
                last: region.limit,
            })
    }

    /// Memory that firmware lets some devices use behind the system's back. Such a
    /// device cannot be passed through as long as it does.
    pub fn reserved_regions(&self) -> impl Iterator<Item = Rmrr<'t>> + use<'t> {
        structures(self.structures).filter_map(Rmrr::read)
    }
}

/// DRHD: a remapping unit (8.3).
#[derive(Clone, Copy, Debug)]
pub struct Drhd<'t> {
    /// INCLUDE_PCI_ALL: it serves all devices of its segment that no other unit
    /// names.
    pub include_all: bool,
    /// The PCI segment.
    pub segment: u16,
    /// Where its registers are.
    pub registers: Hpa,
    scopes: &'t [u8],
}

impl<'t> Drhd<'t> {
    fn read(structure: Structure<'t>) -> Option<Self> {
        if structure.kind != DRHD {
            return None;
        }
        Some(Self {
            include_all: structure.bytes.get(4)? & INCLUDE_PCI_ALL != 0,
            segment: u16_at(structure.bytes, 6)?,
            registers: Hpa::new(u64_at(structure.bytes, 8)?),
            scopes: structure.bytes.get(DRHD_SIZE..)?,
        })
    }

    /// The devices it names.
    pub fn scopes(&self) -> impl Iterator<Item = DeviceScope<'t>> + use<'t> {
        scopes(self.scopes)
    }
}

/// RMRR: a reserved memory region (8.4).
#[derive(Clone, Copy, Debug)]
pub struct Rmrr<'t> {
    /// The PCI segment of its devices.
    pub segment: u16,
    /// The first byte.
    pub base: Hpa,
    /// The last byte, as firmware says; it may even lie before the first.
    pub limit: Hpa,
    scopes: &'t [u8],
}

impl<'t> Rmrr<'t> {
    fn read(structure: Structure<'t>) -> Option<Self> {
        if structure.kind != RMRR {
            return None;
        }
        Some(Self {
            segment: u16_at(structure.bytes, 6)?,
            base: Hpa::new(u64_at(structure.bytes, 8)?),
            limit: Hpa::new(u64_at(structure.bytes, 16)?),
            scopes: structure.bytes.get(RMRR_SIZE..)?,
        })
    }

    /// The devices that use it.
    pub fn scopes(&self) -> impl Iterator<Item = DeviceScope<'t>> + use<'t> {
        scopes(self.scopes)
    }
}

/// A device, or all devices behind a bridge (8.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceScope<'t> {
    /// 1 PCI endpoint, 2 all behind a bridge, 3 IOAPIC, 4 HPET, 5 ACPI device.
    pub kind: u8,
    /// The APIC id, HPET number or ACPI device number of kinds 3 to 5.
    pub enumeration_id: u8,
    /// The bus the path starts on.
    pub start_bus: u8,
    /// Device and function of each bridge on the way, and of the device at last.
    pub path: &'t [[u8; 2]],
}

impl DeviceScope<'_> {
    /// Whether it is about PCI devices: one, or all behind a bridge.
    pub fn is_pci(&self) -> bool {
        matches!(self.kind, 1 | 2)
    }

    /// The requester id of a PCI endpoint (kind 1) that lies on the start bus
    /// itself; `None` for any other scope.
    pub fn endpoint(&self) -> Option<SourceId> {
        match self.path {
            [[device @ 0..32, function @ 0..8]] if self.kind == 1 => Some(SourceId::new(
                u16::from(self.start_bus) << 8 | u16::from(device << 3 | function),
            )),
            _ => None,
        }
    }
}

/// What a guest is told of its one emulated unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestUnit {
    /// Where the unit's registers are; page aligned.
    pub registers: Gpa,
    /// How many physical address bits the guest has for DMA, from 1 to 64.
    pub host_address_width: u8,
    /// Whether the unit remaps interrupts.
    pub interrupt_remapping: bool,
}

impl GuestUnit {
    /// The size of the table that [`GuestUnit::table`] makes.
    pub const TABLE_SIZE: usize = STRUCTURES + GUEST_DRHD_SIZE;

    /// The guest's DMAR table: one unit for every device of segment 0 and for the
    /// platform's I/O APIC, which a kernel wants to find before it has interrupts
    /// remapped.
    pub fn table(&self) -> [u8; Self::TABLE_SIZE] {
        let mut table = [0; Self::TABLE_SIZE];
        let mut put = |at: usize, bytes: &[u8]| {
            table[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let flags = match self.interrupt_remapping {
            true => DmarFlags::INTERRUPT_REMAPPING,
            false => DmarFlags::empty(),
        };
        let [devfn, bus] = ioapic::REQUESTER.to_le_bytes();
        put(
            36,
            &[self.host_address_width.saturating_sub(1), flags.bits()],
        );
        put(STRUCTURES, &DRHD.to_le_bytes());
        put(STRUCTURES + 2, &(GUEST_DRHD_SIZE as u16).to_le_bytes());
        put(STRUCTURES + 4, &[INCLUDE_PCI_ALL]);
        put(STRUCTURES + 8, &self.registers.raw().to_le_bytes());
        let (device, function) = (devfn >> 3, devfn & 7);
        let length = (SCOPE_SIZE + 2) as u8;
        let scope = [
            SCOPE_IOAPIC,
            length,
            0,
            0,
            ioapic::ID,
            bus,
            device,
            function,
        ];
        put(STRUCTURES + DRHD_SIZE, &scope);
        acpi_table::finish(table, SIGNATURE, 1)
    }
}

/// A remapping structure, with its header.
#[derive(Clone, Copy)]
struct Structure<'t> {
    kind: u16,
    bytes: &'t [u8],
}

/// The structure at the start of `bytes`, and the rest. A length of at least the
/// header makes every step go forward.
fn first_structure(bytes: &[u8]) -> Option<(Structure<'_>, &[u8])> {
    let kind = u16_at(bytes, 0)?;
    let length = usize::from(u16_at(bytes, 2)?);
    let least = match kind {
        DRHD => DRHD_SIZE,
        RMRR => RMRR_SIZE,
        _ => 4,
    };
    let (bytes, rest) = bytes.split_at_checked(length)?;
    (length >= least).then_some((Structure { kind, bytes }, rest))
}

/// The device scope at the start of `bytes`, and the rest.
fn first_scope(bytes: &[u8]) -> Option<(DeviceScope<'_>, &[u8])> {
    let length = usize::from(*bytes.get(1)?);
    let (scope, rest) = bytes.split_at_checked(length)?;
    let (fixed, path) = scope.split_first_chunk::<SCOPE_SIZE>()?;
    let (path, []) = path.as_chunks() else {
        return None;
    };
    let [kind, _, _, _, enumeration_id, start_bus] = *fixed;
    let scope = DeviceScope {
        kind,
        enumeration_id,
        start_bus,
        path,
    };
    Some((scope, rest))
}

/// Goes through all structures, and all scopes of those that are used.
fn check(structures: &[u8]) -> Result<(), DmarError> {
    let mut rest = structures;
    while !rest.is_empty() {
        let offset = STRUCTURES + structures.len() - rest.len();
        let (structure, after) = first_structure(rest).ok_or(DmarError::Structure(offset))?;
        let mut scopes = match structure.kind {
            DRHD => structure.bytes.get(DRHD_SIZE..),
            RMRR => structure.bytes.get(RMRR_SIZE..),
            _ => None,
        }
        .unwrap_or_default();
        while !scopes.is_empty() {
            (_, scopes) = first_scope(scopes).ok_or(DmarError::Scope(offset))?;
        }
        rest = after;
    }
    Ok(())
}

fn structures(mut rest: &[u8]) -> impl Iterator<Item = Structure<'_>> {
    core::iter::from_fn(move || {
        let (structure, after) = first_structure(rest)?;
        rest = after;
        Some(structure)
    })
}

fn scopes(mut rest: &[u8]) -> impl Iterator<Item = DeviceScope<'_>> {
    core::iter::from_fn(move || {
        let (scope, after) = first_scope(rest)?;
        rest = after;
        Some(scope)
    })
}
