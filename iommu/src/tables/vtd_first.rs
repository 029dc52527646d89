//! First-stage paging entries of VT-d.
//!
//! Intel Virtualization Technology for Directed I/O, section "First-Stage Paging
//! Entries" (chapter 9, Translation Structure Formats), tables for FS-PML4E,
//! FS-PDPE, FS-PDE and FS-PTE: the layout of the CPU's own page tables.
//!
//! ```text
//!  63  62..57 56 55 54 53 52 51         12 11..8  7  6  5  4..3  2   1   0
//! [ 0 |  .   |HV|MW|MR|LA|FI|   address   |  0  |PS| D| A|  0  |U/S|R/W| P ]  leaf
//! [ 0 | entries in use (10) |   address   |  0  | 0| .| A|  0  |U/S|R/W| P ]  table
//! ```
//!
//! Bits 52 to 62 are ignored by hardware. An entry with P = 0 is not present, and
//! all its other bits are ignored: that is what a detached entry is. U/S is set in
//! every entry, as requests without supervisor privilege need it.
//!
//! There is no right to write without the right to read: a write-only mapping can
//! be read too. Translation needs a root at level 4, and addresses with bit 47 set
//! are the upper half of a canonical address space, which is not used.

use super::{Entry, EntryFormat, Leaf, VtdSecondStage};
use hv_core::{Hpa, PAGE_SHIFT};

/// P: the entry is present, and reads are permitted. Where R is in second-stage
/// entries.
const PRESENT: u64 = 1 << 0;
/// U/S: requests without supervisor privilege are permitted.
const USER: u64 = 1 << 2;
/// A: the unit used the entry.
const ACCESSED: u64 = 1 << 5;
/// D: the unit let a write through; in leaves only.
const DIRTY: u64 = 1 << 6;
/// HV, ignored: a harvest took the evidence out of A or D.
const HARVESTED: u64 = 1 << 56;

/// The first-stage format. The right to write, the size, the address and the bits
/// that hardware ignores lie where [`VtdSecondStage`] has them.
///
/// Entries that point to tables have A set from the start, so that hardware has
/// nothing to change in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VtdFirstStage;

impl EntryFormat for VtdFirstStage {
    #[inline]
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        VtdSecondStage.leaf(level, leaf) | PRESENT | USER
    }

    fn table(self, level: u8, table: Hpa, live: u64) -> u64 {
        VtdSecondStage.table(level, table, live) | USER | ACCESSED
    }

    /// Addresses are canonical: those of the lower half, without the sign bit.
    fn address_bits(self, levels: u8) -> u8 {
        PAGE_SHIFT as u8 + 9 * levels - 1
    }

    #[inline]
    fn decode(self, level: u8, entry: u64) -> Entry {
        VtdSecondStage.decode(level, entry)
    }

    fn boundaries(self) -> [u64; 2] {
        VtdSecondStage.boundaries()
    }

    fn live_bits(self, live: u64) -> u64 {
        VtdSecondStage.live_bits(live)
    }

    fn live_wraps(self) -> u64 {
        VtdSecondStage.live_wraps()
    }

    fn is_attached(self, entry: u64) -> bool {
        entry & PRESENT != 0
    }

    fn revoked(self) -> u64 {
        VtdSecondStage.revoked()
    }

    fn accessed(self) -> u64 {
        ACCESSED
    }

    fn dirty(self) -> u64 {
        DIRTY
    }

    fn harvested(self) -> u64 {
        HARVESTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Access;

    const FORMAT: VtdFirstStage = VtdFirstStage;

    fn leaf(access: Access) -> Leaf {
        Leaf {
            hpa: Hpa::new(0x20_0000),
            access,
            first: false,
            last: true,
        }
    }

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        let hardware = |entry: u64| entry & 0x800f_ffff_ffff_ffff;
        assert_eq!(hardware(FORMAT.leaf(1, leaf(Access::Read))), 0x20_0005);
        assert_eq!(hardware(FORMAT.leaf(2, leaf(Access::ReadWrite))), 0x20_0087);
        assert_eq!(hardware(FORMAT.leaf(1, leaf(Access::Write))), 0x20_0007);
        let table = FORMAT.table(2, Hpa::new(0x9000), 512);
        assert_eq!(hardware(table), 0x9027);
    }

    #[test]
    fn a_detached_entry_keeps_all_but_the_hardwares_view() {
        for (level, access) in [
            (1, Access::Read),
            (1, Access::Write),
            (2, Access::ReadWrite),
        ] {
            let evidence = FORMAT.accessed() | FORMAT.dirty() | FORMAT.harvested();
            let entry = FORMAT.leaf(level, leaf(access)) | evidence;
            let detached = entry & FORMAT.revoked();
            assert!(FORMAT.is_attached(entry) && !FORMAT.is_attached(detached));
            assert_eq!(FORMAT.decode(level, detached), Entry::Leaf(leaf(access)));
            assert_eq!(detached & evidence, evidence);
        }
    }

    #[test]
    fn stray_accessed_and_dirty_bits_make_no_entry() {
        for level in 1..=4 {
            assert_eq!(FORMAT.decode(level, 0x60), Entry::Empty);
        }
    }
}
