//! How devices that the hypervisor emulates reach memory (section E of the rules).

use super::container::{Group, Version};
use super::{Container, VfioError};
use crate::Iova;
use crate::hold::HeldBy;
use crate::space::Access;
use crate::tables::{EntryFormat, Pages};
use crate::unit::HostUnit;
use core::ops::Range;
use hv_core::memory::PhysMemory;
use hv_core::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE};

/// Memory for one page that emulated devices have pinned.
#[derive(Clone, Copy, Debug, Default)]
pub struct PinSlot {
    /// By IOVA.
    pub(super) page: u64,
    count: u32,
}

/// The way of an emulated device to the memory its guest gave it, by IOVA.
pub trait DeviceAccess {
    /// Keeps as many pages as `frames` has entries, from `iova` on, where they are
    /// until [`DeviceAccess::unpin_pages`], and says where they are. They count as
    /// written all the time, if their mapping permits it.
    ///
    /// # Errors
    /// In this order, and then no page is pinned: [`VfioError::Empty`],
    /// [`VfioError::Version1`], [`VfioError::Wraps`], [`VfioError::VaddrInvalid`],
    /// [`VfioError::NoDevice`], [`VfioError::BadGroup`]; of the first page that
    /// cannot be pinned [`VfioError::NotMapped`], [`VfioError::Permission`] or
    /// [`VfioError::OutOfMemory`].
    fn pin_pages(
        &mut self,
        group: Group,
        iova: Iova,
        access: Access,
        frames: &mut [Gfn],
    ) -> Result<(), VfioError>;

    /// Ends the pins of `count` pages from `iova` on. Stops at the first page that
    /// is in no mapping; returns how many pages come before it.
    fn unpin_pages(&mut self, iova: Iova, count: u64) -> u64;

    /// Reads bytes. On an error none was read: [`VfioError::Empty`],
    /// [`VfioError::VaddrInvalid`]; of the first page that cannot be read
    /// [`VfioError::NotMapped`] or [`VfioError::Permission`].
    fn read(&mut self, iova: Iova, to: &mut [u8]) -> Result<(), VfioError>;

    /// Writes bytes; the pages touched are dirty. Errors as for
    /// [`DeviceAccess::read`].
    fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), VfioError>;
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> DeviceAccess for Container<'_, '_, M, U, F> {
    fn pin_pages(
        &mut self,
        group: Group,
        iova: Iova,
        access: Access,
        frames: &mut [Gfn],
    ) -> Result<(), VfioError> {
        let count = frames.len() as u64;
        if count == 0 {
            return Err(VfioError::Empty);
        }
        if self.version == Version::V1 {
            return Err(VfioError::Version1);
        }
        count
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| iova.checked_add(bytes - 1))
            .ok_or(VfioError::Wraps)?;
        if self.mappings.has_invalid_vaddr() {
            return Err(VfioError::VaddrInvalid);
        }
        if self.registered_devices == 0 {
            return Err(VfioError::NoDevice);
        }
        self.group_mut(group)?;

        let first = iova.raw() >> PAGE_SHIFT;
        for (page, frame) in (first..).zip(frames.iter_mut()) {
            match self.pin_page(page, access) {
                Ok(gfn) => *frame = gfn,
                Err(error) => {
                    for pinned in first..page {
                        self.unpin_page(pinned);
                    }
                    return Err(error);
                }
            }
        }
        for page in first..first + count {
            if self.pin_count(page) == 1 {
                self.mappings.mark(page);
            }
        }
        self.group_mut(group)?.writes_pinned_only = true;
        Ok(())
    }

    fn unpin_pages(&mut self, iova: Iova, count: u64) -> u64 {
        let first = iova.raw() >> PAGE_SHIFT;
        for index in 0..count {
            let page = first.saturating_add(index);
            if self.mappings.containing(page).is_none() {
                log::warn!("page {page:#x} is to be unpinned, but not mapped");
                return index;
            }
            self.unpin_page(page);
        }
        count
    }

    fn read(&mut self, iova: Iova, to: &mut [u8]) -> Result<(), VfioError> {
        self.check_access(iova, to.len(), Access::Read)?;
        for (at, bytes) in chunks(iova, to.len()) {
            let gpa = self.gpa_of(at)?;
            let read = self.iommu.guest.read(gpa, &mut to[bytes]);
            read.map_err(|_| VfioError::Fault)?;
        }
        Ok(())
    }

    fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), VfioError> {
        self.check_access(iova, from.len(), Access::Write)?;
        for (at, bytes) in chunks(iova, from.len()) {
            let gpa = self.gpa_of(at)?;
            let written = self.iommu.guest.write(gpa, &from[bytes]);
            written.map_err(|_| VfioError::Fault)?;
            // After the data, so that no report comes before what it reports.
            self.mappings.mark(at.raw() >> PAGE_SHIFT);
        }
        Ok(())
    }
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'_, '_, M, U, F> {
    fn pin_page(&mut self, page: u64, access: Access) -> Result<Gfn, VfioError> {
        let mapping = self.mappings.containing(page).ok_or(VfioError::NotMapped)?;
        if !mapping.permits(access) {
            return Err(VfioError::Permission);
        }
        let gfn = mapping.gfn_of(page);
        match self.pins.binary_search_by_key(&page, |pin| pin.page) {
            Ok(index) => {
                let pin = &mut self.pins[index];
                pin.count = pin.count.checked_add(1).ok_or(VfioError::OutOfMemory)?;
            }
            Err(index) => {
                self.iommu.hold(gfn, HeldBy::EmulatedDevice)?;
                let pin = PinSlot { page, count: 1 };
                if self.pins.insert(index, pin).is_err() {
                    self.iommu.release(gfn, HeldBy::EmulatedDevice);
                    return Err(VfioError::OutOfMemory);
                }
            }
        }
        Ok(gfn)
    }

    /// Ends one pin of a page that is mapped; nothing if it has none.
    pub(super) fn unpin_page(&mut self, page: u64) {
        let Ok(index) = self.pins.binary_search_by_key(&page, |pin| pin.page) else {
            return;
        };
        self.pins[index].count -= 1;
        if self.pins[index].count > 0 {
            return;
        }
        self.pins.remove(index..index + 1);
        // A mapping outlives its pins.
        if let Some(mapping) = self.mappings.containing(page) {
            let gfn = mapping.gfn_of(page);
            self.iommu.release(gfn, HeldBy::EmulatedDevice);
        }
    }

    fn pin_count(&self, page: u64) -> u32 {
        self.pins
            .binary_search_by_key(&page, |pin| pin.page)
            .map_or(0, |index| self.pins[index].count)
    }

    fn pins_in(&self, pages: Pages) -> Range<usize> {
        let start = self.pins.partition_point(|pin| pin.page < pages.first);
        let end = self.pins.partition_point(|pin| pin.page <= pages.last);
        start..end
    }

    pub(super) fn has_pins(&self, pages: Pages) -> bool {
        !self.pins_in(pages).is_empty()
    }

    /// Marks as dirty what is pinned in `pages`.
    pub(super) fn mark_pinned(&mut self, pages: Pages) {
        for pin in &self.pins[self.pins_in(pages)] {
            self.mappings.mark(pin.page);
        }
    }

    fn check_access(&self, iova: Iova, len: usize, access: Access) -> Result<(), VfioError> {
        let last = (len as u64).checked_sub(1).ok_or(VfioError::Empty)?;
        if self.mappings.has_invalid_vaddr() {
            return Err(VfioError::VaddrInvalid);
        }
        let last = iova.checked_add(last).ok_or(VfioError::NotMapped)?;
        for page in iova.raw() >> PAGE_SHIFT..=last.raw() >> PAGE_SHIFT {
            let mapping = self.mappings.containing(page).ok_or(VfioError::NotMapped)?;
            if !mapping.permits(access) {
                return Err(VfioError::Permission);
            }
        }
        Ok(())
    }

    /// The guest's address behind `iova`.
    fn gpa_of(&self, iova: Iova) -> Result<Gpa, VfioError> {
        let page = iova.raw() >> PAGE_SHIFT;
        let mapping = self.mappings.containing(page).ok_or(VfioError::NotMapped)?;
        let gpa = mapping.gfn_of(page).gpa();
        gpa.checked_add(iova.page_offset()).ok_or(VfioError::Fault)
    }
}

/// `len` bytes from `iova` on, cut at page boundaries: where each piece begins,
/// and which bytes it is. The range does not wrap.
fn chunks(iova: Iova, len: usize) -> impl Iterator<Item = (Iova, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = iova.checked_add(done as u64)?;
        let in_page = (PAGE_SIZE - at.page_offset()) as usize;
        let bytes = done..len.min(done + in_page);
        done = bytes.end;
        (!bytes.is_empty()).then_some((at, bytes))
    })
}
