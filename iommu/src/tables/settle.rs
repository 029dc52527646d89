//! The last step of taking leaves out: what was detached is shown and forgotten.

use super::{Entry, EntryFormat, Leaf, Pages, Place, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

/// How many slots are gone through without a look whether it is the last.
const MANY: usize = 16;

/// Detached leaves side by side: equal but for their addresses, and contiguous in
/// host memory.
#[derive(Clone, Copy)]
pub(crate) struct Detached {
    /// What they translated.
    pub(crate) pages: Pages,
    /// The first one.
    pub(crate) leaf: Leaf,
    /// How many mappings end in them.
    pub(crate) mappings: u64,
    /// Whether there is evidence that a device wrote there.
    pub(crate) written: bool,
}

/// Is shown what was detached.
pub(crate) trait Show {
    /// Called for each run of leaves, ascending.
    fn show(&mut self, run: Detached);
}

impl<F: FnMut(Detached)> Show for F {
    fn show(&mut self, run: Detached) {
        self(run);
    }
}

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// Shows every leaf there that is detached, itself or with a table above it. What
    /// is read is final once the hardware has drained.
    ///
    /// With a `pool` each is forgotten after it was shown, and the tables that were
    /// cut off go back to the pool. Only once the hardware can have no walk left in
    /// them.
    pub(crate) fn settle(
        &self,
        place: &Place<'m>,
        pool: Option<&mut FramePool>,
        show: &mut impl Show,
    ) {
        let forget = pool.is_some();
        match place {
            Place::Leaves(part) => {
                self.settle_leaves(part.slots, part.pages.first, false, forget, show);
            }
            Place::Tables { root, pages } => {
                let mut settling = Settling {
                    tables: self,
                    pool,
                    show,
                };
                settling.visit(*root, self.levels, *pages, false);
            }
        }
    }

    /// Settles those leaves in `slots` of a leaf table, the first one of page `first`,
    /// that are detached. Neighbours that differ in nothing but their addresses are
    /// taken together: drivers map buffers page by page, and this makes them one.
    #[inline(always)]
    fn settle_leaves(
        &self,
        slots: &[AtomicU64],
        first: u64,
        below_a_cut: bool,
        forget: bool,
        show: &mut impl Show,
    ) {
        let (mut rest, mut page) = (slots, first);
        while let Some((slot, after)) = rest.split_first() {
            let entry = slot.load(Ordering::Acquire);
            let mut count = 1;
            if (below_a_cut || !self.format.is_attached(entry))
                && let Entry::Leaf(leaf) = self.format.decode(1, entry)
            {
                let follows = |next: &AtomicU64| {
                    next.load(Ordering::Acquire) == self.format.further(entry, 1)
                };
                if !leaf.last || after.first().is_some_and(follows) {
                    count = self.settle_run(rest, page, (entry, leaf), forget, show);
                } else {
                    self.settle_leaf(slot, Pages::one(page), (entry, leaf), forget, show);
                }
            }
            rest = rest.get(count..).unwrap_or_default();
            page += count as u64;
        }
    }

    /// Settles one leaf over `pages`.
    #[inline(always)]
    pub(super) fn settle_leaf(
        &self,
        slot: &AtomicU64,
        pages: Pages,
        (entry, leaf): (u64, Leaf),
        forget: bool,
        show: &mut impl Show,
    ) {
        show.show(Detached {
            pages,
            leaf,
            mappings: u64::from(leaf.last),
            written: self.is_written(entry, leaf),
        });
        if forget {
            slot.store(0, Ordering::Release);
        }
    }

    /// Settles as many leaves from the first of `slots` on as are alike, and returns
    /// how many. Never inlined, so that one leaf alone is settled in a few registers.
    #[inline(never)]
    fn settle_run(
        &self,
        slots: &[AtomicU64],
        first: u64,
        (entry, leaf): (u64, Leaf),
        forget: bool,
        show: &mut impl Show,
    ) -> usize {
        let (slots, mappings) = alike(self.format, (entry, leaf), slots);
        let count = slots.len() as u64;
        show.show(Detached {
            pages: Pages {
                first,
                last: first + count - 1,
            },
            leaf,
            mappings,
            // The first one speaks for all: they are alike in the evidence too.
            written: self.is_written(entry, leaf),
        });
        if forget {
            clear(slots);
        }
        slots.len()
    }

    /// Whether a leaf that was taken out, itself or with its table, shows a write.
    #[inline(always)]
    fn is_written(&self, entry: u64, leaf: Leaf) -> bool {
        let altered = || self.altered_counts && !self.format.is_attached(entry);
        leaf.access.writes() && (entry & self.evidence != 0 || altered())
    }

    /// Gives back a table that has no entries in use.
    fn give_back_empty(&self, pool: &mut FramePool, table: Hpa) {
        if self.format.hardware_writes() {
            pool.give_back(self.mem, table);
        } else {
            pool.give_back_zero(self.mem, table);
        }
    }
}

/// The walk of [`Tables::settle`].
struct Settling<'t, 'm, M, F, S> {
    tables: &'t Tables<'m, M, F>,
    /// Where tables go; `None` leaves everything as it is.
    pool: Option<&'t mut FramePool>,
    show: &'t mut S,
}

impl<M: PhysMemory, F: EntryFormat, S: Show> Settling<'_, '_, M, F, S> {
    fn visit(&mut self, table: Hpa, level: u8, pages: Pages, below_a_cut: bool) {
        let tables = self.tables;
        let forget = self.pool.is_some();
        let slots = tables.slots_of(table, level, pages);
        if level == 1 {
            return tables.settle_leaves(slots, pages.first, below_a_cut, forget, self.show);
        }
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            let entry = slot.load(Ordering::Acquire);
            let detached = below_a_cut || !tables.format.is_attached(entry);
            match tables.format.decode(level, entry) {
                Entry::Empty => {}
                Entry::Leaf(leaf) => {
                    if detached {
                        tables.settle_leaf(slot, part, (entry, leaf), forget, self.show);
                    }
                }
                Entry::Table { table, .. } => {
                    self.visit(table, level - 1, part, detached);
                    if let Some(pool) = &mut self.pool
                        && detached
                    {
                        tables.give_back_empty(pool, table);
                        slot.store(0, Ordering::Release);
                    }
                }
            }
        }
    }
}

/// As many of `slots` as hold leaves that follow one another in memory and are
/// otherwise equal: those of one mapping, its boundaries apart, or those of mappings
/// of one page each. And how many mappings end in them. The first leaf is `entry`.
#[inline]
fn alike(
    format: impl EntryFormat,
    (entry, leaf): (u64, Leaf),
    slots: &[AtomicU64],
) -> (&[AtomicU64], u64) {
    let load = |slot: &AtomicU64| slot.load(Ordering::Acquire);
    let [first_bit, last_bit] = format.boundaries();
    let inner = if leaf.last { entry } else { entry & !first_bit };
    let mut count = 1;
    let (many, _) = slots[count..].as_chunks::<MANY>();
    for many in many {
        let expected = format.further(inner, count as u64);
        let follows = |(slot, index)| load(slot) == format.further(expected, index);
        if !many.iter().zip(0..).all(follows) {
            break;
        }
        count += MANY;
    }
    let mut expected = format.further(inner, count as u64);
    for slot in &slots[count..] {
        if load(slot) != expected {
            break;
        }
        count += 1;
        expected = format.further(expected, 1);
    }
    if leaf.last {
        return (&slots[..count], count as u64);
    }
    let ends = slots
        .get(count)
        .is_some_and(|slot| load(slot) == expected | last_bit);
    (&slots[..count + usize::from(ends)], u64::from(ends))
}

/// Empties slots.
#[inline]
fn clear(slots: &[AtomicU64]) {
    let (whole, rest) = slots.as_chunks::<MANY>();
    for many in whole {
        for slot in many {
            slot.store(0, Ordering::Release);
        }
    }
    for slot in rest {
        slot.store(0, Ordering::Release);
    }
}
