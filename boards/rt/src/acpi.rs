//! Finding ACPI tables (ACPI 6.5, section 5.2): root pointer, root table, and the
//! tables it lists. What the tables say is parsed by whoever needs them, except
//! for the one field of the FADT that is wanted here: the power management timer.
//!
//! The crate `acpi` is not used: its way to memory cannot say that an address leads
//! nowhere, it goes on after wrong checksums, and its arithmetic on table lengths can
//! underflow. What firmware wrote must not be able to make the hypervisor panic.

use crate::physical::{ReadPhys, Unreadable};

/// The length of the header that every table begins with.
const HEADER: usize = 36;
/// The longest table that is believed to be one.
const MAX_TABLE: usize = 1 << 20;
/// The most entries of the root table that are looked at.
const MAX_TABLES: u64 = 256;

/// Why a table cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AcpiError {
    /// An address leads nowhere.
    #[error("ACPI: {0}")]
    Unreadable(#[from] Unreadable),
    /// The boot loader names no root pointer, or there is none where it says.
    #[error("ACPI: there is no root pointer (RSDP)")]
    NoRootPointer,
    /// A structure's bytes do not add up to zero.
    #[error("ACPI: the checksum of table {0} is wrong")]
    Checksum(Signature),
    /// A structure's length makes no sense.
    #[error("ACPI: the length of table {0} is wrong")]
    Length(Signature),
    /// The machine has no such table.
    #[error("ACPI: there is no table {0}")]
    Missing(Signature),
    /// The FADT names no power management timer in I/O space.
    #[error("ACPI: the machine has no power management timer")]
    NoTimer,
}

/// A table's four-letter name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl core::fmt::Display for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl core::fmt::Debug for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self}")
    }
}

/// The fixed hardware description.
const FADT: Signature = Signature(*b"FACP");
/// DMA remapping units of the VT-d kind.
pub const DMAR: Signature = Signature(*b"DMAR");
/// DMA remapping units of the AMD-Vi kind.
pub const IVRS: Signature = Signature(*b"IVRS");
/// Paravirtual IOMMUs.
pub const VIOT: Signature = Signature(*b"VIOT");
const RSDP: Signature = Signature(*b"RSD ");
const RSDT: Signature = Signature(*b"RSDT");
const XSDT: Signature = Signature(*b"XSDT");

/// The machine's ACPI tables.
#[derive(Debug)]
pub struct Tables<'m, M> {
    memory: &'m M,
    root: Root,
}

/// The list of tables.
#[derive(Clone, Copy, Debug)]
struct Root {
    /// The first entry.
    entries: u64,
    count: u64,
    /// 8 bytes in an XSDT, 4 in an RSDT.
    entry_bytes: u64,
}

/// A table that was found, its checksum verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Table {
    at: u64,
    bytes: usize,
}

impl<'m, M: ReadPhys> Tables<'m, M> {
    /// The tables behind the root pointer at `rsdp`.
    pub fn new(memory: &'m M, rsdp: Option<u64>) -> Result<Self, AcpiError> {
        let rsdp = rsdp.ok_or(AcpiError::NoRootPointer)?;
        let first: [u8; 20] = read(memory, rsdp)?;
        if first[..8] != *b"RSD PTR " {
            return Err(AcpiError::NoRootPointer);
        }
        if sum(&first) != 0 {
            return Err(AcpiError::Checksum(RSDP));
        }
        // Revision 2 added an extended part with the 64-bit address of an XSDT.
        if first[15] >= 2 {
            let extended: [u8; 36] = read(memory, rsdp)?;
            if sum(&extended) != 0 {
                return Err(AcpiError::Checksum(RSDP));
            }
            let xsdt = le_u64(&extended, 24);
            if xsdt != 0 {
                return Self::with_root(memory, xsdt, XSDT, 8);
            }
        }
        let rsdt = u64::from(le_u32(&first, 16));
        Self::with_root(memory, rsdt, RSDT, 4)
    }

    fn with_root(
        memory: &'m M,
        at: u64,
        signature: Signature,
        entry_bytes: u64,
    ) -> Result<Self, AcpiError> {
        let table = check(memory, at, signature)?;
        let count = (table.bytes - HEADER) as u64 / entry_bytes;
        let root = Root {
            entries: at + HEADER as u64,
            count: count.min(MAX_TABLES),
            entry_bytes,
        };
        Ok(Self { memory, root })
    }

    /// Copies the first table of that name into `to` and returns the part that it
    /// fills; a table longer than `to` is a wrong length.
    pub fn copy<'b>(&self, signature: Signature, to: &'b mut [u8]) -> Result<&'b [u8], AcpiError> {
        let table = self.find(signature)?;
        let to = to
            .get_mut(..table.bytes)
            .ok_or(AcpiError::Length(signature))?;
        self.memory.read(table.at, to)?;
        Ok(to)
    }

    /// The power management timer, from the FADT (section 5.2.9).
    pub fn pm_timer(&self) -> Result<PmTimer, AcpiError> {
        /// PM_TMR_BLK, 32 bits.
        const BLOCK: usize = 76;
        /// PM_TMR_LEN: 4 if there is a timer.
        const LENGTH: usize = 91;
        /// Flags; bit 8, TMR_VAL_EXT: the timer has 32 bits and not 24.
        const FLAGS: usize = 112;
        /// X_PM_TMR_BLK: a generic address structure.
        const EXTENDED_BLOCK: usize = 208;
        const IO_SPACE: u8 = 1;

        let table = self.find(FADT)?;
        let mut fadt = [0; EXTENDED_BLOCK + 12];
        // Older tables are shorter; what they lack stays zero.
        let present = table.bytes.min(fadt.len());
        if present < FLAGS + 4 {
            return Err(AcpiError::Length(FADT));
        }
        self.memory.read(table.at, &mut fadt[..present])?;
        let extended = le_u64(&fadt, EXTENDED_BLOCK + 4);
        let port = if extended != 0 && fadt[EXTENDED_BLOCK] == IO_SPACE {
            extended
        } else if fadt[LENGTH] == 4 {
            u64::from(le_u32(&fadt, BLOCK))
        } else {
            0
        };
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        Ok(PmTimer {
            port: port.ok_or(AcpiError::NoTimer)?,
            is_32_bit: le_u32(&fadt, FLAGS) >> 8 & 1 == 1,
        })
    }

    fn find(&self, signature: Signature) -> Result<Table, AcpiError> {
        for index in 0..self.root.count {
            let mut entry = [0; 8];
            let bytes = self.root.entry_bytes as usize;
            let at = self.root.entries + index * self.root.entry_bytes;
            self.memory.read(at, &mut entry[..bytes])?;
            let at = u64::from_le_bytes(entry);
            // An entry that leads nowhere hides only its own table.
            if let Ok(name) = read::<4>(self.memory, at)
                && name == signature.0
            {
                return check(self.memory, at, signature);
            }
        }
        Err(AcpiError::Missing(signature))
    }
}

/// The power management timer: counts up at 3.579545 MHz (section 4.8.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmTimer {
    /// The I/O port of its 32-bit register.
    pub port: u16,
    /// Whether it wraps after 32 bits and not after 24.
    pub is_32_bit: bool,
}

/// Checks signature, length and checksum of the table at `at`.
fn check(memory: &impl ReadPhys, at: u64, signature: Signature) -> Result<Table, AcpiError> {
    let header: [u8; HEADER] = read(memory, at)?;
    if header[..4] != signature.0 {
        return Err(AcpiError::Missing(signature));
    }
    let bytes = le_u32(&header, 4) as usize;
    if !(HEADER..=MAX_TABLE).contains(&bytes) {
        return Err(AcpiError::Length(signature));
    }
    let mut total = 0u8;
    for offset in 0..bytes as u64 {
        let [byte] = read(memory, at.checked_add(offset).ok_or(Unreadable(at))?)?;
        total = total.wrapping_add(byte);
    }
    if total != 0 {
        return Err(AcpiError::Checksum(signature));
    }
    Ok(Table { at, bytes })
}

fn read<const N: usize>(memory: &impl ReadPhys, at: u64) -> Result<[u8; N], Unreadable> {
    let mut bytes = [0; N];
    memory.read(at, &mut bytes)?;
    Ok(bytes)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |total, byte| total.wrapping_add(*byte))
}

/// The little-endian number at a constant offset of a buffer of constant size.
fn le_u32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

fn le_u64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests;
