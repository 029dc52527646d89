//! Device registers, as drivers see them.

/// A window of memory-mapped device registers. Offsets are in bytes from its
/// start and naturally aligned.
///
/// Methods take `&self`: registers are shared with the device in any case, and
/// drivers keep their own exclusive state. An implementation on real hardware
/// makes each call exactly one bus access of that width, ordered after all
/// earlier stores of this CPU (on x86 an uncached access is).
pub trait Mmio {
    /// Reads the 32-bit register at `offset`.
    fn read32(&self, offset: usize) -> u32;
    /// Writes the 32-bit register at `offset`.
    fn write32(&self, offset: usize, value: u32);
    /// Reads the 64-bit register at `offset`.
    fn read64(&self, offset: usize) -> u64;
    /// Writes the 64-bit register at `offset`.
    fn write64(&self, offset: usize, value: u64);
}

impl<T: Mmio + ?Sized> Mmio for &T {
    fn read32(&self, offset: usize) -> u32 {
        (**self).read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        (**self).write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        (**self).read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        (**self).write64(offset, value);
    }
}
