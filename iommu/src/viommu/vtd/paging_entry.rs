//! The second-stage paging entry, as a unit without large leaves, snoop control
//! and device TLBs reads it.
//!
//! Intel VT-d specification, section "Second-Stage Paging Entries":
//!
//! ```text
//!  63  62 61     52 51          12 11 10  8  7   6  3 2 1 0
//! | - | r | ignored | address     | r | - | PS | -   |X|W|R|
//! ```
//!
//! All four levels share the form; PS (bit 7) is reserved above the leaves, where
//! it would make a large leaf, and ignored in them. Bit 62 is reserved in leaves
//! only.

use super::capability::HOST_ADDRESS_WIDTH;
use crate::vtd::FaultReason;

/// What an entry allows and where it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PagingEntry {
    /// R, bit 0.
    pub(super) reads: bool,
    /// W, bit 1.
    pub(super) writes: bool,
    /// Bits 51:12: the next table, or in a leaf the page.
    pub(super) address: u64,
}

impl PagingEntry {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const LARGE: u64 = 1 << 7;
    const SNOOP: u64 = 1 << 11;
    const TRANSIENT: u64 = 1 << 62;

    /// Reads the entry of a table of that `level` (1 = leaves). An entry that
    /// allows nothing is absent: `None`, whatever its other bits say.
    pub(super) const fn decode(raw: u64, level: u8) -> Result<Option<Self>, FaultReason> {
        let entry = Self {
            reads: raw & 1 != 0,
            writes: raw & 2 != 0,
            address: raw & Self::ADDRESS,
        };
        if !entry.reads && !entry.writes {
            return Ok(None);
        }
        let by_level = if level == 1 {
            Self::TRANSIENT
        } else {
            Self::LARGE
        };
        let reserved = by_level | Self::SNOOP | Self::ADDRESS & (u64::MAX << HOST_ADDRESS_WIDTH);
        if raw & reserved != 0 {
            return Err(FaultReason::PagingReserved);
        }
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_rights_is_absent_whatever_else_it_holds() {
        assert_eq!(PagingEntry::decode(!3, 1), Ok(None));
        assert_eq!(PagingEntry::decode(!3, 3), Ok(None));
    }

    #[test]
    fn large_leaves_and_reserved_bits_are_refused() {
        for bit in [7, 11, 48, 49, 50, 51] {
            let decoded = PagingEntry::decode(1 << bit | 3, 2);
            assert_eq!(decoded, Err(FaultReason::PagingReserved), "bit {bit}");
        }
        assert!(PagingEntry::decode(1 << 62 | 3, 1).is_err());
    }

    #[test]
    fn ignored_bits_are_ignored() {
        let ignored = 1 << 63 | 0x3ff << 52 | 0x77c;
        let plain = PagingEntry {
            reads: true,
            writes: false,
            address: 0x5000,
        };
        assert_eq!(
            PagingEntry::decode(0x5001 | ignored & !0x80, 2),
            Ok(Some(plain))
        );
        assert_eq!(PagingEntry::decode(0x5081 | ignored, 1), Ok(Some(plain)));
        assert_eq!(PagingEntry::decode(0x5001 | 1 << 62, 2), Ok(Some(plain)));
    }
}
