//! The scalable-mode PASID table entry: how one function's requests under one PASID
//! are translated (VT-d 4.1, 9.6 "Scalable-Mode PASID Table Entry").
//!
//! ```text
//! word 0  | 63:12 SSPTPTR | 9 SSADE | 8:6 PGTT | 5 SSEE | 4:2 AW | 1 FPD | 0 P |
//! word 1  | 63:32 PAT | 24 PGSNP | 23 PWSNP | ... | 15:0 DID |
//! word 2  | 63:12 FSPTPTR | 7 EAFE | 5 NXE | 4 WPE | 3:2 FSPM | 0 SRE |
//! words 3 to 7 are zero
//! ```
//!
//! Left clear are SRE (no request with supervisor privilege is let through), FSPM
//! (four levels), and PGSNP: a device that asks not to be snooped is not, as in
//! legacy mode without ECAP.SC.

use super::bits::{flag, get, put};
use super::context_entry::AddressWidth;

/// The tables that translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidTable {
    /// PGTT = 001: first-stage tables of four levels.
    FirstStage {
        /// FSPTPTR, word 2 bits 63:12: the root, page aligned.
        root: u64,
    },
    /// PGTT = 010: second-stage tables.
    SecondStage {
        /// SSPTPTR, word 0 bits 63:12: the root, page aligned.
        root: u64,
        /// AW, word 0 bits 4:2.
        width: AddressWidth,
        /// SSADE, word 0 bit 9: accessed and dirty bits are set (needs
        /// ECAP.SSADS).
        dirty: bool,
    },
}

/// A present entry, out of 64 in a PASID table of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidEntry {
    /// PGTT and what goes with it.
    pub table: PasidTable,
    /// DID, word 1 bits 15:0: the tag of cached translations.
    pub domain: u16,
    /// PWSNP, word 1 bit 23: table walks snoop the CPU's caches (needs
    /// ECAP.SMPWC).
    pub walk_snoops: bool,
}

impl PasidEntry {
    /// The entry's size in bytes; that of PASID `n` of its table lies at `n * SIZE`.
    pub const SIZE: usize = 64;
    /// The words that are ever set.
    pub const WORDS: usize = 3;

    const FIRST_STAGE: u64 = 1;
    const SECOND_STAGE: u64 = 2;

    /// The first three words. The low twelve bits of addresses are dropped.
    ///
    /// AW is of no meaning with first-stage tables by the specification; QEMU takes
    /// it for the width of the address in both cases, so it is always set.
    pub const fn encode(self) -> [u64; Self::WORDS] {
        let second = put(self.domain as u64, 0, 16) | put(self.walk_snoops as u64, 23, 1);
        match self.table {
            PasidTable::FirstStage { root } => {
                let width = AddressWidth::Bits48.field();
                let first = 1 | put(width, 2, 3) | put(Self::FIRST_STAGE, 6, 3);
                [first, second, root & !0xfff]
            }
            PasidTable::SecondStage { root, width, dirty } => {
                let first = 1
                    | put(width.field(), 2, 3)
                    | put(Self::SECOND_STAGE, 6, 3)
                    | put(dirty as u64, 9, 1)
                    | root & !0xfff;
                [first, second, 0]
            }
        }
    }

    /// Reads the first three words; `None` for an entry that is not present or that
    /// this project does not make.
    pub const fn decode(words: [u64; Self::WORDS]) -> Option<Self> {
        let [first, second, third] = words;
        if !flag(first, 0) {
            return None;
        }
        let table = match (get(first, 6, 3), get(first, 2, 3)) {
            (Self::FIRST_STAGE, _) => PasidTable::FirstStage {
                root: third & !0xfff,
            },
            (Self::SECOND_STAGE, width) => PasidTable::SecondStage {
                root: first & !0xfff,
                width: match AddressWidth::of_field(width) {
                    Some(width) => width,
                    None => return None,
                },
                dirty: flag(first, 9),
            },
            _ => return None,
        };
        Some(Self {
            table,
            domain: Self::domain_of(second),
            walk_snoops: flag(second, 23),
        })
    }

    /// DID in an entry's second word.
    pub const fn domain_of(second: u64) -> u16 {
        get(second, 0, 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_stage_entry_has_the_documented_bits() {
        let entry = PasidEntry {
            table: PasidTable::FirstStage { root: 0x7_6000 },
            domain: 0x99,
            walk_snoops: true,
        };
        assert_eq!(entry.encode(), [0x49, 0x80_0099, 0x7_6000]);
        assert_eq!(PasidEntry::decode(entry.encode()), Some(entry));
    }

    #[test]
    fn a_second_stage_entry_has_the_documented_bits() {
        let entry = PasidEntry {
            table: PasidTable::SecondStage {
                root: 0x7_6000,
                width: AddressWidth::Bits39,
                dirty: true,
            },
            domain: 3,
            walk_snoops: false,
        };
        assert_eq!(entry.encode(), [0x7_6285, 3, 0]);
        assert_eq!(PasidEntry::decode(entry.encode()), Some(entry));
    }

    #[test]
    fn absent_entries_and_those_of_other_kinds_are_none_of_ours() {
        assert_eq!(PasidEntry::decode([0x48, 3, 0x1000]), None, "P clear");
        assert_eq!(PasidEntry::decode([0x101, 3, 0]), None, "pass-through");
        assert_eq!(PasidEntry::decode([0x81, 3, 0]), None, "AW = 0");
    }
}
