//! The place of the command buffer and of the event log (AMD IOMMU 3.0, 3.4.2
//! "Command Buffer Base Address Register", "Event Log Base Address Register").
//!
//! ```text
//! 63   60 59    56 55      52 51                12 11        0
//! | rsvd | length |  reserved | base address      | reserved |
//! ```

use super::bits::{get, put};

/// A ring of 16-byte entries in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// ComBase or EventBase, bits 51:12: the first page.
    pub base: u64,
    /// ComLen or EventLen, bits 59:56: the ring has 2^length entries. 8 to 15;
    /// 8 is one page.
    pub length: u8,
}

impl Buffer {
    /// The size of a command and of an event, in bytes.
    pub const ENTRY: u64 = 16;
    /// The length of a ring of one page.
    pub const ONE_PAGE: u8 = 8;
    /// The bits of the head and tail registers that hold the byte offset.
    pub const OFFSET: u64 = 0x7_fff0;

    /// The register's value. The low twelve bits of the address are dropped.
    pub const fn encode(self) -> u64 {
        self.base & 0x000f_ffff_ffff_f000 | put(self.length as u64, 56, 4)
    }

    /// Reads the register's value.
    pub const fn decode(raw: u64) -> Self {
        Self {
            base: raw & 0x000f_ffff_ffff_f000,
            length: get(raw, 56, 4) as u8,
        }
    }

    /// The ring's size in bytes.
    pub const fn bytes(self) -> u64 {
        Self::ENTRY << (self.length & 0xf)
    }

    /// The offset of the slot after the one at `offset`.
    pub const fn next(self, offset: u64) -> u64 {
        (offset + Self::ENTRY) % self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_one_page_has_256_entries_and_wraps() {
        let ring = Buffer {
            base: 0x12_3000,
            length: Buffer::ONE_PAGE,
        };
        assert_eq!(ring.encode(), 0x0800_0000_0012_3000);
        assert_eq!(Buffer::decode(ring.encode()), ring);
        assert_eq!(ring.bytes(), 4096);
        assert_eq!(ring.next(0), 16);
        assert_eq!(ring.next(4080), 0);
    }
}
