//! The first step of taking leaves out: the hardware sees them no more, and nothing is
//! forgotten. See [`crate::unmap`] for what follows, and why.

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Leaf, LeafPart, Pages, Place, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::PhysMemory;

/// Says of the leaf over `page` whether it stays.
pub(crate) type Keep<'a> = &'a dyn Fn(u64, Leaf) -> bool;

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// Takes every leaf there (the pages bisect none), or all but those to `keep`, out
    /// of the hardware's sight. Returns the hull of what was taken, `None` if there was
    /// nothing.
    ///
    /// A table that is taken as a whole is cut off at its parent and none of its
    /// leaves is touched; otherwise each leaf loses its rights. Either is one
    /// atomic AND, which leaves the entry in place for the step that follows.
    pub(crate) fn detach(&self, place: &Place<'m>, keep: Option<Keep<'_>>) -> Option<Pages> {
        let mut hull = None;
        match place {
            Place::Leaves(part) => {
                let gone = self.detach_leaves(part, keep, &mut hull);
                if gone > 0 {
                    let live = self.live(part.parent, 2);
                    self.set_live(part.parent, live, live.wrapping_sub(gone));
                }
            }
            Place::Tables { root, pages } => {
                self.detach_below(*root, self.levels, *pages, keep, &mut hull);
            }
        }
        hull
    }

    /// Returns how many slots of `table` fell out of use.
    fn detach_below(
        &self,
        table: Hpa,
        level: u8,
        pages: Pages,
        keep: Option<Keep<'_>>,
        hull: &mut Option<Pages>,
    ) -> u64 {
        let mut gone = 0;
        let slots = self.slots_of(table, level, pages);
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Empty => continue,
                Entry::Leaf(leaf) => {
                    if keep.is_some_and(|keep| keep(part.first, leaf)) {
                        continue;
                    }
                }
                Entry::Table { table, live } => {
                    let is_whole = keep.is_none() && part.count() == slot_pages(level);
                    if !is_whole {
                        let below = if level == 2 {
                            let part = LeafPart {
                                pages: part,
                                slots: self.slots_of(table, 1, part),
                                parent: slot,
                            };
                            self.detach_leaves(&part, keep, hull)
                        } else {
                            self.detach_below(table, level - 1, part, keep, hull)
                        };
                        let left = live.wrapping_sub(below);
                        if self.is_in_use(table, left) {
                            if below > 0 {
                                self.set_live(slot, live, left);
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

    /// Whether `table` has entries in use, of which it counts `live`, those that were
    /// detached not among them.
    fn is_in_use(&self, table: Hpa, live: u64) -> bool {
        // What is in use is attached.
        self.are_some(live, || {
            self.mem.frame(table).is_some_and(|frame| {
                let is_attached =
                    |slot: &AtomicU64| self.format.is_attached(slot.load(Ordering::Acquire));
                frame.words().iter().any(is_attached)
            })
        })
    }

    /// Returns how many leaves went.
    fn detach_leaves(
        &self,
        part: &LeafPart<'m>,
        keep: Option<Keep<'_>>,
        hull: &mut Option<Pages>,
    ) -> u64 {
        let mut gone = 0;
        let (mut first, mut last) = (part.pages.last, part.pages.first);
        for (slot, page) in part.slots.iter().zip(part.pages.first..) {
            let Some(leaf) = self.leaf_in(slot) else {
                continue;
            };
            if keep.is_some_and(|keep| keep(page, leaf)) {
                continue;
            }
            slot.fetch_and(self.format.revoked(), Ordering::AcqRel);
            first = first.min(page);
            last = page;
            gone += 1;
        }
        if gone > 0 {
            let part = Pages { first, last };
            *hull = Some(hull.map_or(part, |hull| hull.hull(part)));
        }
        gone
    }
}
