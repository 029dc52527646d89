//! Physical memory through the identity map.
//!
//! Four kinds: memory the program owns ([`IdentityMemory`]), memory that firmware
//! or a boot loader left something in to be read once ([`FirmwareMemory`]), device
//! registers ([`MmioWindow`]), and memory shared with another machine
//! ([`shared_words`]).
#![allow(unsafe_code)]

use crate::paging::MAPPED_BYTES;
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use heapless::Vec;
use hv_core::memory::{Frame, PhysMemory};
use hv_core::mmio::Mmio;
use hv_core::{Hpa, PAGE_SIZE};

/// A run of physical memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PhysRange {
    /// The first byte.
    pub start: u64,
    /// The number of bytes; `start + bytes` is at most 2^64 - 1.
    pub bytes: u64,
}

impl PhysRange {
    /// The range, or `None` if it is not below 2^64.
    pub const fn new(start: u64, bytes: u64) -> Option<Self> {
        match start.checked_add(bytes) {
            Some(_) => Some(Self { start, bytes }),
            None => None,
        }
    }

    /// The first byte after the range.
    pub const fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Whether `other` lies within this range.
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// How many ranges an [`IdentityMemory`] can hold.
pub const MAX_RANGES: usize = 8;

/// Why a range cannot be given to an [`IdentityMemory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RangeError {
    /// It does not begin and end on a page boundary.
    #[error("a range of memory is not made of whole pages")]
    Misaligned,
    /// It lies beyond the identity map.
    #[error("a range of memory lies beyond the identity map")]
    NotMapped,
    /// There are [`MAX_RANGES`] already.
    #[error("more than {MAX_RANGES} ranges of memory")]
    TooMany,
}

/// The memory that the program owns, frame by frame.
#[derive(Debug, Default)]
pub struct IdentityMemory {
    ranges: Vec<PhysRange, MAX_RANGES>,
}

impl IdentityMemory {
    /// No memory yet.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Hands over a range of whole pages. On an error nothing changes.
    ///
    /// # Safety
    /// The range is RAM, and as long as the program runs it is reached through
    /// frames of atomic words only (this or another `IdentityMemory`), by devices,
    /// or by guests: no Rust object lives there.
    pub unsafe fn own(&mut self, range: PhysRange) -> Result<(), RangeError> {
        if !range.start.is_multiple_of(PAGE_SIZE) || !range.bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Misaligned);
        }
        if range.start == 0 || range.end() > MAPPED_BYTES {
            return Err(RangeError::NotMapped);
        }
        self.ranges.push(range).map_err(|_| RangeError::TooMany)
    }

    /// What it owns.
    pub fn ranges(&self) -> &[PhysRange] {
        &self.ranges
    }
}

impl PhysMemory for IdentityMemory {
    fn frame(&self, hpa: Hpa) -> Option<&Frame> {
        // Ranges are of whole pages: what holds a page's start holds the page.
        let holds = |range: &PhysRange| hpa.raw().wrapping_sub(range.start) < range.bytes;
        if !hpa.is_page_aligned() || !self.ranges.iter().any(holds) {
            return None;
        }
        // SAFETY: the frame lies within a range that `own` was promised to be RAM
        // without Rust objects, it is mapped at its own address, aligned, and not
        // at 0; `Frame` is made of atomics, so others may write to it.
        Some(unsafe { &*(hpa.raw() as *const Frame) })
    }
}

/// Nothing can be read at this address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("physical address {0:#x} cannot be read")]
pub struct Unreadable(pub u64);

/// Bytes of physical memory that somebody else wrote, to be copied and judged.
pub trait ReadPhys {
    /// Copies the bytes at `at` into `to`. On an error some may have been copied.
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Unreadable>;
}

/// What firmware and boot loader left in memory: any address below 512 GiB but
/// 0, which stands for "none" in every table.
#[derive(Clone, Copy, Debug)]
pub struct FirmwareMemory(());

impl FirmwareMemory {
    /// All of it.
    ///
    /// # Safety
    /// The identity map is in force: this is an image. Addresses that are read
    /// come from tables of firmware or boot loader; where such a table is wrong
    /// and names a device's registers, reading may have the effect it has there.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl ReadPhys for FirmwareMemory {
    fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Unreadable> {
        let end = at.checked_add(to.len() as u64).ok_or(Unreadable(at))?;
        if at == 0 || end > MAPPED_BYTES {
            return Err(Unreadable(at));
        }
        for (byte, address) in to.iter_mut().zip(at..) {
            // SAFETY: mapped (checked above), not null, and any byte is a valid u8;
            // volatile, as whoever wrote it is outside this program.
            *byte = unsafe { (address as *const u8).read_volatile() };
        }
        Ok(())
    }
}

/// A device's registers.
#[derive(Debug)]
pub struct MmioWindow {
    range: PhysRange,
}

impl MmioWindow {
    /// The window at `range`, or `None` if it is not mapped.
    ///
    /// # Safety
    /// The range holds registers of one device and no memory, the device's DMA is
    /// confined by whoever drives it, and nobody else has a window on it.
    pub unsafe fn new(range: PhysRange) -> Option<Self> {
        (range.start >= PAGE_SIZE && range.end() <= MAPPED_BYTES).then_some(Self { range })
    }

    /// Where it lies.
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// The register's address, if it is aligned and within the window.
    fn register<T>(&self, offset: usize) -> Option<*mut T> {
        let end = (offset as u64).checked_add(size_of::<T>() as u64)?;
        let inside = end <= self.range.bytes && offset.is_multiple_of(size_of::<T>());
        inside.then(|| (self.range.start as usize + offset) as *mut T)
    }
}

/// Each access is one `mov`, in program order with all others: assembly keeps the
/// compiler from reordering it or folding it into another instruction, which a
/// hypervisor that emulates these registers would have to understand, and the CPU
/// keeps the order of uncached accesses. What is outside the window reads as all
/// ones, like an empty bus.
impl Mmio for MmioWindow {
    fn read32(&self, offset: usize) -> u32 {
        let mut value = u32::MAX;
        if let Some(register) = self.register::<u32>(offset) {
            // SAFETY: within the window, aligned, and mapped; see `new`.
            unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) register, options(nostack)) };
        }
        value
    }

    fn write32(&self, offset: usize, value: u32) {
        if let Some(register) = self.register::<u32>(offset) {
            // SAFETY: as for `read32`.
            unsafe { asm!("mov [{}], {:e}", in(reg) register, in(reg) value, options(nostack)) };
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let mut value = u64::MAX;
        if let Some(register) = self.register::<u64>(offset) {
            // SAFETY: as for `read32`.
            unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) register, options(nostack)) };
        }
        value
    }

    #[inline]
    fn write64(&self, offset: usize, value: u64) {
        if let Some(register) = self.register::<u64>(offset) {
            // SAFETY: as for `read32`.
            unsafe { asm!("mov [{}], {}", in(reg) register, in(reg) value, options(nostack)) };
        }
    }
}

/// Memory that a device shares with another machine, as words that the other one
/// may change at any time. `None` if the range is not made of whole words, is
/// empty, or is not mapped.
///
/// # Safety
/// The range is plain memory of a device that answers memory accesses for as long
/// as the program runs, and no Rust object lives there.
pub unsafe fn shared_words(range: PhysRange) -> Option<&'static [AtomicU64]> {
    const WORD: u64 = size_of::<AtomicU64>() as u64;
    let is_whole = range.start.is_multiple_of(WORD) && range.bytes.is_multiple_of(WORD);
    if !is_whole || range.bytes == 0 || range.start == 0 || range.end() > MAPPED_BYTES {
        return None;
    }
    let words = (range.bytes / WORD) as usize;
    // SAFETY: mapped at its own address for good, aligned, not null, and memory (see
    // above); every value is a valid word, and atomics may change under our hands.
    Some(unsafe { core::slice::from_raw_parts(range.start as *const AtomicU64, words) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_they_should() {
        assert_eq!(PhysRange::new(u64::MAX, 1), None);
        let range = PhysRange::new(0x1000, 0x1000).unwrap();
        assert!(range.contains(&PhysRange::new(0x1800, 0x800).unwrap()));
        assert!(!range.contains(&PhysRange::new(0x1800, 0x801).unwrap()));
        assert!(range.overlaps(&PhysRange::new(0x1fff, 1).unwrap()));
        assert!(!range.overlaps(&PhysRange::new(0x2000, 1).unwrap()));
    }

    #[test]
    fn only_owned_whole_frames_are_handed_out() {
        let mut memory = IdentityMemory::new();
        let range = |start, bytes| PhysRange::new(start, bytes).unwrap();
        // SAFETY: nothing is read or written in this test.
        let mut own = |range| unsafe { memory.own(range) };
        assert_eq!(own(range(0x1001, 0x1000)), Err(RangeError::Misaligned));
        assert_eq!(own(range(0x1000, 0x800)), Err(RangeError::Misaligned));
        assert_eq!(own(range(0, 0x1000)), Err(RangeError::NotMapped));
        assert_eq!(own(range(MAPPED_BYTES, 0x1000)), Err(RangeError::NotMapped));
        for _ in 0..MAX_RANGES {
            assert_eq!(own(range(0x4000, 0x2000)), Ok(()));
        }
        assert_eq!(own(range(0x4000, 0x2000)), Err(RangeError::TooMany));
        assert!(memory.frame(Hpa::new(0x3000)).is_none());
        assert!(memory.frame(Hpa::new(0x4008)).is_none());
        assert!(memory.frame(Hpa::new(0x5000)).is_some());
        assert!(memory.frame(Hpa::new(0x6000)).is_none());
        assert!(memory.frame(Hpa::new(!0xfff)).is_none());
    }

    #[test]
    fn registers_are_aligned_and_within_the_window() {
        // SAFETY: nothing is read or written in this test.
        let window = unsafe { MmioWindow::new(PhysRange::new(0x1000, 16).unwrap()) }.unwrap();
        assert!(window.register::<u64>(8).is_some());
        for outside in [4, 12, 16, usize::MAX & !7] {
            assert!(window.register::<u64>(outside).is_none());
        }
        assert_eq!(window.read32(16), u32::MAX);
    }

    #[test]
    fn shared_memory_is_whole_words_that_are_mapped() {
        for (start, bytes) in [(0, 8), (4, 8), (8, 4), (8, 0), (MAPPED_BYTES - 8, 16)] {
            let range = PhysRange::new(start, bytes).unwrap();
            // SAFETY: nothing is read or written in this test.
            assert!(unsafe { shared_words(range) }.is_none(), "{start:#x}");
        }
    }
}
