//! Leaves on their way out: the steps, for any number of them and for one.

use super::detach::Keep;
use super::{Entry, EntryFormat, Pages, Place, Show, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::memory::{FramePool, PhysMemory};

/// Leaves that go together, by the steps of [`crate::unmap`], which says what comes
/// between them and why.
pub(crate) trait Leaving<'m, M, F> {
    /// The first of their pages, or one before it.
    fn first_page(&self) -> u64;

    /// Takes them out of the hardware's sight. Returns the hull of what was taken,
    /// `None` if there was nothing.
    fn detach(&self, tables: &Tables<'m, M, F>) -> Option<Pages>;

    /// Does so once more with those that came back; `None` if all stayed detached.
    fn detach_returned(&self, tables: &Tables<'m, M, F>) -> Option<Pages>;

    /// Shows each. With a `pool` it is then forgotten, and tables that went with it go
    /// back to the pool.
    fn settle(&self, tables: &Tables<'m, M, F>, pool: Option<&mut FramePool>, show: &mut impl Show);
}

/// All leaves at a place, or all but those to keep. The place bisects no mapping.
pub(crate) struct Leaves<'m, 'k> {
    pub(crate) place: Place<'m>,
    pub(crate) keep: Option<Keep<'k>>,
}

impl<'m, M: PhysMemory, F: EntryFormat> Leaving<'m, M, F> for Leaves<'m, '_> {
    fn first_page(&self) -> u64 {
        self.place.pages().first
    }

    fn detach(&self, tables: &Tables<'m, M, F>) -> Option<Pages> {
        tables.detach(&self.place, self.keep)
    }

    fn detach_returned(&self, tables: &Tables<'m, M, F>) -> Option<Pages> {
        tables.detach_returned(&self.place, self.keep)
    }

    fn settle(
        &self,
        tables: &Tables<'m, M, F>,
        pool: Option<&mut FramePool>,
        show: &mut impl Show,
    ) {
        tables.settle(&self.place, pool, show);
    }
}

/// One leaf that is a mapping of its own, in a table with others: what drivers unmap
/// most. There is nothing to search, and no table goes with it.
pub(crate) struct LoneLeaf<'m> {
    pub(super) page: u64,
    pub(super) slot: &'m AtomicU64,
    /// The slot, in a table of level 2, that points to the table.
    pub(super) parent: &'m AtomicU64,
    /// How many entries of the table are in use, this one included.
    pub(super) live: u64,
}

impl<'m, M: PhysMemory, F: EntryFormat> Leaving<'m, M, F> for LoneLeaf<'m> {
    #[inline(always)]
    fn first_page(&self) -> u64 {
        self.page
    }

    #[inline(always)]
    fn detach(&self, tables: &Tables<'m, M, F>) -> Option<Pages> {
        self.slot
            .fetch_and(tables.format.revoked(), Ordering::AcqRel);
        tables.set_live(self.parent, self.live, self.live - 1);
        Some(Pages::one(self.page))
    }

    fn detach_returned(&self, tables: &Tables<'m, M, F>) -> Option<Pages> {
        let revoked = tables.format.revoked();
        let before = self.slot.fetch_and(revoked, Ordering::AcqRel);
        tables
            .format
            .is_attached(before)
            .then(|| Pages::one(self.page))
    }

    #[inline(always)]
    fn settle(
        &self,
        tables: &Tables<'m, M, F>,
        pool: Option<&mut FramePool>,
        show: &mut impl Show,
    ) {
        let entry = self.slot.load(Ordering::Acquire);
        let Entry::Leaf(leaf) = tables.format.decode(1, entry) else {
            return;
        };
        let pages = Pages::one(self.page);
        tables.settle_leaf(self.slot, pages, (entry, leaf), pool.is_some(), show);
    }
}
