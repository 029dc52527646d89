//! The unmap: no device write is lost, and none comes later.
//!
//! ```text
//!             the tables                 the device                 the report
//!  detach     leaf R=W=0, or the         cached translations
//!             way to its table cut       still serve writes
//!  drain      (the same)                 translations dropped,
//!                                        last write has landed
//!  report     read what was writable     faults                     dirty log, bitmap
//!  release    entries zero, pages        faults
//!             unpinned, tables freed
//! ```
//!
//! # Why in this order
//! *Detach before drain*: a translation dropped from a cache whose table entry is
//! still there comes back with the next DMA. *All detached before one drain*:
//! that costs one wait for any number of pages.
//!
//! *Drain before report*: until then a write may be under way. Reported earlier,
//! migration could read and send the page before that write lands, and nobody
//! would mark it again. Where hardware keeps dirty bits it may also set one until
//! then; read afterwards, the bits are final. There the two ways to detach
//! matter: a table cut off as a whole has leaves that nobody modified, so the
//! hardware's update finds what it expects; an edge leaf loses R and W together,
//! since one that stays readable could be cached anew after the invalidation.
//! Neither needs a second drain.
//!
//! *Report before release*: an unpinned page may be given to somebody else, and
//! one that is marked late may miss migration's last look at the log.
//!
//! *Release after drain*: until then the hardware may walk the tables that were
//! cut off, and in a freed one it would find anything.
//!
//! Detached entries are the only list of what to report and release. The layer is
//! held exclusively from the first step to the last, so nothing is mapped over
//! them.

use crate::IovaRange;
use crate::bitmap::DirtyBitmap;
use crate::layer::Iommu;
use crate::pins::PinTracker;
use crate::tables::{Detached, EntryFormat, Keep, LeafPart, Leaves, Leaving, Pages, Place, Show};
use crate::unit::{DomainId, HostUnit, Scope, UnitError};
use hv_core::dirty::DirtySource;
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::sabotage::{Sabotage, is_active};
use hv_core::{Hpa, PAGE_SIZE};

/// How often a leaf can come back: once for its accessed and its dirty bit each.
const MAX_RETURNS: usize = 2;

/// What an unmap did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Unmapped {
    /// Pages that were mapped, in the sizes of the mappings, not of the request.
    pub pages: u64,
    /// Mappings they belonged to.
    pub mappings: u64,
    /// Pages of them that a device may have written.
    pub dirty: u64,
}

impl Unmapped {
    /// The bytes unmapped.
    pub const fn bytes(&self) -> u64 {
        self.pages.saturating_mul(PAGE_SIZE)
    }
}

/// Why [`Iommu::unmap`] failed. Nothing changed, except after
/// [`UnmapError::Unit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmapError {
    /// There is no such domain.
    #[error("no such domain")]
    NoDomain,
    /// The range lies beyond the domain's address width.
    #[error("the range is beyond what the unit translates")]
    OutOfRange,
    /// The range begins or ends inside a mapping.
    #[error("the range bisects a mapping")]
    Bisects,
    /// A bitmap was asked for, and dirty tracking is off.
    #[error("dirty pages are not tracked")]
    NotTracking,
    /// The bitmap has fewer bits than the range has pages.
    #[error("the bitmap is too small for the range")]
    BitmapTooSmall,
    /// The hardware did not confirm. The pages are reported as dirty, but devices
    /// may go on writing them: they stay pinned, and the unit is lost.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

impl<'m, M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'m, M, U, F> {
    /// Unmaps every mapping in `range`, holes allowed, and reports the pages
    /// devices may have written: in the guest's dirty log by guest frame, and in
    /// `bitmap` by IOVA, from the start of `range` on.
    ///
    /// When it returns, no device reaches the pages any more, and every write
    /// that did is both visible and reported.
    pub fn unmap(
        &mut self,
        domain: DomainId,
        range: IovaRange,
        bitmap: Option<&mut DirtyBitmap<'_>>,
    ) -> Result<Unmapped, UnmapError> {
        self.check_unit()?;
        let (root, pages) = self.check_report(domain, range, bitmap.as_deref())?;
        self.take_out(domain, root, pages, bitmap)
    }

    /// Removes the mappings in `pages`, unless these bisect one.
    #[inline(always)]
    pub(crate) fn take_out(
        &mut self,
        domain: DomainId,
        root: Hpa,
        pages: Pages,
        bitmap: Option<&mut DirtyBitmap<'_>>,
    ) -> Result<Unmapped, UnmapError> {
        let part = self.leaf_part(root, pages);
        match part.as_ref().and_then(|part| self.tables.lone_leaf(part)) {
            Some(leaf) => Ok(self.remove(domain, &leaf, bitmap)?),
            None => self.take_out_any(domain, root, pages, part, bitmap),
        }
    }

    #[inline(never)]
    fn take_out_any(
        &mut self,
        domain: DomainId,
        root: Hpa,
        pages: Pages,
        part: Option<LeafPart<'m>>,
        bitmap: Option<&mut DirtyBitmap<'_>>,
    ) -> Result<Unmapped, UnmapError> {
        let bisects = match &part {
            Some(part) => self.tables.part_bisects(part),
            None => self.tables.bisects(root, pages),
        };
        if bisects {
            return Err(UnmapError::Bisects);
        }
        let place = self.place(part, root, pages);
        Ok(self.remove_any(domain, place, None, bitmap)?)
    }

    /// The tables of `domain` and the pages of `range`, if they exist and `bitmap`
    /// can take a report on them.
    pub(crate) fn check_report(
        &self,
        domain: DomainId,
        range: IovaRange,
        bitmap: Option<&DirtyBitmap<'_>>,
    ) -> Result<(Hpa, Pages), UnmapError> {
        let root = self.domains.root(domain).ok_or(UnmapError::NoDomain)?;
        let pages = Pages::from(range);
        if pages.last > self.tables.last_page() {
            return Err(UnmapError::OutOfRange);
        }
        if let Some(bitmap) = bitmap {
            if !self.tracking {
                return Err(UnmapError::NotTracking);
            }
            if bitmap.pages() < pages.count() {
                return Err(UnmapError::BitmapTooSmall);
            }
        }
        Ok((root, pages))
    }

    /// Removes the mappings at `place`, whose pages bisect none, or all but those
    /// to `keep`.
    #[inline(never)]
    pub(crate) fn remove_any(
        &mut self,
        domain: DomainId,
        place: Place<'m>,
        keep: Option<Keep<'_>>,
        bitmap: Option<&mut DirtyBitmap<'_>>,
    ) -> Result<Unmapped, UnitError> {
        self.remove(domain, &Leaves { place, keep }, bitmap)
    }

    /// Removes `leaves`. The order of its steps is this module's subject.
    #[inline(always)]
    fn remove(
        &mut self,
        domain: DomainId,
        leaves: &impl Leaving<'m, M, F>,
        bitmap: Option<&mut DirtyBitmap<'_>>,
    ) -> Result<Unmapped, UnitError> {
        let Some(touched) = leaves.detach(&self.tables) else {
            return Ok(Unmapped::default());
        };
        let mut drained = self.drain(domain, Scope::Pages(touched.range()));
        if drained.is_ok() && self.dirty.leaves_return {
            drained = self.drain_returned(domain, leaves);
        }
        // Also when the drain failed: better a page too many than one too few. Then
        // nothing is released.
        let unmapped = self.report_and_release(leaves, bitmap, drained.is_ok());
        drained.map(|()| unmapped)
    }

    /// Detaches and drains anew what came back during the drain, until nothing does:
    /// on units that may bring leaves back (see [`crate::dirty_mode`]).
    #[inline(never)]
    fn drain_returned(
        &mut self,
        domain: DomainId,
        leaves: &impl Leaving<'m, M, F>,
    ) -> Result<(), UnitError> {
        for _ in 0..=MAX_RETURNS {
            let Some(returned) = leaves.detach_returned(&self.tables) else {
                return Ok(());
            };
            self.drain(domain, Scope::Pages(returned.range()))?;
        }
        self.unit_is_lost = true;
        log::error!("the remapping unit is lost, it keeps leaves of {domain:?}");
        Err(UnitError::NoAnswer)
    }

    /// Marks what devices may have written through the detached leaves: what
    /// [`crate::dirty_mode`] takes for evidence, and never a page that was mapped
    /// read-only. Then, if it shall, unpins the pages and forgets the leaves.
    #[inline(always)]
    fn report_and_release(
        &mut self,
        leaves: &impl Leaving<'m, M, F>,
        bitmap: Option<&mut DirtyBitmap<'_>>,
        release: bool,
    ) -> Unmapped {
        let mut report = Report {
            guest: self.guest,
            pins: release.then_some(&mut self.pins),
            bitmap,
            first: leaves.first_page(),
            unmapped: Unmapped::default(),
        };
        let pool = release.then_some(&mut self.pool);
        leaves.settle(&self.tables, pool, &mut report);
        report.unmapped
    }
}

/// Where detached leaves are reported, and their pages released.
struct Report<'r, 'm, 'b, M> {
    guest: &'m GuestMemory<'m, M>,
    /// `None` where nothing is released.
    pins: Option<&'r mut PinTracker<'m>>,
    bitmap: Option<&'r mut DirtyBitmap<'b>>,
    /// The page of the bitmap's first bit.
    first: u64,
    unmapped: Unmapped,
}

impl<M: PhysMemory> Show for Report<'_, '_, '_, M> {
    #[inline(always)]
    fn show(&mut self, run: Detached) {
        let count = run.pages.count();
        self.unmapped.pages += count;
        self.unmapped.mappings += run.mappings;
        if run.written {
            self.unmapped.dirty += count;
        }
        if count > 1 {
            return self.show_many(&run, count);
        }
        if run.written
            && let Some(bitmap) = &mut self.bitmap
        {
            bitmap.set_one(run.pages.first - self.first);
        }
        if let Some(gfn) = self.guest.gfn_of(run.leaf.hpa) {
            if run.written && !is_active(Sabotage::UnmapReport) {
                self.guest.log().mark(gfn, DirtySource::Unmap);
            }
            if let Some(pins) = &mut self.pins {
                pins.unpin(gfn, 1, run.leaf.access);
            }
        }
    }
}

impl<M: PhysMemory> Report<'_, '_, '_, M> {
    /// The rest for more pages than one.
    #[inline(never)]
    fn show_many(&mut self, run: &Detached, count: u64) {
        if run.written
            && let Some(bitmap) = &mut self.bitmap
        {
            bitmap.set(run.pages.first - self.first, count);
        }
        for (gfn, count) in self.guest.runs_of(run.leaf.hpa, count) {
            if run.written && !is_active(Sabotage::UnmapReport) {
                let log = self.guest.log();
                log.mark_run(gfn, count, DirtySource::Unmap);
            }
            if let Some(pins) = &mut self.pins {
                pins.unpin(gfn, count, run.leaf.access);
            }
        }
    }
}
