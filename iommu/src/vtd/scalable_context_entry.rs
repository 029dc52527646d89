//! The scalable-mode context entry: one PCI function (VT-d 4.1, 9.4
//! "Scalable-Mode Context Entry").
//!
//! ```text
//! word 0  | 63:12 PASID directory ptr | 11:9 PDTS | rsvd | 4 PRE | 3 PASIDE | 2 DTE | 1 FPD | 0 P |
//! word 1  | reserved | 20 RID_PRIV | 19:0 RID_PASID |
//! words 2 and 3 reserved
//! ```
//!
//! Requests without a PASID are handled as if they had RID_PASID. It stays 0, since
//! that is what units without ECAP.RPS take it for. A function may use no PASID of
//! its own (PASIDE clear), and a directory of the smallest size (PDTS = 0, 128
//! entries) is more than the one entry that PASID 0 needs.

use super::bits::{flag, put};
use crate::unit::SourceId;

/// A context entry, out of 128 in a context table of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScalableContextEntry {
    /// P, bit 0.
    pub present: bool,
    /// DTE, bit 2: the function may have a TLB of its own (needs ECAP.DT).
    pub device_tlb: bool,
    /// PASIDDIRPTR, bits 63:12: the PASID directory, page aligned. Not looked at by
    /// hardware without `present`.
    pub pasid_directory: u64,
}

impl ScalableContextEntry {
    /// The entry's size in bytes.
    pub const SIZE: usize = 32;
    /// P, in the first word.
    pub const PRESENT: u64 = 1 << 0;
    /// DTE, in the first word.
    pub const DEVICE_TLB: u64 = 1 << 2;

    /// Reads the first word; the others are zero.
    pub const fn decode(first: u64) -> Self {
        Self {
            present: flag(first, 0),
            device_tlb: flag(first, 2),
            pasid_directory: first & !0xfff,
        }
    }

    /// The first word. The low twelve bits of the address are dropped.
    pub const fn encode(self) -> u64 {
        put(self.present as u64, 0, 1)
            | put(self.device_tlb as u64, 2, 1)
            | self.pasid_directory & !0xfff
    }

    /// Which 64-bit word of its context table `device`'s entry begins with.
    pub const fn word_of(device: SourceId) -> usize {
        (device.devfn() & 0x7f) as usize * (Self::SIZE / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_documented_bits_and_reads_back() {
        let entry = ScalableContextEntry {
            present: true,
            device_tlb: true,
            pasid_directory: 0x12_3456_7000,
        };
        assert_eq!(entry.encode(), 0x12_3456_7005);
        assert_eq!(ScalableContextEntry::decode(entry.encode()), entry);
        assert!(!ScalableContextEntry::decode(0x7000).present);
    }

    #[test]
    fn an_entry_takes_four_words_of_its_half_of_the_bus() {
        for (id, word) in [(0x0001, 4), (0x0080, 0), (0x0181, 4), (0x007f, 508)] {
            assert_eq!(ScalableContextEntry::word_of(SourceId::new(id)), word);
        }
    }
}
