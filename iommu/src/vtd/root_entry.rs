//! The root entry: one PCI bus (VT-d 4.1, 9.1 "Root Entry").
//!
//! ```text
//! 127                              64 63                12 11     1   0
//! |            reserved              | context-table ptr  | resvd  | P |
//! ```

use super::bits::{beyond_width, flag, halves, join};
use super::fault::FaultReason;

/// A present root entry, out of 256 in a root table of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootEntry {
    /// CTP, bits 63:12: the bus's context table, page aligned.
    pub context_table: u64,
}

impl RootEntry {
    /// The entry's size in bytes; entry `bus` lies at `bus * SIZE`.
    pub const SIZE: usize = 16;

    /// Reads the entry as a unit with `host_width` address bits does. The error
    /// is the reason under which it refuses the DMA.
    pub const fn decode(raw: u128, host_width: u8) -> Result<Self, FaultReason> {
        let (low, high) = halves(raw);
        if !flag(low, 0) {
            return Err(FaultReason::RootNotPresent);
        }
        let reserved = 0xffe | beyond_width(host_width);
        if low & reserved != 0 || high != 0 {
            return Err(FaultReason::RootReserved);
        }
        Ok(Self {
            context_table: low & !0xfff,
        })
    }

    /// The entry in memory. The low twelve bits of the address are dropped.
    pub const fn encode(self) -> u128 {
        join(self.context_table & !0xfff | 1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_and_an_empty_one_is_absent() {
        let entry = RootEntry {
            context_table: 0x12_3456_7000,
        };
        assert_eq!(entry.encode(), 0x12_3456_7001);
        assert_eq!(RootEntry::decode(entry.encode(), 39), Ok(entry));
        assert_eq!(RootEntry::decode(0, 39), Err(FaultReason::RootNotPresent));
    }

    #[test]
    fn any_reserved_bit_of_a_present_entry_is_refused() {
        let reserved = (1..12).chain(39..128);
        for bit in reserved {
            assert_eq!(
                RootEntry::decode(1 | 1 << bit, 39),
                Err(FaultReason::RootReserved),
                "bit {bit}"
            );
        }
    }
}
