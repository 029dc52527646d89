//! Finding the table to work in.

use super::pages::{slot_pages, slot_shift};
use super::{Entry, EntryFormat, Pages, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use heapless::Vec;
use hv_core::Hpa;
use hv_core::memory::PhysMemory;

/// The most slots on the way to a table: those of levels 5 to 2.
const MAX_SLOTS: usize = 4;

/// The way from a root to the lowest table that all of some pages go through, or
/// the one above if they fill that table. For a few pages it is a leaf table: what
/// is done to them is done there, and not from the root down each time.
///
/// It holds as long as no table on it is added or given back.
pub(crate) struct Way<'m> {
    /// What it leads to.
    pub(crate) pages: Pages,
    /// The slots that point to the tables on it, the root's own first.
    pub(super) above: Vec<&'m AtomicU64, MAX_SLOTS>,
    /// The last table.
    pub(super) table: Hpa,
    /// The level of that table.
    pub(super) level: u8,
    /// The slots of that table that the pages go through.
    pub(super) slots: &'m [AtomicU64],
}

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// The way to `pages`.
    pub(crate) fn way(self, root: Hpa, pages: Pages) -> Way<'m> {
        let mut above = Vec::new();
        let (mut table, mut level) = (root, self.levels);
        loop {
            // A table that is wholly covered is treated as one, from the table above.
            if (pages.first ^ pages.last) >> slot_shift(level) == 0
                && pages.count() < slot_pages(level)
                && let Some(slot) = self.slot(table, level, pages.first)
                && let entry = slot.load(Ordering::Acquire)
                && let Entry::Table { table: below, .. } = self.format.decode(level, entry)
                && above.push(slot).is_ok()
            {
                (table, level) = (below, level - 1);
            } else {
                return Way {
                    pages,
                    above,
                    table,
                    level,
                    slots: self.slots_of(table, level, pages),
                };
            }
        }
    }
}
