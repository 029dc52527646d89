//! The scalable-mode root entry: one PCI bus (VT-d 4.1, 9.2 "Scalable-Mode Root
//! Entry").
//!
//! ```text
//! 127                     76 75     65  64 63                 12 11      1   0
//! | upper context-table ptr | reserved | UP | lower context ptr | reserved | LP |
//! ```
//!
//! The lower table has the functions of devices 0 to 15, the upper one those of
//! devices 16 to 31: entries of 32 bytes fill a page by halves of a bus.

use super::bits::{flag, halves, join};
use crate::unit::SourceId;

/// A root entry, out of 256 in a root table of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScalableRootEntry {
    /// LP and LCTP, bits 0 and 63:12: the lower context table, page aligned.
    pub lower: Option<u64>,
    /// UP and UCTP, bits 64 and 127:76: the upper context table, page aligned.
    pub upper: Option<u64>,
}

impl ScalableRootEntry {
    /// The entry's size in bytes; entry `bus` lies at `bus * SIZE`.
    pub const SIZE: usize = 16;

    /// Reads an entry of one's own making: reserved bits are not looked at.
    pub const fn decode(raw: u128) -> Self {
        let (low, high) = halves(raw);
        Self {
            lower: Self::decode_half(low),
            upper: Self::decode_half(high),
        }
    }

    /// The table that one half of an entry points to.
    pub const fn decode_half(half: u64) -> Option<u64> {
        if flag(half, 0) {
            Some(half & !0xfff)
        } else {
            None
        }
    }

    /// The half of an entry that points to `table`. Its low twelve bits are dropped.
    pub const fn encode_half(table: u64) -> u64 {
        table & !0xfff | 1
    }

    /// The entry in memory.
    pub const fn encode(self) -> u128 {
        const fn half(table: Option<u64>) -> u64 {
            match table {
                Some(table) => ScalableRootEntry::encode_half(table),
                None => 0,
            }
        }
        join(half(self.lower), half(self.upper))
    }

    /// Which 64-bit word of a root table leads to `device`'s context table.
    pub const fn word_of(device: SourceId) -> usize {
        device.bus() as usize * (Self::SIZE / 8) + (device.devfn() >> 7) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_and_an_empty_one_leads_nowhere() {
        let entry = ScalableRootEntry {
            lower: Some(0x12_3456_7000),
            upper: Some(0x8000),
        };
        assert_eq!(entry.encode(), 0x8001 << 64 | 0x12_3456_7001);
        assert_eq!(ScalableRootEntry::decode(entry.encode()), entry);
        assert_eq!(ScalableRootEntry::decode(0), ScalableRootEntry::default());
    }

    #[test]
    fn devices_from_16_on_are_in_the_upper_table() {
        assert_eq!(ScalableRootEntry::word_of(SourceId::new(0x0000)), 0);
        assert_eq!(ScalableRootEntry::word_of(SourceId::new(0x027f)), 4);
        assert_eq!(ScalableRootEntry::word_of(SourceId::new(0x0280)), 5);
    }
}
