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
use crate::tables::{Detached, EntryFormat, Keep, Pages, Way};
use crate::unit::{DomainId, HostUnit, Scope, UnitError};
use hv_core::dirty::DirtySource;
use hv_core::memory::PhysMemory;
use hv_core::sabotage::{Sabotage, is_active};
use hv_core::{Hpa, PAGE_SIZE};

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
        let way = self.tables.way(root, pages);
        if self.tables.bisects(&way) {
            return Err(UnmapError::Bisects);
        }
        Ok(self.remove(domain, &way, None, bitmap)?)
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

    /// Removes the mappings in the way's pages, which bisect none, or all but those
    /// to `keep`. The order of its steps is this module's subject.
    pub(crate) fn remove(
        &mut self,
        domain: DomainId,
        way: &Way<'m>,
        keep: Option<Keep<'_>>,
        bitmap: Option<&mut DirtyBitmap<'_>>,
    ) -> Result<Unmapped, UnitError> {
        let Some(touched) = self.tables.detach(way, keep) else {
            return Ok(Unmapped::default());
        };
        let drained = self.drain(domain, Scope::Pages(touched.range()));
        // Also when the drain failed: better a page too many than one too few. Then
        // nothing is released.
        let unmapped = self.report_and_release(way, bitmap, drained.is_ok());
        drained.map(|()| unmapped)
    }

    /// Marks what devices may have written through the detached leaves: what
    /// [`crate::dirty_mode`] takes for evidence, and never a page that was mapped
    /// read-only. Then, if it shall, unpins the pages and forgets the leaves.
    fn report_and_release(
        &mut self,
        way: &Way<'m>,
        mut bitmap: Option<&mut DirtyBitmap<'_>>,
        release: bool,
    ) -> Unmapped {
        let (guest, pins) = (self.guest, &mut self.pins);
        let mut unmapped = Unmapped::default();
        let pool = release.then_some(&mut self.pool);
        self.tables.settle(way, pool, |run: Detached| {
            let (count, access) = (run.pages.count(), run.leaf.access);
            unmapped.pages += count;
            unmapped.mappings += run.mappings;
            if run.written {
                unmapped.dirty += count;
                if let Some(bitmap) = &mut bitmap {
                    bitmap.set(run.pages.first - way.pages.first, count);
                }
            }
            for (gfn, count) in guest.runs_of(run.leaf.hpa, count) {
                if run.written && !is_active(Sabotage::UnmapReport) {
                    guest.log().mark_run(gfn, count, DirtySource::Unmap);
                }
                if release {
                    pins.unpin(gfn, count, access);
                }
            }
        });
        unmapped
    }
}
