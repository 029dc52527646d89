//! Second-stage paging entries of VT-d with accessed and dirty bits.
//!
//! Intel Virtualization Technology for Directed I/O, section "Second-Stage Paging
//! Entries", bits A and D, which a unit with ECAP.SLADS sets in scalable mode when
//! the PASID entry's SLADE is set. All else is as in [`VtdSecondStage`].
//!
//! ```text
//!  63  62  61   57 56 55 54 53 52 51         12 11 10  9  8  7  6..2  1   0
//! [ . | 0 |   .  |HV|MW|MR|LA|FI|   address   | 0  . | D| A|PS| 0  | W | R ]  leaf
//! ```

use super::{Entry, EntryFormat, Leaf, VtdSecondStage};
use hv_core::Hpa;

/// A: the unit used the entry.
const ACCESSED: u64 = 1 << 8;
/// D: the unit let a write through; in leaves only.
const DIRTY: u64 = 1 << 9;
/// HV, ignored: a harvest took the evidence out of A or D.
const HARVESTED: u64 = 1 << 56;

/// The second-stage format with accessed and dirty bits.
///
/// Entries that point to tables have A set from the start, so that hardware has
/// nothing to change in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VtdSecondStageDirty;

impl EntryFormat for VtdSecondStageDirty {
    #[inline]
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        VtdSecondStage.leaf(level, leaf)
    }

    fn table(self, level: u8, table: Hpa, live: u64) -> u64 {
        VtdSecondStage.table(level, table, live) | ACCESSED
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
        VtdSecondStage.is_attached(entry)
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

    #[test]
    fn the_bits_of_evidence_change_nothing_else_in_a_leaf() {
        let format = VtdSecondStageDirty;
        let leaf = Leaf {
            hpa: Hpa::new(0x20_0000),
            access: Access::ReadWrite,
            first: true,
            last: true,
        };
        for level in [1, 2] {
            let entry = format.leaf(level, leaf);
            let bits = format.accessed() | format.dirty() | format.harvested();
            assert_eq!(entry & bits, 0);
            assert_eq!(format.decode(level, entry | bits), Entry::Leaf(leaf));
            assert_eq!(format.revoked() & bits, bits, "detaching keeps them");
        }
    }
}
