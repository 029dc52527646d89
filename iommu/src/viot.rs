//! The ACPI table that says which IOMMU is virtual and whose it is: VIOT (ACPI
//! 6.5, section 5.2.30 "Virtual I/O Translation Table").
//!
//! ```text
//! offset  0  "VIOT"  length  revision  checksum  OEM ids       (ACPI header)
//!        36  number of nodes, offset of the first, 8 reserved bytes
//!        48  nodes: type (1), reserved (1), length (2), body
//!              PCI range (1): a run of functions and the node that translates
//!              virtio-iommu on MMIO (4): where its registers are
//! ```
//!
//! Endpoints get the number of their function on segment 0, bus 0 and up.
//!
//! VIOT tells where the registers are. That these are a virtio device and where its
//! interrupt goes a guest finds in its namespace, hence a second table: an SSDT (section
//! 5.2.11.2) with one device in AML (chapter 20).
//!
//! ```text
//! Scope (\_SB) {
//!   Device (IOMM) { _HID "LNRO0005", _CRS: memory of the registers, interrupt }
//! }
//! ```

use crate::acpi_table::{self, TableError, u16_at};
use crate::viommu::virtio::WINDOW;
use hv_core::Gpa;

const SIGNATURE: &[u8; 4] = b"VIOT";
const DEVICE_SIGNATURE: &[u8; 4] = b"SSDT";
const HEADER: usize = 48;
const PCI_RANGE: u8 = 1;
const PCI_RANGE_SIZE: usize = 24;
const VIRTIO_MMIO: u8 = 4;
const VIRTIO_MMIO_SIZE: usize = 16;

/// Why a table was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ViotError {
    /// The table as such is wrong.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A node is not where the table ends, or too short.
    #[error("the node at offset {0} has a wrong length")]
    Node(usize),
    /// No node for PCI functions leads to a virtio-iommu on MMIO.
    #[error("the table names no virtio-iommu for PCI functions")]
    NoUnit,
}

/// A virtio-iommu on MMIO that translates for every function of PCI segment 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioMmio {
    /// Where its registers are; page aligned.
    pub registers: Gpa,
}

impl VirtioMmio {
    /// The size of the table that [`VirtioMmio::table`] makes.
    pub const TABLE_SIZE: usize = HEADER + PCI_RANGE_SIZE + VIRTIO_MMIO_SIZE;

    /// The table that describes it.
    pub fn table(&self) -> [u8; Self::TABLE_SIZE] {
        const UNIT: usize = HEADER + PCI_RANGE_SIZE;
        let mut table = [0; Self::TABLE_SIZE];
        let mut put = |at: usize, bytes: &[u8]| {
            table[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(36, &2u16.to_le_bytes());
        put(38, &(HEADER as u16).to_le_bytes());
        put(HEADER, &[PCI_RANGE, 0]);
        put(HEADER + 2, &(PCI_RANGE_SIZE as u16).to_le_bytes());
        // From segment 0, function 0 as endpoint 0 on, to segment 0, function ffffh.
        put(HEADER + 14, &u16::MAX.to_le_bytes());
        put(HEADER + 16, &(UNIT as u16).to_le_bytes());
        put(UNIT, &[VIRTIO_MMIO, 0]);
        put(UNIT + 2, &(VIRTIO_MMIO_SIZE as u16).to_le_bytes());
        put(UNIT + 8, &self.registers.raw().to_le_bytes());
        acpi_table::finish(table, SIGNATURE, 0)
    }

    /// The size of the table that [`VirtioMmio::device_table`] makes.
    pub const DEVICE_TABLE_SIZE: usize = acpi_table::HEADER + 55;

    /// The table that makes a virtio device of it, wired to input `pin`, 0 to 15, of the
    /// I/O APIC: edge-triggered, active high. Its registers lie below 4 GiB.
    pub fn device_table(&self, pin: u8) -> [u8; Self::DEVICE_TABLE_SIZE] {
        let [b0, b1, b2, b3] = (self.registers.raw() as u32).to_le_bytes();
        let [l0, l1, l2, l3] = (WINDOW as u32).to_le_bytes();
        let [p0, p1] = 1u16.checked_shl(pin.into()).unwrap_or(0).to_le_bytes();
        // Each length counts itself and what follows to the end.
        #[rustfmt::skip]
        let block = [
            // Scope, length, name.
            0x10, 54, b'\\', b'_', b'S', b'B', b'_',
            // Device, length, name.
            0x5b, 0x82, 46, b'I', b'O', b'M', b'M',
            // Name, _HID, a string: the id of virtio-mmio.
            0x08, b'_', b'H', b'I', b'D',
            0x0d, b'L', b'N', b'R', b'O', b'0', b'0', b'0', b'5', 0,
            // Name, _CRS, a buffer of 17 bytes.
            0x08, b'_', b'C', b'R', b'S', 0x11, 20, 0x0a, 17,
            // A fixed range of memory, writable.
            0x86, 9, 0, 1, b0, b1, b2, b3, l0, l1, l2, l3,
            // An interrupt, edge-triggered, active high.
            0x22, p0, p1,
            // The end.
            0x79, 0,
        ];
        let mut table = [0; Self::DEVICE_TABLE_SIZE];
        table[acpi_table::HEADER..].copy_from_slice(&block);
        acpi_table::finish(table, DEVICE_SIGNATURE, 2)
    }

    /// The unit that translates for PCI functions, according to a table. Firmware is
    /// not trusted to be right.
    pub fn find(bytes: &[u8]) -> Result<Self, ViotError> {
        let table = acpi_table::checked(bytes, SIGNATURE, HEADER)?;
        let (count, first) = u16_at(table, 36)
            .zip(u16_at(table, 38))
            .ok_or(TableError::Length)?;
        let mut at = usize::from(first);
        for _ in 0..count {
            let node = node(table, at)?;
            if let [PCI_RANGE, ..] = node
                && let Some(output) = u16_at(node, 16)
                && let Some(unit) = Self::of_node(self::node(table, output.into())?)
            {
                return Ok(unit);
            }
            at += node.len();
        }
        Err(ViotError::NoUnit)
    }

    fn of_node(node: &[u8]) -> Option<Self> {
        let base = node.get(8..16)?.try_into().ok()?;
        matches!(node, [VIRTIO_MMIO, ..]).then_some(Self {
            registers: Gpa::new(u64::from_le_bytes(base)),
        })
    }
}

/// The node at `at`, of at least the common header: each step goes forward.
fn node(table: &[u8], at: usize) -> Result<&[u8], ViotError> {
    let wrong = ViotError::Node(at);
    let rest = table.get(at..).ok_or(wrong)?;
    let length = usize::from(u16_at(rest, 2).ok_or(wrong)?);
    rest.get(..length).filter(|_| length >= 4).ok_or(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: VirtioMmio = VirtioMmio {
        registers: Gpa::new(0xfed9_0000),
    };

    #[test]
    fn a_table_leads_to_the_unit_it_was_made_of() {
        assert_eq!(VirtioMmio::find(&UNIT.table()), Ok(UNIT));
    }

    #[test]
    fn the_device_has_the_units_registers_and_its_interrupt() {
        let table = UNIT.device_table(5);
        assert_eq!(&table[..4], b"SSDT");
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        let block = &table[36..];
        // What lies in what: each length reaches to the end.
        for (at, length) in [(1, block[1]), (9, block[9]), (35, block[35])] {
            assert_eq!(at + usize::from(length), block.len(), "{at}");
        }
        assert_eq!(block[38..].len(), block[37].into());
        let resources = [
            0x86, 9, 0, 1, 0, 0, 0xd9, 0xfe, 0, 0x10, 0, 0, 0x22, 0x20, 0,
        ];
        assert_eq!(block[38..53], resources);
    }

    #[test]
    fn a_damaged_table_is_refused() {
        let table = UNIT.table();
        for length in 0..table.len() {
            assert!(VirtioMmio::find(&table[..length]).is_err());
        }
        for bit in 0..table.len() * 8 {
            let mut flipped = table;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(VirtioMmio::find(&flipped).is_err(), "{bit}");
        }
    }

    #[test]
    fn nodes_that_lead_nowhere_are_refused_also_with_the_right_sum() {
        let change = |at: usize, value: u8| {
            let mut table = UNIT.table();
            table[9] = table[9].wrapping_add(table[at].wrapping_sub(value));
            table[at] = value;
            VirtioMmio::find(&table)
        };
        assert_eq!(change(50, 0), Err(ViotError::Node(48)));
        assert_eq!(change(50, 255), Err(ViotError::Node(48)));
        assert_eq!(change(64, 200), Err(ViotError::Node(200)));
        assert_eq!(change(48, 3), Err(ViotError::NoUnit));
        assert_eq!(change(72, 3), Err(ViotError::NoUnit));
        assert_eq!(change(36, 0), Err(ViotError::NoUnit));
    }
}
