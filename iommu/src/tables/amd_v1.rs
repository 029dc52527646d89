//! Version 1 paging entries of AMD-Vi.
//!
//! AMD I/O Virtualization Technology (IOMMU) Specification 3.0, section 2.2.3
//! "I/O Page Tables for Host Translations", the formats of I/O PDE and I/O PTE.
//!
//! ```text
//!  63  62 61 60 59  58 52  51       12 11   9  8  7   6   5   4  3  2  1   0
//! [ . |IW|IR|FC| 0 |  0  |  address   |  0   | .|HV | D | A |MW|MR|LA|FI| PR]  leaf
//! [ n |IW|IR| 0   0|  0  |  address   |next  |in use (8:6) | A |in use (4:1)| PR]  table
//! ```
//!
//! Bits 1 to 4, 7, 8 and 63 are ignored by hardware; so is 6 in an entry that leads
//! to a table, since D is a leaf's. Bits 5 and 6 are ignored altogether with HAD = 00
//! in the device table entry.
//!
//! The bits ignored in an entry that leads to a table are eight: one too few for the
//! number of entries in use, which is kept modulo 256 therefore. Next Level = 7, by
//! which one translation is written in several entries alike, is not used: there are
//! no replicas whose dirty bits would have to be put together.
//!
//! # Detached entries
//! They lose PR, IR and IW in one step: R and W alone would keep them *present
//! without rights*, which hardware may cache, and a mapping made over them later
//! would then not be seen before an invalidation. An entry that is not present is
//! cached only by a unit with NpCache, for which the layer invalidates in any
//! case. What would speak for keeping PR are dirty bits, since hardware that finds PR
//! gone may skip setting D for a write under way; but it may do that for IW gone as
//! well, so [`crate::dirty_mode`] does not count on D in a leaf that was detached.

use super::format::{Entry, EntryFormat, Leaf};
use crate::bits::{get, put};
use crate::space::Access;
use bitflags::bitflags;
use hv_core::Hpa;

bitflags! {
    /// The single bits of an entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Bits: u64 {
        /// PR: the entry is present.
        const PRESENT = 1 << 0;
        /// FI, ignored, of a leaf: the mapping starts here.
        const FIRST = 1 << 1;
        /// LA, ignored, of a leaf: the mapping ends here.
        const LAST = 1 << 2;
        /// MR, ignored, of a leaf: the mapping permits reads, attached or not.
        const MAY_READ = 1 << 3;
        /// MW, ignored, of a leaf: the mapping permits writes, attached or not.
        const MAY_WRITE = 1 << 4;
        /// FC, of a leaf: every access snoops the CPU's caches, whatever the
        /// device asks for. A write that did not could be missed by who reads the
        /// page because of its dirty mark.
        const FORCE_COHERENT = 1 << 60;
        /// IR: reads are permitted.
        const READ = 1 << 61;
        /// IW: writes are permitted.
        const WRITE = 1 << 62;
    }
}

/// Bits 51:12, address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Next Level, bits 11:9: the level of the table pointed to, 0 for a leaf of the
/// size that is usual at its level.
const NEXT_LEVEL: u32 = 9;
/// A: the unit used the entry.
const ACCESSED: u64 = 1 << 5;
/// D: the unit let a write through; in leaves only.
const DIRTY: u64 = 1 << 6;
/// HV, ignored: a harvest took the evidence out of A or D.
const HARVESTED: u64 = 1 << 7;
/// Where the number of entries in use is: its lowest bits, those behind A, and the
/// top one. First bit, and width.
const LIVE: [(u32, u32); 3] = [(1, 4), (6, 3), (63, 1)];
/// The number is kept modulo this.
const LIVE_WRAPS: u64 = 256;

/// The version 1 format, with accessed and dirty bits, which a unit sets only if the
/// device table entry says so.
///
/// Entries that point to tables have A set from the start, so that hardware has
/// nothing to change in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AmdV1;

impl EntryFormat for AmdV1 {
    #[inline]
    fn leaf(self, _level: u8, leaf: Leaf) -> u64 {
        let mut bits = Bits::PRESENT | Bits::FORCE_COHERENT;
        bits.set(Bits::READ | Bits::MAY_READ, leaf.access.reads());
        bits.set(Bits::WRITE | Bits::MAY_WRITE, leaf.access.writes());
        bits.set(Bits::FIRST, leaf.first);
        bits.set(Bits::LAST, leaf.last);
        bits.bits() | leaf.hpa.raw() & ADDRESS
    }

    fn table(self, level: u8, table: Hpa, live: u64) -> u64 {
        // The rights of a page are those that every level permits: the upper
        // levels permit all, the leaf decides.
        let bits = Bits::PRESENT | Bits::READ | Bits::WRITE;
        let next = put(u64::from(level) - 1, NEXT_LEVEL, 3);
        let entry = bits.bits() | ACCESSED | next | table.raw() & ADDRESS;
        entry | self.live_bits(live)
    }

    #[inline]
    fn decode(self, level: u8, entry: u64) -> Entry {
        let bits = Bits::from_bits_truncate(entry);
        let address = Hpa::new(entry & ADDRESS);
        if level > 1 && get(entry, NEXT_LEVEL, 3) != 0 {
            let (mut live, mut width) = (0, 0);
            for (low, bits) in LIVE {
                live |= get(entry, low, bits) << width;
                width += bits;
            }
            return Entry::Table {
                table: address,
                live,
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

    fn live_bits(self, live: u64) -> u64 {
        let (mut field, mut rest) = (0, live);
        for (low, bits) in LIVE {
            field |= put(rest, low, bits);
            rest >>= bits;
        }
        field
    }

    fn live_wraps(self) -> u64 {
        LIVE_WRAPS
    }

    fn is_attached(self, entry: u64) -> bool {
        Bits::from_bits_truncate(entry).intersects(Bits::READ | Bits::WRITE)
    }

    fn revoked(self) -> u64 {
        !(Bits::PRESENT | Bits::READ | Bits::WRITE).bits()
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

    const FORMAT: AmdV1 = AmdV1;
    /// Bits that the specification reserves in a present entry.
    const RESERVED: u64 = 0x7f << 52 | 1 << 59;

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
        let ours = 0x1e; // FI, LA, MR, MW
        let entry = FORMAT.leaf(1, leaf(Access::Read));
        assert_eq!(entry & !ours, 0x3000_0000_1234_5001);
        let entry = FORMAT.leaf(2, leaf(Access::ReadWrite));
        assert_eq!(entry & !ours, 0x7000_0000_1234_5001);
        let entry = FORMAT.table(3, Hpa::new(0x9000), 255);
        assert_eq!(entry, 0xe000_0000_0000_9000 | 2 << 9 | 0x1ff);
        let entry = FORMAT.table(2, Hpa::new(0x9000), 1);
        assert_eq!(entry, 0x6000_0000_0000_9000 | 1 << 9 | 0x23);
        assert_eq!(FORMAT.table(3, Hpa::new(0x9000), 512) & RESERVED, 0);
        assert_eq!(FORMAT.leaf(2, leaf(Access::Write)) & RESERVED, 0);
    }

    #[test]
    fn a_detached_entry_keeps_all_but_the_hardwares_view() {
        for (level, access) in [
            (1, Access::Read),
            (1, Access::Write),
            (2, Access::ReadWrite),
        ] {
            let entry = FORMAT.leaf(level, leaf(access));
            let detached = entry & FORMAT.revoked();
            assert!(FORMAT.is_attached(entry) && !FORMAT.is_attached(detached));
            assert_eq!(detached & 1, 0, "not present to hardware");
            for entry in [entry, detached] {
                assert_eq!(FORMAT.decode(level, entry), Entry::Leaf(leaf(access)));
            }
        }
    }

    #[test]
    fn every_number_of_entries_in_use_reads_back_and_disturbs_nothing() {
        let table = Hpa::new(0x000f_ffff_ffff_f000);
        for number in 1..=512 {
            for level in 2..=4 {
                let entry = FORMAT.table(level, table, number);
                let other = FORMAT.table(level, table, 513 - number);
                let change = FORMAT.live_bits(number) ^ FORMAT.live_bits(513 - number);
                assert_eq!(entry ^ change, other);
                let live = number % 256;
                for entry in [entry, entry & FORMAT.revoked()] {
                    assert_eq!(FORMAT.decode(level, entry), Entry::Table { table, live });
                }
            }
        }
    }

    /// A unit that sets A in an entry for a table changes no number, and no leaf has
    /// its bits of evidence anywhere else.
    #[test]
    fn no_bit_of_ours_is_one_that_hardware_sets() {
        let ours = FORMAT.live_bits(255);
        assert_eq!(ours.count_ones(), 8);
        assert_eq!(ours & ACCESSED, 0);
        for access in [Access::Read, Access::ReadWrite] {
            let entry = FORMAT.leaf(1, leaf(access));
            let evidence = ACCESSED | DIRTY | HARVESTED;
            assert_eq!(entry & evidence, 0);
            let decoded = FORMAT.decode(1, entry | evidence);
            assert_eq!(decoded, Entry::Leaf(leaf(access)));
            assert_eq!(
                FORMAT.revoked() & evidence,
                evidence,
                "detaching keeps them"
            );
        }
    }

    #[test]
    fn stray_accessed_and_dirty_bits_make_no_entry() {
        for level in 1..=4 {
            assert_eq!(FORMAT.decode(level, 0x60), Entry::Empty);
        }
    }
}
