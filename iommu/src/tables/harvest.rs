//! Taking evidence of writes out of leaves that stay: see [`crate::harvest`].

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Leaf, Pages, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::PhysMemory;

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
                // The one bit is set and stays so until we clear it, the other is
                // clear and ours: exclusive-or flips both at once, whatever the
                // hardware does to the rest.
                slot.fetch_xor(self.evidence | self.format.harvested(), Ordering::AcqRel);
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
        let span = slot_pages(level);
        for (slot, index) in frame.words().iter().zip(0..) {
            let entry = slot.load(Ordering::Acquire);
            if level == 1 && entry & bits == 0 {
                continue;
            }
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
}
