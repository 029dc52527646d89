//! Free memory: what the memory map calls usable, less what is in use already.
#![allow(unsafe_code)]

use crate::boot_info::{Region, RegionKind};
use crate::physical::{IdentityMemory, PhysRange, RangeError};
use core::sync::atomic::AtomicU64;
use heapless::Vec;
use hv_core::PAGE_SIZE;

/// The most pieces that free memory may be in. Pieces beyond are left unused.
const MAX_PIECES: usize = 128;

/// Memory below 1 MiB is left to firmware.
const LOW_MEMORY: u64 = 1 << 20;
/// Memory beyond the identity map cannot be reached.
const REACHABLE: u64 = 512 << 30;

/// Memory that nobody uses.
#[derive(Debug)]
pub struct FreeMemory {
    pieces: Vec<PhysRange, MAX_PIECES>,
}

/// A range taken out of [`FreeMemory`]. Holding it proves that nobody else uses
/// the memory; the methods that give it a use take it away.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnedRange(PhysRange);

impl FreeMemory {
    /// The usable `regions` without whatever a region of another kind or one of
    /// the ranges in `used` covers.
    ///
    /// # Safety
    /// `regions` is the machine's memory map, `used` names everything that is in
    /// use (the image, the boot modules), and this is called once.
    pub unsafe fn new(regions: &[Region], used: &[PhysRange]) -> Self {
        Self::between(regions, used)
    }

    /// Free memory that is never given a use.
    #[cfg(test)]
    pub(crate) fn for_test(regions: &[Region], used: &[PhysRange]) -> Self {
        Self::between(regions, used)
    }

    fn between(regions: &[Region], used: &[PhysRange]) -> Self {
        let mut free = Self { pieces: Vec::new() };
        for region in regions {
            if region.kind == RegionKind::Usable {
                free.add(region.range);
            }
        }
        for region in regions {
            if region.kind != RegionKind::Usable {
                free.remove(region.range);
            }
        }
        for range in used {
            free.remove(*range);
        }
        free
    }

    /// The memory an image finds free: all the boot loader's map has, less the
    /// image itself and the boot modules. The start information was copied; what
    /// is left of it may be overwritten.
    ///
    /// # Safety
    /// This is called once.
    #[cfg(strandline_image)]
    pub unsafe fn at_boot(boot: &crate::BootInfo) -> Self {
        let mut used = Vec::<PhysRange, { crate::boot_info::MAX_MODULES + 1 }>::new();
        // There is room for the image and for as many modules as there can be.
        let _ = used.push(crate::image_range());
        let _ = used.extend_from_slice(boot.modules());
        // SAFETY: the boot loader's map and everything in use; once, as promised.
        unsafe { Self::new(boot.regions(), &used) }
    }

    /// The pieces, each of whole pages, in no particular order.
    pub fn pieces(&self) -> &[PhysRange] {
        &self.pieces
    }

    /// The bytes in all pieces.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// The most bytes one [`FreeMemory::carve`] can give at that alignment.
    pub fn largest(&self, align: u64) -> u64 {
        let room = |piece: &PhysRange| {
            let start = piece.start.checked_next_multiple_of(align)?;
            piece.end().checked_sub(start)
        };
        self.pieces.iter().filter_map(room).max().unwrap_or(0)
    }

    /// Takes a contiguous range of `bytes` (rounded up to whole pages), aligned to
    /// `align`, a power of two of at least a page. `None` if there is none; then
    /// nothing changes.
    pub fn carve(&mut self, bytes: u64, align: u64) -> Option<OwnedRange> {
        let bytes = bytes.checked_next_multiple_of(PAGE_SIZE)?;
        // From the smallest piece that fits, so that large ones stay large.
        let range = self
            .pieces
            .iter()
            .filter_map(|piece| {
                let start = piece.start.checked_next_multiple_of(align)?;
                let range = PhysRange::new(start, bytes)?;
                piece.contains(&range).then_some((piece.bytes, range))
            })
            .min_by_key(|(room, _)| *room)
            .map(|(_, range)| range)?;
        self.remove(range);
        Some(OwnedRange(range))
    }

    /// Adds whole pages of `range` that are reachable and not there yet.
    fn add(&mut self, range: PhysRange) {
        let start = range.start.clamp(LOW_MEMORY, REACHABLE);
        let start = start.next_multiple_of(PAGE_SIZE);
        let end = range.end().min(REACHABLE) & !(PAGE_SIZE - 1);
        let Some(bytes) = end.checked_sub(start).filter(|bytes| *bytes > 0) else {
            return;
        };
        let piece = PhysRange { start, bytes };
        // A region listed twice must not be given out twice.
        self.remove(piece);
        let _ = self.pieces.push(piece);
    }

    /// Removes every page that shares a byte with `range`.
    fn remove(&mut self, range: PhysRange) {
        if range.bytes == 0 {
            return;
        }
        let hole_start = range.start & !(PAGE_SIZE - 1);
        let hole_end = range
            .end()
            .checked_next_multiple_of(PAGE_SIZE)
            .unwrap_or(u64::MAX);
        for piece in core::mem::take(&mut self.pieces) {
            let below = (piece.start, piece.end().min(hole_start));
            let above = (piece.start.max(hole_end), piece.end());
            for (start, end) in [below, above] {
                if let Some(bytes) = end.checked_sub(start).filter(|bytes| *bytes > 0) {
                    // Without room for both halves the second one is lost, not
                    // given out twice.
                    let _ = self.pieces.push(PhysRange { start, bytes });
                }
            }
        }
    }
}

impl OwnedRange {
    /// Where it is.
    pub fn range(&self) -> PhysRange {
        self.0
    }

    /// Makes it frames of `memory`. Their contents are whatever was there before.
    pub fn into_frames(self, memory: &mut IdentityMemory) -> Result<PhysRange, RangeError> {
        // SAFETY: usable RAM in whole pages that nobody else uses (see the type),
        // and this value, which could give it another use, ends here.
        unsafe { memory.own(self.0)? };
        Ok(self.0)
    }

    /// Makes it zeroed words that may be marked from several CPUs, for a bitmap. As
    /// many as fit, which may be more than were asked for.
    pub fn into_words(self) -> &'static [AtomicU64] {
        // SAFETY: all zeros are valid atomic words.
        unsafe { self.into_zeroed() }
    }

    /// Makes it zeroed counters, for a table with one entry a page. As many as fit,
    /// which may be more than were asked for.
    pub fn into_counters(self) -> &'static mut [u32] {
        // SAFETY: all zeros are valid numbers.
        unsafe { self.into_zeroed() }
    }

    /// # Safety
    /// All zeros are a valid `T`, and a page is a multiple of its size and alignment.
    unsafe fn into_zeroed<T>(self) -> &'static mut [T] {
        let count = self.0.bytes as usize / size_of::<T>();
        let first = self.0.start as *mut T;
        // SAFETY: usable RAM, page aligned, mapped at its own address for good, and
        // nobody else uses it (see the type); zero is valid (see above).
        unsafe {
            first.write_bytes(0, count);
            core::slice::from_raw_parts_mut(first, count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64, kind: RegionKind) -> Region {
        let range = PhysRange::new(start, end - start).unwrap();
        Region { range, kind }
    }

    fn free(regions: &[Region], used: &[(u64, u64)]) -> FreeMemory {
        let used: Vec<PhysRange, 8> = used
            .iter()
            .map(|(start, bytes)| PhysRange::new(*start, *bytes).unwrap())
            .collect();
        FreeMemory::for_test(regions, &used)
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn only_whole_usable_pages_above_low_memory_are_free() {
        let memory = free(
            &[
                region(0, 0x9_fc00, RegionKind::Usable),
                region(MIB, 2 * MIB + 5, RegionKind::Usable),
                region(4 * MIB, 5 * MIB, RegionKind::Reserved),
                region(u64::MAX - 0x5000, u64::MAX, RegionKind::Usable),
                region(u64::MAX - 0x7ff, u64::MAX - 1, RegionKind::Usable),
            ],
            &[],
        );
        assert_eq!(
            memory.pieces(),
            [PhysRange {
                start: MIB,
                bytes: MIB
            }]
        );
    }

    #[test]
    fn used_and_reserved_pages_are_cut_out_whole() {
        let memory = free(
            &[
                region(MIB, 8 * MIB, RegionKind::Usable),
                region(5 * MIB, 6 * MIB, RegionKind::AcpiNonVolatile),
            ],
            &[(2 * MIB + 1, 1), (3 * MIB, 0)],
        );
        assert_eq!(memory.bytes(), 6 * MIB - PAGE_SIZE);
        for piece in memory.pieces() {
            assert!(!piece.overlaps(&PhysRange {
                start: 2 * MIB,
                bytes: PAGE_SIZE
            }));
            assert!(!piece.overlaps(&PhysRange {
                start: 5 * MIB,
                bytes: MIB
            }));
        }
    }

    #[test]
    fn a_region_listed_twice_is_there_once() {
        let twice = region(MIB, 3 * MIB, RegionKind::Usable);
        assert_eq!(free(&[twice, twice], &[]).bytes(), 2 * MIB);
    }

    #[test]
    fn carving_gives_disjoint_aligned_ranges_until_nothing_is_left() {
        let mut memory = free(&[region(MIB, 9 * MIB, RegionKind::Usable)], &[]);
        let large = memory.carve(4 * MIB, 2 * MIB).unwrap().range();
        let small = memory.carve(1, PAGE_SIZE).unwrap().range();
        assert!(large.start.is_multiple_of(2 * MIB));
        assert_eq!((large.bytes, small.bytes), (4 * MIB, PAGE_SIZE));
        assert!(!large.overlaps(&small));
        let before = memory.bytes();
        assert_eq!(memory.carve(4 * MIB, 2 * MIB), None);
        assert_eq!(memory.carve(u64::MAX, PAGE_SIZE), None);
        assert_eq!(memory.bytes(), before);
        while let Some(page) = memory.carve(PAGE_SIZE, PAGE_SIZE) {
            assert!(!page.range().overlaps(&large) && !page.range().overlaps(&small));
        }
        assert_eq!(memory.bytes(), 0);
    }
}
