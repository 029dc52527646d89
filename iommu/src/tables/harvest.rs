//! Taking evidence of writes out of leaves that stay: see [`crate::harvest`].

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Leaf, Pages, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::PhysMemory;

/// How many slots of a leaf table are looked at as one; there is a multiple of them.
const AS_ONE: usize = 32;

/// Shown a leaf that has one of the bits asked for.
type Visit<'a> = &'a mut dyn FnMut(&AtomicU64, Pages, Leaf);

impl<M: PhysMemory, F: EntryFormat> Tables<'_, M, F> {
    /// Clears the evidence in every writable leaf and keeps it in a bit that the
    /// hardware does not know. Returns the hull of the leaves that had any.
    pub(crate) fn take_evidence(&self, root: Hpa) -> Option<Pages> {
        let mut hull: Option<Pages> = None;
        self.for_each_with(
            root,
            self.levels,
            0,
            self.evidence,
            &mut |slot, pages, leaf| {
                if !leaf.access.writes() {
                    return;
                }
                // In one step, so that evidence set meanwhile is either taken or
                // stays. The closure never declines, so neither does the update.
                let _ = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
                    Some((entry | self.format.harvested()) & !self.evidence)
                });
                hull = Some(hull.map_or(pages, |hull| hull.hull(pages)));
            },
        );
        hull
    }

    /// Shows `visit` what [`Tables::take_evidence`] kept, and forgets it.
    pub(crate) fn for_each_taken(&self, root: Hpa, visit: &mut dyn FnMut(Pages, Leaf)) {
        let kept = self.format.harvested();
        self.for_each_with(root, self.levels, 0, kept, &mut |slot, pages, leaf| {
            slot.fetch_and(!kept, Ordering::AcqRel);
            visit(pages, leaf);
        });
    }

    /// Shows `visit` every writable leaf with evidence, which stays in it.
    pub(crate) fn for_each_written(&self, root: Hpa, visit: &mut dyn FnMut(Pages, Leaf)) {
        let evidence = self.evidence;
        self.for_each_with(root, self.levels, 0, evidence, &mut |_, pages, leaf| {
            if leaf.access.writes() {
                visit(pages, leaf);
            }
        });
    }

    /// Clears the evidence in every leaf.
    pub(crate) fn clear_evidence(&self, root: Hpa) {
        let evidence = self.evidence;
        self.for_each_with(root, self.levels, 0, evidence, &mut |slot, _, _| {
            slot.fetch_and(!evidence, Ordering::AcqRel);
        });
    }

    /// Shows `visit` the leaves below `table`, whose first page is `first`, that
    /// have some of `bits`. A leaf without costs one load and no decoding.
    fn for_each_with(&self, table: Hpa, level: u8, first: u64, bits: u64, visit: Visit<'_>) {
        let Some(frame) = self.mem.frame(table) else {
            return;
        };
        if level == 1 {
            return self.for_each_leaf_with(frame.words(), first, bits, visit);
        }
        let span = slot_pages(level);
        for (slot, index) in frame.words().iter().zip(0..) {
            let entry = slot.load(Ordering::Acquire);
            let first = first + index * span;
            match self.format.decode(level, entry) {
                Entry::Table { table, .. } => {
                    self.for_each_with(table, level - 1, first, bits, visit);
                }
                Entry::Leaf(leaf) if entry & bits != 0 => {
                    let last = first + span - 1;
                    visit(slot, Pages { first, last }, leaf);
                }
                Entry::Leaf(_) | Entry::Empty => {}
            }
        }
    }

    /// Most have none of the bits: [`AS_ONE`] slots are looked at as one.
    fn for_each_leaf_with(&self, slots: &[AtomicU64], first: u64, bits: u64, visit: Visit<'_>) {
        let load = |slot: &AtomicU64| slot.load(Ordering::Acquire);
        for (some, index) in slots.as_chunks::<AS_ONE>().0.iter().zip(0..) {
            if some.iter().fold(0, |any, slot| any | load(slot)) & bits == 0 {
                continue;
            }
            for (slot, page) in some.iter().zip(first + index * AS_ONE as u64..) {
                let entry = load(slot);
                if entry & bits != 0
                    && let Entry::Leaf(leaf) = self.format.decode(1, entry)
                {
                    let (first, last) = (page, page);
                    visit(slot, Pages { first, last }, leaf);
                }
            }
        }
    }
}
