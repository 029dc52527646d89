//! `VFIO_IOMMU_UNMAP_DMA` (section C of the rules).
//!
//! Everything is checked before anything changes, the caller's memory included:
//! where Linux stops half way at a bad bitmap, with mappings gone and their bits
//! nowhere, here it refuses, and nothing is lost.

use super::abi::{Bitmap, DmaUnmap, UnmapFlags};
use super::caller::{CallerMemory, EmulatedDevices, behind, read, write};
use super::container::{ALL_PAGES, Version};
use super::info::TRACKED_PAGE;
use super::{Container, VfioError};
use crate::bitmap::DirtyBitmap;
use crate::tables::{EntryFormat, Pages};
use crate::unit::HostUnit;
use crate::{Iova, IovaRange};
use core::ops::Range;
use hv_core::PAGE_SIZE;
use hv_core::memory::PhysMemory;

/// How often an emulated device is asked anew to unpin the pages of one mapping.
const MAX_RETRIES: u32 = 10;

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'_, '_, M, U, F> {
    pub(super) fn unmap_dma(
        &mut self,
        arg: u64,
        memory: &mut impl CallerMemory,
        devices: &mut impl EmulatedDevices,
    ) -> Result<(), VfioError> {
        let request: DmaUnmap = read(memory, arg)?;
        let argsz = request.argsz as usize;
        if argsz < size_of::<DmaUnmap>() {
            return Err(VfioError::TooShort);
        }
        let flags = UnmapFlags::from_bits(request.flags).ok_or(VfioError::Flags)?;
        let with_bitmap = flags.contains(UnmapFlags::GET_DIRTY_BITMAP);
        if with_bitmap && flags != UnmapFlags::GET_DIRTY_BITMAP {
            return Err(VfioError::Flags);
        }
        let mut bitmap = None;
        if with_bitmap {
            if argsz < size_of::<DmaUnmap>() + size_of::<Bitmap>() {
                return Err(VfioError::TooShort);
            }
            let asked: Bitmap = read(memory, behind(arg, size_of::<DmaUnmap>())?)?;
            self.check_bitmap(&asked, request.size, memory)?;
            bitmap = Some(asked);
        }

        if flags.contains(UnmapFlags::VADDR) && self.has_emulated_group() {
            return Err(VfioError::EmulatedAttached);
        }
        let all = flags.contains(UnmapFlags::ALL);
        let pages = pages_to_unmap(all, request.iova, request.size)?;
        if let Some(bitmap) = &bitmap {
            self.check_tracked(bitmap.pgsize)?;
        }
        let size = if flags.contains(UnmapFlags::VADDR) {
            self.invalidate_vaddr(pages, arg, memory)?
        } else {
            let answer = (arg, size_of::<DmaUnmap>());
            let bitmap = bitmap.map(|bitmap| bitmap.data);
            self.unmap(pages, answer, bitmap, memory, devices)?
        };
        write(memory, arg, &DmaUnmap { size, ..request })
    }

    /// Unmaps `pages`. The bits go to the address `bitmap`, if there is one, and
    /// the caller will write an `answer` of so many bytes there. Returns the bytes
    /// unmapped.
    pub(super) fn unmap(
        &mut self,
        pages: Pages,
        (answer, answer_bytes): (u64, usize),
        bitmap: Option<u64>,
        memory: &mut impl CallerMemory,
        devices: &mut impl EmulatedDevices,
    ) -> Result<u64, VfioError> {
        let run = self.have_unpinned(pages, devices)?;
        memory
            .bytes_mut(answer, answer_bytes)
            .ok_or(VfioError::Fault)?;
        let bitmap = match bitmap {
            Some(data) => Some(bitmap_at(memory, data, pages)?),
            None => None,
        };
        self.remove(pages.first, run, bitmap)
    }

    /// The mappings in `pages`, once no page of them is pinned. Devices may change
    /// much when they are asked to unpin, so all is looked at anew afterwards.
    fn have_unpinned(
        &mut self,
        pages: Pages,
        devices: &mut impl EmulatedDevices,
    ) -> Result<Range<usize>, VfioError> {
        let mut asked = None;
        let mut retries = 0;
        loop {
            let run = self.run(pages)?;
            let pinned = self.mappings.all()[run.clone()]
                .iter()
                .map(|mapping| mapping.pages)
                .find(|mapping| self.has_pins(*mapping));
            let Some(mapping) = pinned else {
                return Ok(run);
            };
            if asked == Some(mapping) {
                retries += 1;
                if retries > MAX_RETRIES {
                    return Err(VfioError::StillPinned);
                }
            } else {
                asked = Some(mapping);
                retries = 0;
            }
            devices.dma_unmap(self, mapping.range());
        }
    }

    /// Which mappings a request for `pages` speaks of.
    pub(super) fn run(&self, pages: Pages) -> Result<Range<usize>, VfioError> {
        let run = self.mappings.touched(pages);
        match self.version {
            Version::V2 if self.mappings.bisects(pages) => Err(VfioError::Bisects),
            Version::V1 if self.starts_inside(pages.first) => Ok(run.start..run.start),
            Version::V1 | Version::V2 => Ok(run),
        }
    }

    fn starts_inside(&self, page: u64) -> bool {
        self.mappings
            .containing(page)
            .is_some_and(|mapping| mapping.pages.first < page)
    }

    /// Removes a run of mappings without pins and reports them in `bitmap`, which
    /// begins at page `first`.
    pub(super) fn remove(
        &mut self,
        first: u64,
        run: Range<usize>,
        mut bitmap: Option<DirtyBitmap<'_>>,
    ) -> Result<u64, VfioError> {
        let Some(last) = self.mappings.all()[run.clone()].last() else {
            return Ok(0);
        };
        let last = last.pages.last;
        let mut from_tables = None;
        if let Some(bitmap) = &mut bitmap {
            self.clear_words(first, run.clone(), bitmap);
            from_tables = self.has_unpinned_writer().then_some(bitmap);
        }
        let range = Pages { first, last }.range();
        let unmapped = self.iommu.unmap(self.domain, range, from_tables)?;
        if let Some(bitmap) = &mut bitmap {
            for index in run.clone() {
                self.mappings.report(index, first, bitmap);
            }
        }
        self.mappings.remove(run);
        Ok(unmapped.bytes())
    }

    /// Clears the words of `bitmap` that Linux would overwrite: those a mapping
    /// has bits in, up from its first bit. Holes keep theirs (C14).
    pub(super) fn clear_words(&self, first: u64, run: Range<usize>, bitmap: &mut DirtyBitmap<'_>) {
        for mapping in &self.mappings.all()[run] {
            let start = mapping.pages.first - first;
            let end = (start + mapping.pages.count()).next_multiple_of(64);
            bitmap.clear(start, end - start);
        }
    }

    fn invalidate_vaddr(
        &mut self,
        pages: Pages,
        answer: u64,
        memory: &mut impl CallerMemory,
    ) -> Result<u64, VfioError> {
        let run = self.run(pages)?;
        let mappings = &self.mappings.all()[run.clone()];
        if mappings.iter().any(|mapping| !mapping.vaddr_is_valid) {
            return Err(VfioError::VaddrTwice);
        }
        memory
            .bytes_mut(answer, size_of::<DmaUnmap>())
            .ok_or(VfioError::Fault)?;
        let size = mappings
            .iter()
            .map(|mapping| mapping.pages.count())
            .sum::<u64>()
            * PAGE_SIZE;
        self.mappings.set_vaddr_validity(run, false);
        Ok(size)
    }

    /// Whether `bitmap` could hold the bits of `bytes` bytes (C3).
    pub(super) fn check_bitmap(
        &self,
        bitmap: &Bitmap,
        bytes: u64,
        memory: &impl CallerMemory,
    ) -> Result<(), VfioError> {
        if !memory.is_plausible(bitmap.data, bitmap.size) {
            return Err(VfioError::BadBitmap);
        }
        let pages = bytes
            .checked_shr(bitmap.pgsize.trailing_zeros())
            .unwrap_or(0);
        let fits = pages > 0
            && bitmap.size <= self.max_bitmap_bytes()
            && bitmap.size / 8 >= DirtyBitmap::words_needed(pages);
        fits.then_some(()).ok_or(VfioError::BadBitmap)
    }

    /// Whether pages of that size are tracked at present (C8).
    fn check_tracked(&self, page_size: u64) -> Result<(), VfioError> {
        if !self.mappings.is_tracking() {
            return Err(VfioError::NotTracking);
        }
        if page_size != TRACKED_PAGE {
            return Err(VfioError::PageSize);
        }
        Ok(())
    }
}

/// The caller's memory for the bits of `pages`, and none behind it.
pub(super) fn bitmap_at(
    memory: &mut impl CallerMemory,
    data: u64,
    pages: Pages,
) -> Result<DirtyBitmap<'_>, VfioError> {
    let bytes = DirtyBitmap::words_needed(pages.count()) * 8;
    usize::try_from(bytes)
        .ok()
        .and_then(|bytes| memory.bytes_mut(data, bytes))
        .map(DirtyBitmap::from_bytes)
        .ok_or(VfioError::Fault)
}

/// What `iova` and `size` mean: C5 to C7, in this order.
fn pages_to_unmap(all: bool, iova: u64, size: u64) -> Result<Pages, VfioError> {
    if !iova.is_multiple_of(PAGE_SIZE) {
        return Err(VfioError::Unaligned);
    }
    if all {
        if iova != 0 || size != 0 {
            return Err(VfioError::RangeWithAll);
        }
        return Ok(ALL_PAGES);
    }
    if !size.is_multiple_of(PAGE_SIZE) {
        return Err(VfioError::Unaligned);
    }
    Ok(IovaRange::from_bytes(Iova::new(iova), size)?.into())
}
