//! Taking leaves out, in the three steps between which the layer invalidates,
//! drains and reports: see [`crate::unmap`] for why they are three.

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Leaf, Pages, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

/// Says of the leaf over `page` whether it stays.
pub(crate) type Keep<'a> = &'a dyn Fn(u64, Leaf) -> bool;

impl<M: PhysMemory, F: EntryFormat> Tables<'_, M, F> {
    /// Takes every leaf in `pages` (which bisects none), or all but those to
    /// `keep`, out of the hardware's sight. Returns the hull of what was taken,
    /// `None` if there was nothing.
    ///
    /// A table that is taken as a whole is cut off at its parent and none of its
    /// leaves is touched; otherwise each leaf loses its rights. Either is one
    /// atomic AND, which leaves the entry in place for the steps that follow.
    pub(crate) fn detach(self, root: Hpa, pages: Pages, keep: Option<Keep<'_>>) -> Option<Pages> {
        let mut hull = None;
        self.detach_below(root, self.levels, pages, keep, &mut hull);
        hull
    }

    /// Returns how many slots of `table` fell out of use.
    fn detach_below(
        self,
        table: Hpa,
        level: u8,
        pages: Pages,
        keep: Option<Keep<'_>>,
        hull: &mut Option<Pages>,
    ) -> u64 {
        let mut gone = 0;
        for part in pages.parts(level) {
            let Some(slot) = self.slot(table, level, part.first) else {
                continue;
            };
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Empty => continue,
                Entry::Leaf(leaf) => {
                    if keep.is_some_and(|keep| keep(part.first, leaf)) {
                        continue;
                    }
                }
                Entry::Table { table, live } => {
                    let whole = keep.is_none() && part.count() == slot_pages(level);
                    if !whole {
                        let below = self.detach_below(table, level - 1, part, keep, hull);
                        if below < live {
                            if below > 0 {
                                self.set_live(slot, live - below);
                            }
                            continue;
                        }
                    }
                }
            }
            slot.fetch_and(self.format.revoked(), Ordering::AcqRel);
            *hull = Some(hull.map_or(part, |hull| hull.hull(part)));
            gone += 1;
        }
        gone
    }

    /// Shows `visit` every leaf in `pages` that is detached, itself or with a
    /// table above it, with its pages, ascending, and whether there is evidence
    /// that a device wrote there. What it reads is final once the hardware has
    /// drained.
    pub(crate) fn for_each_detached(
        self,
        root: Hpa,
        pages: Pages,
        visit: &mut dyn FnMut(Pages, Leaf, bool),
    ) {
        self.visit_below(root, self.levels, pages, false, visit);
    }

    /// Shows `visit` every leaf in `pages`, attached or not, ascending.
    pub(crate) fn for_each_leaf(self, root: Hpa, pages: Pages, visit: &mut dyn FnMut(Pages, Leaf)) {
        let mut visit = |pages: Pages, leaf: Leaf, _: bool| visit(pages, leaf);
        // As if a table above them all were detached.
        self.visit_below(root, self.levels, pages, true, &mut visit);
    }

    fn visit_below(
        self,
        table: Hpa,
        level: u8,
        pages: Pages,
        detached: bool,
        visit: &mut dyn FnMut(Pages, Leaf, bool),
    ) {
        for part in pages.parts(level) {
            let Some(slot) = self.slot(table, level, part.first) else {
                continue;
            };
            let entry = slot.load(Ordering::Acquire);
            let detached = detached || !self.format.is_attached(entry);
            match self.format.decode(level, entry) {
                Entry::Leaf(leaf) if detached => {
                    let written = leaf.access.writes() && entry & self.evidence != 0;
                    visit(part, leaf, written);
                }
                Entry::Leaf(_) | Entry::Empty => {}
                Entry::Table { table, .. } => {
                    self.visit_below(table, level - 1, part, detached, visit);
                }
            }
        }
    }

    /// Forgets what is detached in `pages` and gives its tables back. Only once
    /// the hardware can have no walk left in them.
    pub(crate) fn release(self, pool: &mut FramePool, root: Hpa, pages: Pages) {
        self.release_below(pool, root, self.levels, pages, false);
    }

    fn release_below(
        self,
        pool: &mut FramePool,
        table: Hpa,
        level: u8,
        pages: Pages,
        in_detached_table: bool,
    ) {
        for part in pages.parts(level) {
            let Some(slot) = self.slot(table, level, part.first) else {
                continue;
            };
            let entry = slot.load(Ordering::Acquire);
            let detached = in_detached_table || !self.format.is_attached(entry);
            let below = match self.format.decode(level, entry) {
                Entry::Empty => continue,
                Entry::Leaf(_) => None,
                Entry::Table { table, .. } => Some(table),
            };
            // A leaf table that goes as a whole is cleared by the pool.
            if let Some(below) = below
                && !(detached && level == 2)
            {
                self.release_below(pool, below, level - 1, part, detached);
            }
            if !detached {
                continue;
            }
            if !in_detached_table {
                slot.store(0, Ordering::Release);
            }
            if let Some(below) = below {
                pool.give_back(self.mem, below);
            }
        }
    }

    /// Notes above a table how many of its entries are in use.
    pub(super) fn set_live(self, slot: &AtomicU64, live: u64) {
        // The closure never declines, so neither does the update.
        let _ = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
            Some(self.format.with_live(entry, live))
        });
    }
}
