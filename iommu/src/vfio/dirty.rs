//! `VFIO_IOMMU_DIRTY_PAGES` (section D of the rules).
//!
//! A page is dirty if a device behind the unit may have written it, which the
//! native layer knows, or an emulated one, which the container's own bits tell.
//! Never one that no device may write: Linux counts read-only mappings too.

use super::abi::{BitmapRange, DirtyBitmapHeader, DirtyFlags};
use super::caller::{CallerMemory, behind, read};
use super::container::Version;
use super::info::TRACKED_PAGE;
use super::unmap::bitmap_at;
use super::{Container, VfioError};
use crate::tables::{EntryFormat, Pages};
use crate::unit::HostUnit;
use crate::{Iova, IovaRange};
use hv_core::memory::PhysMemory;

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'_, '_, M, U, F> {
    pub(super) fn dirty_pages(
        &mut self,
        arg: u64,
        memory: &mut impl CallerMemory,
    ) -> Result<(), VfioError> {
        if self.version == Version::V1 {
            return Err(VfioError::Version1);
        }
        let header: DirtyBitmapHeader = read(memory, arg)?;
        if (header.argsz as usize) < size_of::<DirtyBitmapHeader>() {
            return Err(VfioError::TooShort);
        }
        match DirtyFlags::from_bits(header.flags) {
            Some(DirtyFlags::START) => self.start_tracking(),
            Some(DirtyFlags::STOP) => {
                self.stop_tracking();
                Ok(())
            }
            Some(DirtyFlags::GET_BITMAP) => self.get_bitmap(header.argsz, arg, memory),
            _ => Err(VfioError::Flags),
        }
    }

    /// The native layer tracks from now on too. It must not be stopped there while
    /// it goes on here.
    fn start_tracking(&mut self) -> Result<(), VfioError> {
        if self.mappings.is_tracking() {
            return Ok(());
        }
        self.mappings.start_tracking()?;
        if let Err(error) = self.iommu.start_tracking() {
            self.mappings.stop_tracking();
            return Err(error.into());
        }
        self.mark_pinned(super::container::ALL_PAGES);
        Ok(())
    }

    fn stop_tracking(&mut self) {
        if self.mappings.is_tracking() {
            self.mappings.stop_tracking();
            self.iommu.stop_tracking();
        }
    }

    fn get_bitmap(
        &mut self,
        argsz: u32,
        arg: u64,
        memory: &mut impl CallerMemory,
    ) -> Result<(), VfioError> {
        if (argsz as usize) < size_of::<DirtyBitmapHeader>() + size_of::<BitmapRange>() {
            return Err(VfioError::TooShort);
        }
        let request: BitmapRange = read(memory, behind(arg, size_of::<DirtyBitmapHeader>())?)?;
        let last = request.size.checked_sub(1).ok_or(VfioError::Empty)?;
        request.iova.checked_add(last).ok_or(VfioError::Wraps)?;
        self.check_bitmap(&request.bitmap, request.size, memory)?;
        if request.bitmap.pgsize != TRACKED_PAGE {
            return Err(VfioError::PageSize);
        }
        let range = IovaRange::from_bytes(Iova::new(request.iova), request.size)?;
        if !self.mappings.is_tracking() {
            return Err(VfioError::NotTracking);
        }
        let pages = Pages::from(range);
        let run = self.run(pages)?;
        let mut bitmap = bitmap_at(memory, request.bitmap.data, pages)?;

        self.clear_words(pages.first, run.clone(), &mut bitmap);
        if let Some(last) = self.mappings.all()[run.clone()].last()
            && self.has_unpinned_writer()
        {
            let mapped = Pages {
                first: pages.first,
                last: last.pages.last,
            };
            self.iommu
                .report_writable(self.domain, mapped.range(), &mut bitmap)?;
        }
        for index in run {
            self.mappings.report(index, pages.first, &mut bitmap);
            self.mappings.forget(index);
        }
        // Whoever has a page pinned may go on writing it.
        self.mark_pinned(pages);
        Ok(())
    }
}
