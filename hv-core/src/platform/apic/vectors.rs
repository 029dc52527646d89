//! A set of interrupt vectors, as in the APIC's request and in-service registers
//! (AMD64 Architecture Programmer's Manual volume 2, section 16.6).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One bit a vector.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    /// The highest vector, which has the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let index = self.0.iter().rposition(|word| *word != 0)?;
        let bit = 63 - self.0[index].leading_zeros();
        Some((index as u32 * 64 + bit) as u8)
    }

    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] |= 1 << (vector % 64);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] &= !(1 << (vector % 64));
    }

    /// The register of 32 vectors with this number, 0 to 7.
    pub(super) fn register(&self, number: u32) -> u32 {
        let word = self.0.get(number as usize / 2).copied().unwrap_or(0);
        (word >> (32 * (number % 2))) as u32
    }

    /// Whether a vector below 16 is in the set: those are exceptions.
    pub(super) fn has_exceptions(&self) -> bool {
        self.0[0] & 0xffff != 0
    }
}
