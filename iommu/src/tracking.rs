//! Which guest pages devices may have written.
//!
//! Where the tables have no dirty bits that could be trusted ([`crate::dirty_mode`]
//! says where), a page counts as written when a device could write it while writes
//! were tracked. Two moments cover every such page: its unmap reports it (see
//! [`crate::unmap`]), or it is still mapped at the end and [`Iommu::mark_writable`]
//! finds it. Until then it is not marked: sent earlier, it could be written again
//! at once. Where there are such bits, [`Iommu::harvest`] reads them in between.

use crate::IovaRange;
use crate::bitmap::DirtyBitmap;
use crate::layer::Iommu;
use crate::tables::EntryFormat;
use crate::unit::{DomainId, HostUnit, UnitError};
use crate::unmap::UnmapError;
use hv_core::Hpa;
use hv_core::dirty::DirtySource;
use hv_core::memory::PhysMemory;
use hv_core::sabotage::{Sabotage, is_active};

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// Starts tracking: from now on an unmap may be asked for a bitmap. The
    /// guest's dirty log is started before, and the first full copy made after.
    ///
    /// Where the hardware keeps evidence of writes, what is there is cleared, and
    /// large leaves are split as far as there are frames; a leaf that stays large
    /// is reported as a whole.
    ///
    /// # Errors
    /// The unit is lost, and writes are not tracked.
    pub fn start_tracking(&mut self) -> Result<(), UnitError> {
        if self.dirty.reads_tables() {
            self.start_evidence()?;
        }
        self.tracking = true;
        self.pins.begin_epoch();
        Ok(())
    }

    /// Stops tracking, and puts together what was split for it.
    pub fn stop_tracking(&mut self) {
        self.tracking = false;
        if self.dirty.reads_tables()
            && let Err(error) = self.stop_evidence()
        {
            log::error!("leaves stay split: {error}");
        }
    }

    /// Whether writes are tracked.
    pub fn is_tracking(&self) -> bool {
        self.tracking
    }

    /// How many guest pages devices may write at present, each counted once: what
    /// [`Iommu::mark_writable`] would mark.
    pub fn writable_pages(&self) -> u64 {
        if self.domains.identity_is_used() {
            self.guest.frames()
        } else {
            self.pins.writable_pages()
        }
    }

    /// Sets in `bitmap`, from the start of `range` on, the bit of every page of
    /// `domain` a device may write at present. The mappings stay, so the pages may
    /// be written again at once, and the guest's dirty log is not told.
    ///
    /// # Errors
    /// As [`Iommu::unmap`] has them for a bitmap, and nothing is set.
    pub fn report_writable(
        &self,
        domain: DomainId,
        range: IovaRange,
        bitmap: &mut DirtyBitmap<'_>,
    ) -> Result<(), UnmapError> {
        let (root, pages) = self.check_report(domain, range, Some(bitmap))?;
        self.tables.for_each_leaf(root, pages, &mut |at, leaf| {
            if leaf.access.writes() {
                bitmap.set(at.first - pages.first, at.count());
            }
        });
        Ok(())
    }

    /// Marks every page a device may write in the dirty log, whatever evidence
    /// there is. The devices are stopped before, and migration drains the log
    /// after. [`Iommu::harvest_stopped`] does the same with the evidence there is.
    pub fn mark_writable(&self) {
        if is_active(Sabotage::MappedDirty) {
            return;
        }
        if self.domains.identity_is_used() {
            self.mark_all(DirtySource::Mapped);
            return;
        }
        for gfn in self.pins.writable() {
            self.guest.log().mark(gfn, DirtySource::Mapped);
        }
    }

    /// Marks the guest pages in `count` host pages from `hpa` on.
    pub(crate) fn mark_pages(&self, hpa: Hpa, count: u64, source: DirtySource) {
        for (gfn, count) in self.guest.runs_of(hpa, count) {
            self.guest.log().mark_run(gfn, count, source);
        }
    }

    /// Marks all of the guest's memory, which no device reaches by identity any
    /// more.
    pub(crate) fn mark_identity_unmapped(&self) {
        if !is_active(Sabotage::UnmapReport) {
            self.mark_all(DirtySource::Unmap);
        }
    }

    fn mark_all(&self, source: DirtySource) {
        for slot in self.guest.slots() {
            self.guest.log().mark_run(slot.gfn, slot.frames, source);
        }
    }
}
