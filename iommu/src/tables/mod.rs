//! Translation tables, one walker for every entry format.
//!
//! The table is the store: there is no other record of what is mapped. A leaf
//! knows whether its mapping starts or ends there, so whether a range would
//! bisect a mapping is answered by looking at its two edges. The entry above a
//! table counts the entries in use in it, so a table that becomes empty is known
//! without looking through it; but where the format has too few bits for the count,
//! which then wraps, a look settles what is ambiguous.

mod amd_v1;
mod any;
mod detach;
mod format;
mod harvest;
mod leaving;
mod map;
mod pages;
mod place;
mod resize;
mod returned;
mod settle;
mod vtd;
mod vtd_dirty;
mod vtd_first;

pub use amd_v1::AmdV1;
pub use any::AnyFormat;
pub(crate) use detach::Keep;
pub use format::{Entry, EntryFormat, Leaf};
pub(crate) use leaving::{Leaves, Leaving, LoneLeaf};
pub(crate) use pages::{Extent, Pages};
pub(crate) use place::{LastTable, LeafPart, Place};
pub(crate) use settle::{Detached, Show};
pub use vtd::VtdSecondStage;
pub use vtd_dirty::VtdSecondStageDirty;
pub use vtd_first::VtdFirstStage;

use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::memory::PhysMemory;
use hv_core::{Hpa, PAGE_SHIFT};
use pages::{slot_index, slot_pages};

/// How one host remapping unit's tables look, and where they are.
///
/// Callers hold the layer exclusively, so the only other party at the tables is
/// the hardware: it reads entries at any time and, in some formats, sets accessed
/// and dirty bits. Hence entries it may see change by atomic operations only.
pub(crate) struct Tables<'m, M, F> {
    pub(crate) mem: &'m M,
    pub(crate) format: F,
    /// The level of the root.
    pub(crate) levels: u8,
    /// Whether leaves are allowed at level 2.
    pub(crate) large_leaves: bool,
    /// The bits of a leaf any of which is evidence that a device wrote there; all
    /// of them where every page mapped writable counts.
    pub(crate) evidence: u64,
    /// Whether a writable leaf that was taken out by itself counts as written.
    pub(crate) altered_counts: bool,
    /// The bits that a new leaf has set although no device used it.
    pub(crate) preset: u64,
}

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// The number of IOVA bits translated.
    pub(crate) fn address_width(&self) -> u8 {
        self.format.address_bits(self.levels)
    }

    /// The last page that has a translation.
    pub(crate) fn last_page(&self) -> u64 {
        (1 << (u32::from(self.address_width()) - PAGE_SHIFT)) - 1
    }

    /// Every page that has a translation.
    pub(crate) fn all_pages(&self) -> Pages {
        let last = self.last_page();
        Pages { first: 0, last }
    }

    /// The slot of `table` for `page`. A table comes from the pool, which knows
    /// that there is memory, so this is never `None` in practice.
    fn slot(&self, table: Hpa, level: u8, page: u64) -> Option<&'m AtomicU64> {
        self.mem.frame(table)?.words().get(slot_index(level, page))
    }

    /// The slots of `table` that `pages` go through, which all go through `table`.
    /// None where there is no memory, as for [`Tables::slot`].
    fn slots_of(&self, table: Hpa, level: u8, pages: Pages) -> &'m [AtomicU64] {
        let span = slot_index(level, pages.first)..slot_index(level, pages.last) + 1;
        let frame = self.mem.frame(table);
        frame
            .and_then(|frame| frame.words().get(span))
            .unwrap_or_default()
    }

    /// The leaf in a slot of a table of level 1.
    #[inline]
    fn leaf_in(&self, slot: &AtomicU64) -> Option<Leaf> {
        match self.format.decode(1, slot.load(Ordering::Acquire)) {
            Entry::Leaf(leaf) => Some(leaf),
            Entry::Table { .. } | Entry::Empty => None,
        }
    }

    /// The leaf over `page`, and the pages it spans.
    pub(crate) fn lookup(&self, root: Hpa, page: u64) -> Option<(Leaf, Pages)> {
        let mut table = root;
        for level in (1..=self.levels).rev() {
            let entry = self.slot(table, level, page)?.load(Ordering::Acquire);
            match self.format.decode(level, entry) {
                Entry::Empty => return None,
                Entry::Table { table: below, .. } => table = below,
                Entry::Leaf(leaf) => {
                    return Some((leaf, span_of(level, page)));
                }
            }
        }
        None
    }

    /// The first leaf in `pages`, and all the pages it spans.
    pub(crate) fn next_leaf(&self, root: Hpa, pages: Pages) -> Option<(Leaf, Pages)> {
        self.next_leaf_below(root, self.levels, pages)
    }

    /// As much of `pages`, from the first leaf on, as lies in `tables` leaf tables or
    /// leaves as large as one (1 at least), and in how many it lies.
    pub(crate) fn front(&self, root: Hpa, pages: Pages, tables: u32) -> Option<(Pages, u32)> {
        let (mut front, mut count) = (None::<Pages>, 0);
        let mut first = pages.first;
        while count < tables.max(1)
            && first <= pages.last
            && let Some((_, leaf)) = self.next_leaf(root, Pages { first, ..pages })
        {
            let end = span_of(2, leaf.first).last.min(pages.last);
            let part = Pages {
                first: leaf.first.max(first),
                last: end,
            };
            front = Some(front.map_or(part, |front| front.hull(part)));
            (count, first) = (count + 1, end + 1);
        }
        Some((front?, count))
    }

    fn next_leaf_below(&self, table: Hpa, level: u8, pages: Pages) -> Option<(Leaf, Pages)> {
        let slots = self.slots_of(table, level, pages).iter();
        slots.zip(pages.parts(level)).find_map(|(slot, part)| {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Empty => None,
                Entry::Table { table, .. } => self.next_leaf_below(table, level - 1, part),
                Entry::Leaf(leaf) => Some((leaf, span_of(level, part.first))),
            }
        })
    }

    /// Shows `visit` every leaf in `pages`, attached or not, ascending.
    pub(crate) fn for_each_leaf(
        &self,
        root: Hpa,
        pages: Pages,
        visit: &mut dyn FnMut(Pages, Leaf),
    ) {
        self.visit_below(root, self.levels, pages, visit);
    }

    fn visit_below(&self, table: Hpa, level: u8, pages: Pages, visit: &mut dyn FnMut(Pages, Leaf)) {
        let slots = self.slots_of(table, level, pages);
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Leaf(leaf) => visit(part, leaf),
                Entry::Empty => {}
                Entry::Table { table, .. } => self.visit_below(table, level - 1, part, visit),
            }
        }
    }

    /// Whether `part` begins or ends inside a mapping.
    #[inline]
    pub(crate) fn part_bisects(&self, part: &LeafPart<'m>) -> bool {
        let leaf_in = |slot: Option<&AtomicU64>| self.leaf_in(slot?);
        leaf_in(part.slots.first()).is_some_and(|leaf| !leaf.first)
            || leaf_in(part.slots.last()).is_some_and(|leaf| !leaf.last)
    }

    /// Whether `pages` begin or end inside a mapping.
    pub(crate) fn bisects(&self, root: Hpa, pages: Pages) -> bool {
        let over = |page| self.lookup(root, page);
        over(pages.first).is_some_and(|(leaf, span)| !leaf.first || span.first != pages.first)
            || over(pages.last).is_some_and(|(leaf, span)| !leaf.last || span.last != pages.last)
    }
}

/// The pages of the slot of a table of `level` for `page`.
const fn span_of(level: u8, page: u64) -> Pages {
    let first = page & !(slot_pages(level) - 1);
    let last = first + slot_pages(level) - 1;
    Pages { first, last }
}
