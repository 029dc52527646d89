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
//! are the upper half of a canonical address space.

use super::{Entry, EntryFormat, Leaf};
use crate::space::Access;
use bitflags::bitflags;
use hv_core::Hpa;

bitflags! {
    /// The single bits of an entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Bits: u64 {
        /// P: the entry is present, and reads are permitted.
        const PRESENT = 1 << 0;
        /// R/W: writes are permitted.
        const WRITE = 1 << 1;
        /// U/S: requests without supervisor privilege are permitted.
        const USER = 1 << 2;
        /// A: the unit used the entry.
        const ACCESSED = 1 << 5;
        /// D: the unit let a write through; in leaves only.
        const DIRTY = 1 << 6;
        /// PS: a leaf, in a table above level 1.
        const PAGE_SIZE = 1 << 7;
        /// FI, ignored: the mapping starts here.
        const FIRST = 1 << 52;
        /// LA, ignored: the mapping ends here.
        const LAST = 1 << 53;
        /// MR, ignored: the mapping permits reads, attached or not.
        const MAY_READ = 1 << 54;
        /// MW, ignored: the mapping permits writes, attached or not.
        const MAY_WRITE = 1 << 55;
        /// HV, ignored: a harvest took the evidence out of A or D.
        const HARVESTED = 1 << 56;
    }
}

/// Bits 51:12, address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the number of entries in use begins.
const LIVE_SHIFT: u32 = 52;
/// Bits 61:52.
const LIVE: u64 = 0x3ff << LIVE_SHIFT;

/// The first-stage format.
///
/// Entries that point to tables have A set from the start, so that hardware has
/// nothing to change in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VtdFirstStage;

impl EntryFormat for VtdFirstStage {
    #[inline]
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        let mut bits = Bits::PRESENT | Bits::USER;
        bits.set(Bits::WRITE | Bits::MAY_WRITE, leaf.access.writes());
        bits.set(Bits::MAY_READ, leaf.access.reads());
        bits.set(Bits::FIRST, leaf.first);
        bits.set(Bits::LAST, leaf.last);
        bits.set(Bits::PAGE_SIZE, level > 1);
        bits.bits() | leaf.hpa.raw() & ADDRESS
    }

    fn table(self, _level: u8, table: Hpa, live: u64) -> u64 {
        let bits = Bits::PRESENT | Bits::WRITE | Bits::USER | Bits::ACCESSED;
        self.with_live(bits.bits() | table.raw() & ADDRESS, live)
    }

    #[inline]
    fn decode(self, level: u8, entry: u64) -> Entry {
        let bits = Bits::from_bits_truncate(entry);
        let address = Hpa::new(entry & ADDRESS);
        if level > 1 && !bits.contains(Bits::PAGE_SIZE) {
            if address.raw() == 0 {
                return Entry::Empty;
            }
            return Entry::Table {
                table: address,
                live: (entry & LIVE) >> LIVE_SHIFT,
            };
        }
        let access = Access::new(
            bits.contains(Bits::MAY_READ),
            bits.contains(Bits::MAY_WRITE),
        );
        access.map_or(Entry::Empty, |access| {
            Entry::Leaf(Leaf {
                hpa: address,
                access,
                first: bits.contains(Bits::FIRST),
                last: bits.contains(Bits::LAST),
            })
        })
    }

    fn with_live(self, entry: u64, live: u64) -> u64 {
        entry & !LIVE | (live << LIVE_SHIFT) & LIVE
    }

    fn is_attached(self, entry: u64) -> bool {
        Bits::from_bits_truncate(entry).contains(Bits::PRESENT)
    }

    fn revoked(self) -> u64 {
        !(Bits::PRESENT | Bits::WRITE).bits()
    }

    fn accessed(self) -> u64 {
        Bits::ACCESSED.bits()
    }

    fn dirty(self) -> u64 {
        Bits::DIRTY.bits()
    }

    fn harvested(self) -> u64 {
        Bits::HARVESTED.bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
