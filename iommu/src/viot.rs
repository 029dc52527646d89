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

use crate::acpi_table::{self, TableError, u16_at};
use hv_core::Gpa;

const SIGNATURE: &[u8; 4] = b"VIOT";
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
