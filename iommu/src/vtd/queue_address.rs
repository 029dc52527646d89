//! The invalidation queue's place (VT-d 4.1, 11.4.9.3 "Invalidation Queue Address
//! Register").

use super::bits::{get, put};
use super::descriptor::Descriptor;

/// IQA of a queue of 128-bit descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueAddress {
    /// IQA, bits 63:12: the queue's first page.
    pub base: u64,
    /// QS, bits 2:0: the queue has 2^QS pages.
    pub order: u8,
}

impl QueueAddress {
    /// DW, bit 11: descriptors have 256 bits.
    pub const WIDE: u64 = 1 << 11;

    /// Reads the register's value; `None` if DW (bit 11) asks for 256-bit
    /// descriptors, which only scalable mode has.
    pub const fn decode(raw: u64) -> Option<Self> {
        if raw & Self::WIDE != 0 {
            return None;
        }
        Some(Self {
            base: raw & !0xfff,
            order: get(raw, 0, 3) as u8,
        })
    }

    /// The register's value.
    pub const fn encode(self) -> u64 {
        self.base & !0xfff | put(self.order as u64, 0, 3)
    }

    /// The queue's size in bytes: head and tail are below it, and wrap there.
    pub const fn bytes(self) -> u64 {
        4096 << (self.order & 7)
    }

    /// The offset of the slot after the one at `offset`.
    pub const fn next(self, offset: u64) -> u64 {
        (offset + Descriptor::SIZE as u64) % self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_wrap_at_the_end_of_the_queue() {
        let queue = QueueAddress::decode(0x5_0001).unwrap();
        assert_eq!(queue.bytes(), 8192);
        assert_eq!(queue.next(0x1ff0), 0);
        assert_eq!(queue.next(0xff0), 0x1000);
        assert_eq!(queue.encode(), 0x5_0001);
        assert_eq!(QueueAddress::decode(0x5_0801), None);
    }
}
