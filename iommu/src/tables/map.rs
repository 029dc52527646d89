//! Entering leaves: first a look that changes nothing, then a change that cannot
//! fail.

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Extent, Leaf, LeafPart, Pages, Tables};
use crate::space::Access;
use core::sync::atomic::{AtomicU64, Ordering};
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

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// How many tables have to be added before `extent` can be entered.
    pub(crate) fn missing_tables(&self, root: Hpa, extent: Extent) -> Result<u64, Occupied> {
        self.missing_below(root, self.levels, extent)
    }

    fn missing_below(&self, table: Hpa, level: u8, extent: Extent) -> Result<u64, Occupied> {
        let slots = self.slots_of(table, level, extent.pages);
        if level == 1 {
            return self.check_free(slots).map(|()| 0);
        }
        let mut missing = 0;
        for (slot, part) in slots.iter().zip(extent.parts(level)) {
            missing += match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Leaf(_) => return Err(Occupied),
                Entry::Table { table, .. } => self.missing_below(table, level - 1, part)?,
                Entry::Empty => self.new_tables(level, part),
            };
        }
        Ok(missing)
    }

    /// Whether all of a part of a leaf table is free.
    #[inline]
    pub(crate) fn check_free_part(&self, part: &LeafPart<'m>) -> Result<(), Occupied> {
        self.check_free(part.slots)
    }

    #[inline]
    fn check_free(&self, slots: &[AtomicU64]) -> Result<(), Occupied> {
        let is_free = |slot: &AtomicU64| self.leaf_in(slot).is_none();
        if slots.iter().all(is_free) {
            Ok(())
        } else {
            Err(Occupied)
        }
    }

    /// How many tables have to be added behind an empty slot of a table of `level`
    /// for `part` of what it spans.
    fn new_tables(&self, level: u8, part: Extent) -> u64 {
        match level {
            _ if self.fits_a_leaf(level, part) => 0,
            2 => 1,
            _ => {
                let below = part.parts(level - 1);
                1 + below
                    .map(|part| self.new_tables(level - 1, part))
                    .sum::<u64>()
            }
        }
    }

    /// Enters `extent`, which is all or a part of the mapping over `pages`.
    ///
    /// The caller has asked [`Tables::missing_tables`]: the extent is free, and
    /// `pool` has the tables it takes.
    pub(crate) fn enter(
        &self,
        pool: &mut FramePool,
        root: Hpa,
        extent: Extent,
        pages: Pages,
        access: Access,
    ) {
        let mapping = NewMapping { pages, access };
        self.enter_below(pool, root, self.levels, extent, mapping);
    }

    /// The same in the part of a leaf table that `extent` is, after
    /// [`Tables::check_free_part`].
    #[inline]
    pub(crate) fn enter_part(
        &self,
        part: &LeafPart<'m>,
        extent: Extent,
        pages: Pages,
        access: Access,
    ) {
        let mapping = NewMapping { pages, access };
        let more = self.enter_leaves(part.slots, extent, mapping);
        let live = self.live(part.parent, 2);
        self.set_live(part.parent, live, live + more);
    }

    /// Returns how many slots of `table` came into use.
    fn enter_below(
        &self,
        pool: &mut FramePool,
        table: Hpa,
        level: u8,
        extent: Extent,
        mapping: NewMapping,
    ) -> u64 {
        let slots = self.slots_of(table, level, extent.pages);
        if level == 1 {
            return self.enter_leaves(slots, extent, mapping);
        }
        let mut used = 0;
        for (slot, part) in slots.iter().zip(extent.parts(level)) {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Leaf(_) => {}
                Entry::Table { table, live } => {
                    let more = self.enter_below(pool, table, level - 1, part, mapping);
                    self.set_live(slot, live, live + more);
                }
                Entry::Empty if self.fits_a_leaf(level, part) => {
                    slot.store(self.new_leaf(level, part, mapping), Ordering::Release);
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

    #[inline]
    fn enter_leaves(&self, slots: &[AtomicU64], extent: Extent, mapping: NewMapping) -> u64 {
        for (slot, part) in slots.iter().zip(extent.parts(1)) {
            slot.store(self.new_leaf(1, part, mapping), Ordering::Release);
        }
        slots.len() as u64
    }

    /// The entry for `part` of a mapping.
    fn new_leaf(&self, level: u8, part: Extent, mapping: NewMapping) -> u64 {
        let leaf = Leaf {
            hpa: part.hpa,
            access: mapping.access,
            first: part.pages.first == mapping.pages.first,
            last: part.pages.last == mapping.pages.last,
        };
        self.format.leaf(level, leaf) | self.preset
    }

    fn fits_a_leaf(&self, level: u8, part: Extent) -> bool {
        let pages = slot_pages(level);
        level == 1
            || level == 2
                && self.large_leaves
                && part.pages.count() == pages
                && part.hpa.raw().is_multiple_of(pages * PAGE_SIZE)
    }
}
