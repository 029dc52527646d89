//! The interrupt remapping table entry while virtual APICs are off (AMD IOMMU 3.0,
//! 2.2.5.1 "Interrupt Remapping Tables, Guest Virtual APIC Not Enabled").
//!
//! ```text
//! 31     24 23    16 15         8 7  6    5    4     2    1       0
//! |  rsvd  | Vector | Destination|. | DM |RqEoi|IntType|SupIOPF|RemapEn|
//! ```
//!
//! Entries made here are for edge-triggered interrupts of one CPU: IntType = 000
//! (fixed), RqEoi = 0, DM = 0 (the destination is an APIC id). SupIOPF = 0: what is
//! refused is logged. An entry has no owner. It is its device's whose device table
//! entry leads to the table ([`DeviceInterrupts`](super::DeviceInterrupts)).

use super::bits::{get, put};

/// An entry with RemapEn set: what a request that names it becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptEntry {
    /// Destination, bits 15:8: the CPU's APIC id.
    pub destination: u8,
    /// Vector, bits 23:16.
    pub vector: u8,
}

impl InterruptEntry {
    /// The entry in memory.
    pub const fn encode(self) -> u32 {
        let fields = put(self.destination as u64, 8, 8) | put(self.vector as u64, 16, 8);
        fields as u32 | 1
    }

    /// Reads an entry; `None` for one that refuses requests (RemapEn clear), or that
    /// this project does not make.
    pub const fn decode(raw: u32) -> Option<Self> {
        let entry = Self {
            destination: get(raw as u64, 8, 8) as u8,
            vector: get(raw as u64, 16, 8) as u8,
        };
        if raw == entry.encode() {
            Some(entry)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_bits_of_the_specification_and_reads_back() {
        let entry = InterruptEntry {
            destination: 5,
            vector: 0x41,
        };
        assert_eq!(entry.encode(), 0x0041_0501);
        assert_eq!(InterruptEntry::decode(entry.encode()), Some(entry));
    }

    #[test]
    fn an_entry_that_refuses_or_does_anything_else_is_none_of_ours() {
        let raw = 0x0041_0501;
        assert_eq!(InterruptEntry::decode(0), None);
        for bit in (0..8).chain(24..32) {
            assert_eq!(InterruptEntry::decode(raw ^ 1 << bit), None, "bit {bit}");
        }
    }
}
