//! Large leaves cut into small ones, so that each page has evidence of its own,
//! and put together again.

use super::{Entry, EntryFormat, Leaf, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::memory::{FramePool, PhysMemory, WORDS_PER_FRAME};
use hv_core::{Hpa, PAGE_SIZE};

impl<M: PhysMemory, F: EntryFormat> Tables<'_, M, F> {
    /// Puts a table of small leaves in the place of every large leaf, as far as
    /// `pool` has frames. The hardware may use a large leaf, and set bits for it,
    /// until it has drained.
    pub(crate) fn split_leaves(&self, pool: &mut FramePool, root: Hpa) {
        self.for_each_slot_above_leaves(root, self.levels, &mut |slot, entry| {
            let Entry::Leaf(large) = entry else {
                return;
            };
            let Some(table) = pool.take(self.mem) else {
                return;
            };
            let Some(frame) = self.mem.frame(table) else {
                return;
            };
            for (index, small) in frame.words().iter().enumerate() {
                let leaf = Leaf {
                    hpa: Hpa::new(large.hpa.raw() + index as u64 * PAGE_SIZE),
                    access: large.access,
                    first: large.first && index == 0,
                    last: large.last && index == WORDS_PER_FRAME - 1,
                };
                let entry = self.format.leaf(1, leaf) | self.preset;
                small.store(entry, Ordering::Relaxed);
            }
            // Linked after it is filled: the hardware finds one or the other.
            let entry = self.format.table(2, table, WORDS_PER_FRAME as u64);
            slot.swap(entry, Ordering::Release);
        });
    }

    /// Puts a large leaf in the place of a table whose leaves are one piece of one
    /// mapping, and shows `unlinked` each such table. The hardware may use it until
    /// it has drained. Ends early when `unlinked` says that it takes no more.
    pub(crate) fn merge_leaves(&self, root: Hpa, unlinked: &mut dyn FnMut(Hpa) -> bool) {
        let mut goes_on = true;
        self.for_each_slot_above_leaves(root, self.levels, &mut |slot, entry| {
            let Entry::Table { table, .. } = entry else {
                return;
            };
            if !goes_on {
                return;
            }
            if let Some(large) = self.as_one_leaf(table) {
                let entry = self.format.leaf(2, large) | self.preset;
                slot.swap(entry, Ordering::Release);
                goes_on = unlinked(table);
            }
        });
    }

    /// The large leaf that says the same as all the leaves of `table`.
    fn as_one_leaf(&self, table: Hpa) -> Option<Leaf> {
        let mut leaves = self.mem.frame(table)?.words().iter().map(|slot| {
            match self.format.decode(1, slot.load(Ordering::Acquire)) {
                Entry::Leaf(leaf) => Some(leaf),
                Entry::Table { .. } | Entry::Empty => None,
            }
        });
        let large = leaves.next()??;
        if !large
            .hpa
            .raw()
            .is_multiple_of(WORDS_PER_FRAME as u64 * PAGE_SIZE)
        {
            return None;
        }
        let mut last = large;
        for leaf in leaves {
            let leaf = leaf?;
            let goes_on = !last.last
                && !leaf.first
                && leaf.access == last.access
                && leaf.hpa.raw() == last.hpa.raw() + PAGE_SIZE;
            if !goes_on {
                return None;
            }
            last = leaf;
        }
        let last = last.last;
        Some(Leaf { last, ..large })
    }

    /// Shows `visit` every slot in use in the tables of level 2.
    fn for_each_slot_above_leaves(
        &self,
        table: Hpa,
        level: u8,
        visit: &mut dyn FnMut(&AtomicU64, Entry),
    ) {
        let Some(frame) = self.mem.frame(table) else {
            return;
        };
        for slot in frame.words() {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Empty => {}
                entry if level == 2 => visit(slot, entry),
                Entry::Table { table, .. } => {
                    self.for_each_slot_above_leaves(table, level - 1, visit);
                }
                Entry::Leaf(_) => {}
            }
        }
    }
}
