//! Second-stage paging entries of VT-d.
//!
//! Intel Virtualization Technology for Directed I/O, section "Second-Stage Paging
//! Entries" (chapter 9, Translation Structure Formats), tables for SS-PML4E,
//! SS-PDPE, SS-PDE and SS-PTE; in legacy mode they are called second-level.
//!
//! ```text
//!  63  62  61        56 55 54 53 52 51         12 11  10  7  6..2  1   0
//! [ . | 0 | .          |MW|MR|LA|FI|   address   | 0 | . |PS| 0  | W | R ]  leaf
//! [ . | 0 |  entries in use (10)   |   address   | 0 | . | 0| 0  | W | R ]  table
//! ```
//!
//! Bits 52 to 61 and 63 are ignored by hardware; 62 is TM (a hint to device TLBs)
//! or reserved, and stays 0. An entry with R = W = 0 is not present, and all its
//! other bits are ignored: that is what a detached entry is.

use super::format::{Entry, EntryFormat, Leaf};
use crate::space::Access;
use bitflags::bitflags;
use hv_core::Hpa;

bitflags! {
    /// The single bits of an entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Bits: u64 {
        /// R: reads are permitted.
        const READ = 1 << 0;
        /// W: writes are permitted.
        const WRITE = 1 << 1;
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
    }
}

/// Bits 51:12, address. Those above the host's address width are reserved, and 0
/// in any address that exists.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the number of entries in use begins.
const LIVE_SHIFT: u32 = 52;
/// Bits 61:52.
const LIVE: u64 = 0x3ff << LIVE_SHIFT;
/// More than there are entries: the number is exact.
const LIVE_WRAPS: u64 = 0x400;

/// The second-stage format, without accessed and dirty bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VtdSecondStage;

impl EntryFormat for VtdSecondStage {
    #[inline]
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        let mut bits = Bits::empty();
        bits.set(Bits::READ | Bits::MAY_READ, leaf.access.reads());
        bits.set(Bits::WRITE | Bits::MAY_WRITE, leaf.access.writes());
        bits.set(Bits::FIRST, leaf.first);
        bits.set(Bits::LAST, leaf.last);
        bits.set(Bits::PAGE_SIZE, level > 1);
        bits.bits() | leaf.hpa.raw() & ADDRESS
    }

    fn table(self, _level: u8, table: Hpa, live: u64) -> u64 {
        // The rights of a page are those that every level permits: the upper
        // levels permit all, the leaf decides.
        (Bits::READ | Bits::WRITE).bits() | table.raw() & ADDRESS | self.live_bits(live)
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

    fn boundaries(self) -> [u64; 2] {
        [Bits::FIRST, Bits::LAST].map(|bit| bit.bits())
    }

    #[inline]
    fn live_bits(self, live: u64) -> u64 {
        (live << LIVE_SHIFT) & LIVE
    }

    fn live_wraps(self) -> u64 {
        LIVE_WRAPS
    }

    fn hardware_writes(self) -> bool {
        false
    }

    fn is_attached(self, entry: u64) -> bool {
        Bits::from_bits_truncate(entry).intersects(Bits::READ | Bits::WRITE)
    }

    fn revoked(self) -> u64 {
        !(Bits::READ | Bits::WRITE).bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: VtdSecondStage = VtdSecondStage;

    fn leaf(access: Access) -> Leaf {
        Leaf {
            hpa: Hpa::new(0x1234_5000),
            access,
            first: true,
            last: false,
        }
    }

    #[test]
    fn entries_have_the_bits_of_the_specification() {
        let entry = FORMAT.leaf(1, leaf(Access::Read));
        assert_eq!(entry & 0x000f_ffff_ffff_ffff, 0x1234_5001);
        let entry = FORMAT.leaf(2, leaf(Access::ReadWrite));
        assert_eq!(entry & 0x000f_ffff_ffff_ffff, 0x1234_5083);
        let entry = FORMAT.table(2, Hpa::new(0x9000), 512);
        assert_eq!(entry & 0x000f_ffff_ffff_ffff, 0x9003);
        // Bit 62 (TM) and the bits that are reserved for leaves stay clear.
        assert_eq!(entry & (1 << 62), 0);
    }

    #[test]
    fn a_detached_entry_keeps_all_but_the_hardwares_view() {
        for (level, access) in [
            (1, Access::Read),
            (1, Access::Write),
            (2, Access::ReadWrite),
        ] {
            let entry = FORMAT.leaf(level, leaf(access));
            assert!(FORMAT.is_attached(entry));
            assert!(!FORMAT.is_attached(entry & FORMAT.revoked()));
            for entry in [entry, entry & FORMAT.revoked()] {
                assert_eq!(FORMAT.decode(level, entry), Entry::Leaf(leaf(access)));
            }
        }
        let entry = FORMAT.table(3, Hpa::new(0x9000), 512) & FORMAT.revoked();
        let table = Hpa::new(0x9000);
        assert_eq!(FORMAT.decode(3, entry), Entry::Table { table, live: 512 });
    }

    #[test]
    fn stray_accessed_and_dirty_bits_make_no_entry() {
        for level in 1..=4 {
            assert_eq!(FORMAT.decode(level, 0x300), Entry::Empty);
        }
    }
}
