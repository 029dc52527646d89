//! The scalable-mode PASID directory entry: 64 PASIDs (VT-d 4.1, 9.5
//! "Scalable-Mode PASID Directory Entry").
//!
//! ```text
//! 63                    12 11       2   1   0
//! | PASID table pointer   | reserved | FPD | P |
//! ```

use super::bits::flag;

/// A present directory entry. Bits 19:6 of a PASID are its index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidDirectoryEntry {
    /// SMPTBLPTR, bits 63:12: the PASID table, page aligned.
    pub table: u64,
}

impl PasidDirectoryEntry {
    /// The entry's size in bytes.
    pub const SIZE: usize = 8;

    /// Reads an entry of one's own making; `None` if it has P = 0.
    pub const fn decode(raw: u64) -> Option<Self> {
        if flag(raw, 0) {
            Some(Self {
                table: raw & !0xfff,
            })
        } else {
            None
        }
    }

    /// The entry in memory. The low twelve bits of the address are dropped.
    pub const fn encode(self) -> u64 {
        self.table & !0xfff | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_and_an_empty_one_is_absent() {
        let entry = PasidDirectoryEntry { table: 0x5_6000 };
        assert_eq!(entry.encode(), 0x5_6001);
        assert_eq!(PasidDirectoryEntry::decode(0x5_6001), Some(entry));
        assert_eq!(PasidDirectoryEntry::decode(0x5_6000), None);
    }
}
