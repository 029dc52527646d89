//! The last step of taking leaves out: what was detached is shown and forgotten.

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Leaf, Pages, Place, Tables};
use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

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
    #[inline(always)]
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
        mut first: u64,
        below_a_cut: bool,
        forget: bool,
        show: &mut impl Show,
    ) {
        let mut rest = slots;
        while let Some(slot) = rest.first() {
            let entry = slot.load(Ordering::Acquire);
            let mut count = 1;
            if (below_a_cut || !self.format.is_attached(entry))
                && let Entry::Leaf(leaf) = self.format.decode(1, entry)
            {
                count = alike(self.format, entry, rest);
                self.settle_run(
                    &rest[..count],
                    first,
                    count as u64,
                    (entry, leaf),
                    forget,
                    show,
                );
            }
            rest = &rest[count..];
            first += count as u64;
        }
    }

    /// Settles leaves that are alike, from page `first` on, so many pages.
    #[inline(always)]
    fn settle_run(
        &self,
        slots: &[AtomicU64],
        first: u64,
        pages: u64,
        (entry, leaf): (u64, Leaf),
        forget: bool,
        show: &mut impl Show,
    ) {
        show.show(Detached {
            pages: Pages {
                first,
                last: first + pages - 1,
            },
            leaf,
            mappings: if leaf.last { slots.len() as u64 } else { 0 },
            // The first one speaks for all: they are alike in the evidence too.
            written: leaf.access.writes() && self.is_evidence(entry),
        });
        if forget {
            clear(slots);
        }
    }

    /// Whether a leaf that was taken out, itself or with its table, shows a write.
    #[inline(always)]
    fn is_evidence(&self, entry: u64) -> bool {
        entry & self.evidence != 0 || self.altered_counts && !self.format.is_attached(entry)
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
                        let slots = slice::from_ref(slot);
                        let count = slot_pages(level);
                        let found = (entry, leaf);
                        tables.settle_run(slots, part.first, count, found, forget, self.show);
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

/// How many leaves from the first of `slots` on, which is `entry`, follow one
/// another in memory and are otherwise equal.
#[inline]
fn alike(format: impl EntryFormat, entry: u64, slots: &[AtomicU64]) -> usize {
    let follows = |(slot, index): (&AtomicU64, usize)| {
        slot.load(Ordering::Acquire) == format.further(entry, index as u64)
    };
    if slots.get(1).is_none_or(|slot| !follows((slot, 1))) {
        return 1;
    }
    // Many at a time as long as they do, then one by one.
    const MANY: usize = 16;
    let mut count = 0;
    for many in slots.as_chunks::<MANY>().0 {
        if !many.iter().zip(count..).all(follows) {
            break;
        }
        count += MANY;
    }
    let rest = slots[count..].iter().zip(count..);
    count + rest.take_while(|one| follows(*one)).count()
}

/// Empties slots, eight at a time.
#[inline]
fn clear(slots: &[AtomicU64]) {
    if let [slot] = slots {
        slot.store(0, Ordering::Release);
        return;
    }
    let (eights, rest) = slots.as_chunks::<8>();
    for eight in eights {
        for slot in eight {
            slot.store(0, Ordering::Release);
        }
    }
    for slot in rest {
        slot.store(0, Ordering::Release);
    }
}
