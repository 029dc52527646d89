//! Entering leaves: first a look that changes nothing, then a change that cannot
//! fail.

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Extent, Leaf, Pages, Tables};
use crate::space::Access;
use core::sync::atomic::Ordering;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::{Hpa, PAGE_SIZE};

/// Some page of the range is mapped already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Occupied;

/// What is the same for every leaf of a mapping.
#[derive(Clone, Copy)]
struct NewMapping {
    /// All its pages.
    pages: Pages,
    access: Access,
}

impl<M: PhysMemory, F: EntryFormat> Tables<'_, M, F> {
    /// How many tables have to be added before `extent` can be entered.
    pub(crate) fn missing_tables(self, root: Hpa, extent: Extent) -> Result<u64, Occupied> {
        let way = self.way(root, extent.pages);
        self.missing_below(Some(way.table), way.level, extent)
    }

    /// `table` is `None` where it would have to be added.
    fn missing_below(self, table: Option<Hpa>, level: u8, extent: Extent) -> Result<u64, Occupied> {
        let mut missing = 0;
        for part in extent.parts(level) {
            let entry = table
                .and_then(|table| self.slot(table, level, part.pages.first))
                .map_or(0, |slot| slot.load(Ordering::Acquire));
            missing += match self.format.decode(level, entry) {
                Entry::Leaf(_) => return Err(Occupied),
                Entry::Table { table, .. } => self.missing_below(Some(table), level - 1, part)?,
                Entry::Empty if self.fits_a_leaf(level, part) => 0,
                // Nothing is occupied there, and leaf tables have no tables below.
                Entry::Empty if level == 2 => 1,
                Entry::Empty => 1 + self.missing_below(None, level - 1, part)?,
            };
        }
        Ok(missing)
    }

    /// Enters `extent`, which is all or a part of the mapping over `pages`.
    ///
    /// The caller has asked [`Tables::missing_tables`]: the extent is free, and
    /// `pool` has the tables it takes.
    pub(crate) fn enter(
        self,
        pool: &mut FramePool,
        root: Hpa,
        extent: Extent,
        pages: Pages,
        access: Access,
    ) {
        let mapping = NewMapping { pages, access };
        let way = self.way(root, extent.pages);
        let more = self.enter_below(pool, way.table, way.level, extent, mapping);
        if let Some(slot) = way.above.last() {
            let entry = slot.load(Ordering::Acquire);
            if let Entry::Table { live, .. } = self.format.decode(way.level + 1, entry) {
                self.set_live(slot, live + more);
            }
        }
    }

    /// Returns how many slots of `table` came into use.
    fn enter_below(
        self,
        pool: &mut FramePool,
        table: Hpa,
        level: u8,
        extent: Extent,
        mapping: NewMapping,
    ) -> u64 {
        let mut used = 0;
        for part in extent.parts(level) {
            let Some(slot) = self.slot(table, level, part.pages.first) else {
                continue;
            };
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Leaf(_) => {}
                Entry::Table { table, live } => {
                    let more = self.enter_below(pool, table, level - 1, part, mapping);
                    self.set_live(slot, live + more);
                }
                Entry::Empty if self.fits_a_leaf(level, part) => {
                    let leaf = Leaf {
                        hpa: part.hpa,
                        access: mapping.access,
                        first: part.pages.first == mapping.pages.first,
                        last: part.pages.last == mapping.pages.last,
                    };
                    let entry = self.format.leaf(level, leaf) | self.preset;
                    slot.store(entry, Ordering::Release);
                    used += 1;
                }
                Entry::Empty => {
                    let Some(below) = pool.take(self.mem) else {
                        continue;
                    };
                    let live = self.enter_below(pool, below, level - 1, part, mapping);
                    // Linked after it is filled: the hardware finds all or nothing.
                    slot.store(self.format.table(level, below, live), Ordering::Release);
                    used += 1;
                }
            }
        }
        used
    }

    fn fits_a_leaf(self, level: u8, part: Extent) -> bool {
        let pages = slot_pages(level);
        level == 1
            || level == 2
                && self.large_leaves
                && part.pages.count() == pages
                && part.hpa.raw().is_multiple_of(pages * PAGE_SIZE)
    }
}
