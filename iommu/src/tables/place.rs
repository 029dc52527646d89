//! Where some pages are found: in a part of one leaf table, as mostly, or in many
//! tables.

use super::pages::{slot_index, slot_pages};
use super::{Entry, EntryFormat, LoneLeaf, Pages, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory, WORDS_PER_FRAME};

/// What is to be unmapped.
#[derive(Clone, Copy)]
pub(crate) enum Place<'m> {
    /// A part of a leaf table of which other parts are in use too. No table goes with
    /// it, and no walk is needed.
    Leaves(LeafPart<'m>),
    /// Anything below a root.
    Tables {
        /// The root.
        root: Hpa,
        /// The pages.
        pages: Pages,
    },
}

impl Place<'_> {
    /// The pages there.
    pub(crate) fn pages(&self) -> Pages {
        match self {
            Self::Leaves(part) => part.pages,
            Self::Tables { pages, .. } => *pages,
        }
    }
}

/// A part of a leaf table.
#[derive(Clone, Copy)]
pub(crate) struct LeafPart<'m> {
    pub(super) pages: Pages,
    /// Of these pages.
    pub(super) slots: &'m [AtomicU64],
    /// The slot, in a table of level 2, that points to the table.
    pub(super) parent: &'m AtomicU64,
}

/// A leaf table.
struct LeafTable<'m> {
    /// The page of its first slot.
    first: u64,
    slots: &'m [AtomicU64; WORDS_PER_FRAME],
    /// As in [`LeafPart`].
    parent: &'m AtomicU64,
}

impl<'m> LeafTable<'m> {
    /// What it has of `pages`; `None` if some of these are not in it, or they are all
    /// there is.
    #[inline]
    fn part(&self, pages: Pages) -> Option<LeafPart<'m>> {
        let first = usize::try_from(pages.first.wrapping_sub(self.first)).ok()?;
        let count = usize::try_from(pages.count()).ok()?;
        if count >= WORDS_PER_FRAME {
            return None;
        }
        Some(LeafPart {
            pages,
            slots: self.slots.get(first..first.wrapping_add(count))?,
            parent: self.parent,
        })
    }
}

/// The leaf table that was worked in last. Drivers use one over and over, so the next
/// call mostly needs no walk.
#[derive(Default)]
pub(crate) struct LastTable<'m>(Option<Found<'m>>);

struct Found<'m> {
    root: Hpa,
    /// How often the pool had got a frame back by then. As it has got none since, the
    /// table is still what it was, and so is the one above.
    returns: u64,
    table: LeafTable<'m>,
}

impl<'m> LastTable<'m> {
    /// The part of a leaf table that `pages` are; `None` if they are all of one, in
    /// several, or in none that is there.
    #[inline]
    pub(crate) fn part<M: PhysMemory, F: EntryFormat>(
        &mut self,
        tables: &Tables<'m, M, F>,
        pool: &FramePool,
        root: Hpa,
        pages: Pages,
    ) -> Option<LeafPart<'m>> {
        if let Some(found) = &self.0
            && found.root == root
            && found.returns == pool.returns()
            && let Some(part) = found.table.part(pages)
        {
            return Some(part);
        }
        self.find(tables, pool, root, pages)
    }

    #[cold]
    fn find<M: PhysMemory, F: EntryFormat>(
        &mut self,
        tables: &Tables<'m, M, F>,
        pool: &FramePool,
        root: Hpa,
        pages: Pages,
    ) -> Option<LeafPart<'m>> {
        if pages.count() >= slot_pages(2) {
            return None;
        }
        let table = tables.leaf_table(root, pages.first)?;
        let part = table.part(pages)?;
        self.0 = Some(Found {
            root,
            returns: pool.returns(),
            table,
        });
        Some(part)
    }
}

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// The leaf table over `page`, if there is one.
    fn leaf_table(&self, root: Hpa, page: u64) -> Option<LeafTable<'m>> {
        let mut table = root;
        let mut level = self.levels;
        loop {
            let slot = self.slot(table, level, page)?;
            let entry = slot.load(Ordering::Acquire);
            let Entry::Table { table: below, .. } = self.format.decode(level, entry) else {
                return None;
            };
            (table, level) = (below, level - 1);
            if level == 1 {
                return Some(LeafTable {
                    first: page & !(slot_pages(2) - 1),
                    slots: self.mem.frame(table)?.words(),
                    parent: slot,
                });
            }
        }
    }

    /// The one leaf of `part`, if it is a mapping of its own and the table has others
    /// for sure.
    #[inline(always)]
    pub(crate) fn lone_leaf(&self, part: &LeafPart<'m>) -> Option<LoneLeaf<'m>> {
        let [slot] = part.slots else { return None };
        let leaf = self.leaf_in(slot)?;
        let live = self.live(part.parent, 2);
        (leaf.first && leaf.last && live > 1).then_some(LoneLeaf {
            page: part.pages.first,
            slot,
            parent: part.parent,
            live,
        })
    }

    /// Whether the table has entries in use besides those of `part`.
    #[inline]
    pub(crate) fn is_shared(&self, part: &LeafPart<'m>) -> bool {
        let live = self.live(part.parent, 2);
        if live > part.slots.len() as u64 {
            return true;
        }
        let in_use = part
            .slots
            .iter()
            .filter(|slot| self.leaf_in(slot).is_some());
        let others = live.wrapping_sub(in_use.count() as u64);
        self.is_shared_by(part, others)
    }

    /// Whether the table has entries in use besides those of `part`, by its count of
    /// them.
    fn is_shared_by(&self, part: &LeafPart<'m>, others: u64) -> bool {
        self.are_some(others, || {
            match self.format.decode(2, part.parent.load(Ordering::Acquire)) {
                Entry::Table { table, .. } => self.has_leaf_outside(table, part.pages),
                Entry::Leaf(_) | Entry::Empty => false,
            }
        })
    }

    /// Whether a count of entries in use, as the format keeps it, is one of any. One
    /// that reads 0 may be of none or of as many as wrap: then a look at them decides.
    #[inline]
    pub(super) fn are_some(&self, count: u64, look: impl FnOnce() -> bool) -> bool {
        let wraps = self.format.live_wraps();
        !count.is_multiple_of(wraps) || wraps <= WORDS_PER_FRAME as u64 && look()
    }

    /// Whether a table of level 1 has a leaf beside those of `pages`.
    fn has_leaf_outside(&self, table: Hpa, pages: Pages) -> bool {
        let [first, last] = [pages.first, pages.last].map(|page| slot_index(1, page));
        self.mem.frame(table).is_some_and(|frame| {
            let slots = frame.words().iter().enumerate();
            let mut outside = slots.filter(|(index, _)| *index < first || last < *index);
            outside.any(|(_, slot)| self.leaf_in(slot).is_some())
        })
    }

    /// How many entries are in use in the table behind a slot of a table of `level`.
    #[inline]
    pub(super) fn live(&self, slot: &AtomicU64, level: u8) -> u64 {
        match self.format.decode(level, slot.load(Ordering::Acquire)) {
            Entry::Table { live, .. } => live,
            Entry::Leaf(_) | Entry::Empty => 0,
        }
    }

    /// Notes how many that are from now on, and not `before` any more.
    #[inline]
    pub(super) fn set_live(&self, slot: &AtomicU64, before: u64, live: u64) {
        // The number is ours alone, so flipping its bits sets it, whatever the
        // hardware does to others meanwhile.
        let change = self.format.live_bits(before) ^ self.format.live_bits(live);
        slot.fetch_xor(change, Ordering::AcqRel);
    }
}
