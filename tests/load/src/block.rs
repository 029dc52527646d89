//! What a block holds, so that a wrong one is known for what it is.

use crc::{CRC_32_ISCSI, Crc};

/// Bytes of a block.
pub(crate) const BYTES: usize = 4096;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A block, aligned as reads and writes past the page cache need it.
#[repr(align(4096))]
pub(crate) struct Block(pub(crate) [u8; BYTES]);

impl Block {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self([0; BYTES]))
    }

    /// Fills the block for generation `generation` of place `place`: both numbers,
    /// content that follows from them, and a checksum of all that.
    pub(crate) fn fill(&mut self, place: u64, generation: u64) {
        let mut seed = place << 32 ^ generation;
        for word in self.0.chunks_exact_mut(8) {
            // SplitMix64 (Steele, Lea, Flood 2014).
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
        }
        self.0[..8].copy_from_slice(&place.to_le_bytes());
        self.0[8..16].copy_from_slice(&generation.to_le_bytes());
        let sum = CRC.checksum(&self.0[..BYTES - 4]);
        self.0[BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    }

    /// What is wrong with the block, if anything is.
    pub(crate) fn fault(&self, place: u64, generation: u64) -> Option<String> {
        let word = |at: usize| {
            self.0[at..at + 8]
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let found = (word(0), word(8));
        if found != (place, generation) {
            return Some(format!(
                "block {place} generation {generation} reads as block {} generation {}",
                found.0, found.1
            ));
        }
        let sum = CRC.checksum(&self.0[..BYTES - 4]).to_le_bytes();
        (self.0[BYTES - 4..] != sum)
            .then(|| format!("block {place} generation {generation} has a wrong checksum"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_knows_its_place_and_generation_and_every_bit_counts() {
        let mut block = Block::new();
        block.fill(7, 3);
        assert_eq!(block.fault(7, 3), None);
        assert!(block.fault(8, 3).is_some());
        assert!(block.fault(7, 2).is_some());
        for at in [0, 9, 100, BYTES - 1] {
            block.0[at] ^= 1;
            assert!(block.fault(7, 3).is_some(), "byte {at}");
            block.0[at] ^= 1;
        }
    }
}
