//! Taking leaves out, in the two steps between which the layer invalidates and
//! drains: see [`crate::unmap`] for why they are two.

use super::pages::slot_pages;
use super::{Entry, EntryFormat, Leaf, Pages, Tables, Way};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

/// Says of the leaf over `page` whether it stays.
pub(crate) type Keep<'a> = &'a dyn Fn(u64, Leaf) -> bool;

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

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// Takes every leaf in the way's pages (which bisect none), or all but those to
    /// `keep`, out of the hardware's sight. Returns the hull of what was taken,
    /// `None` if there was nothing.
    ///
    /// A table that is taken as a whole is cut off at its parent and none of its
    /// leaves is touched; otherwise each leaf loses its rights. Either is one
    /// atomic AND, which leaves the entry in place for the step that follows.
    pub(crate) fn detach(self, way: &Way<'m>, keep: Option<Keep<'_>>) -> Option<Pages> {
        let mut hull = None;
        let mut gone = self.detach_from(way.slots, way.level, way.pages, keep, &mut hull);
        for (slot, level) in way.above.iter().rev().zip(way.level + 1..) {
            let entry = self.format.decode(level, slot.load(Ordering::Acquire));
            let Entry::Table { live, .. } = entry else {
                break;
            };
            if gone < live {
                if gone > 0 {
                    self.set_live(slot, live - gone);
                }
                break;
            }
            slot.fetch_and(self.format.revoked(), Ordering::AcqRel);
            gone = 1;
        }
        hull
    }

    /// Returns how many of `slots`, which are those of `pages` in a table, fell out
    /// of use.
    fn detach_from(
        self,
        slots: &'m [AtomicU64],
        level: u8,
        pages: Pages,
        keep: Option<Keep<'_>>,
        hull: &mut Option<Pages>,
    ) -> u64 {
        if level == 1 {
            return self.detach_leaves(slots, pages, keep, hull);
        }
        let mut gone = 0;
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Empty => continue,
                Entry::Leaf(leaf) => {
                    if keep.is_some_and(|keep| keep(part.first, leaf)) {
                        continue;
                    }
                }
                Entry::Table { table, live } => {
                    let whole = keep.is_none() && part.count() == slot_pages(level);
                    if !whole {
                        let slots = self.slots_of(table, level - 1, part);
                        let below = self.detach_from(slots, level - 1, part, keep, hull);
                        if below < live {
                            if below > 0 {
                                self.set_live(slot, live - below);
                            }
                            continue;
                        }
                    }
                }
            }
            slot.fetch_and(self.format.revoked(), Ordering::AcqRel);
            *hull = Some(hull.map_or(part, |hull| hull.hull(part)));
            gone += 1;
        }
        gone
    }

    fn detach_leaves(
        self,
        slots: &'m [AtomicU64],
        pages: Pages,
        keep: Option<Keep<'_>>,
        hull: &mut Option<Pages>,
    ) -> u64 {
        let (mut gone, mut first_gone, mut last_gone) = (0, pages.last, pages.first);
        for (slot, page) in slots.iter().zip(pages.first..) {
            let Some(leaf) = self.format.leaf_of(slot.load(Ordering::Acquire)) else {
                continue;
            };
            if keep.is_some_and(|keep| keep(page, leaf)) {
                continue;
            }
            slot.fetch_and(self.format.revoked(), Ordering::AcqRel);
            first_gone = first_gone.min(page);
            last_gone = page;
            gone += 1;
        }
        if gone > 0 {
            let part = Pages {
                first: first_gone,
                last: last_gone,
            };
            *hull = Some(hull.map_or(part, |hull| hull.hull(part)));
        }
        gone
    }

    /// Passes to `show` every leaf in the way's pages that is detached, itself or with
    /// a table above it, ascending. What it reads is final once the hardware has
    /// drained.
    ///
    /// With a `pool` each is forgotten after it was shown, and the tables that were
    /// cut off go back to the pool. Only once the hardware can have no walk left in
    /// them.
    pub(crate) fn settle(
        self,
        way: &Way<'m>,
        mut pool: Option<&mut FramePool>,
        mut show: impl FnMut(Detached),
    ) {
        let is_cut = |slot: &AtomicU64| !self.format.is_attached(slot.load(Ordering::Acquire));
        let below_a_cut = way.above.last().is_some_and(|slot| is_cut(slot));
        let mut settling = Settling {
            tables: self,
            pool: pool.as_deref_mut(),
            show: &mut show,
        };
        settling.visit(way.slots, way.level, way.pages, below_a_cut);

        let Some(pool) = pool else { return };
        for (slot, level) in way.above.iter().rev().zip(way.level + 1..) {
            let entry = slot.load(Ordering::Acquire);
            match self.format.decode(level, entry) {
                Entry::Table { table, .. } if !self.format.is_attached(entry) => {
                    self.give_back_empty(pool, table);
                    slot.store(0, Ordering::Release);
                }
                _ => break,
            }
        }
    }

    /// Whether a device wrote through `entry`, as far as it tells.
    fn is_written(self, entry: u64, leaf: Leaf) -> bool {
        leaf.access.writes() && entry & self.evidence != 0
    }

    /// Shows `visit` every leaf in `pages`, attached or not, ascending.
    pub(crate) fn for_each_leaf(self, root: Hpa, pages: Pages, visit: &mut dyn FnMut(Pages, Leaf)) {
        self.visit_below(root, self.levels, pages, visit);
    }

    fn visit_below(self, table: Hpa, level: u8, pages: Pages, visit: &mut dyn FnMut(Pages, Leaf)) {
        let slots = self.slots_of(table, level, pages);
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            match self.format.decode(level, slot.load(Ordering::Acquire)) {
                Entry::Leaf(leaf) => visit(part, leaf),
                Entry::Empty => {}
                Entry::Table { table, .. } => self.visit_below(table, level - 1, part, visit),
            }
        }
    }

    /// Gives back a table that has no entries in use.
    fn give_back_empty(self, pool: &mut FramePool, table: Hpa) {
        if self.format.hardware_writes() {
            pool.give_back(self.mem, table);
        } else {
            pool.give_back_zero(self.mem, table);
        }
    }

    /// Notes above a table how many of its entries are in use.
    pub(super) fn set_live(self, slot: &AtomicU64, live: u64) {
        // The closure never declines, so neither does the update.
        let _ = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
            Some(self.format.with_live(entry, live))
        });
    }
}

/// The walk of [`Tables::settle`].
struct Settling<'m, 'a, M, F, V> {
    tables: Tables<'m, M, F>,
    /// Where tables go; `None` leaves everything as it is.
    pool: Option<&'a mut FramePool>,
    show: &'a mut V,
}

impl<M: PhysMemory, F: EntryFormat, V: FnMut(Detached)> Settling<'_, '_, M, F, V> {
    fn visit(&mut self, slots: &[AtomicU64], level: u8, pages: Pages, below_a_cut: bool) {
        if level == 1 {
            return self.visit_leaves(slots, pages, below_a_cut);
        }
        let format = self.tables.format;
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            let entry = slot.load(Ordering::Acquire);
            let detached = below_a_cut || !format.is_attached(entry);
            match format.decode(level, entry) {
                Entry::Empty => continue,
                Entry::Leaf(leaf) if detached => (self.show)(Detached {
                    pages: part,
                    leaf,
                    mappings: u64::from(leaf.last),
                    written: self.tables.is_written(entry, leaf),
                }),
                Entry::Leaf(_) => continue,
                Entry::Table { table, .. } => {
                    let slots = self.tables.slots_of(table, level - 1, part);
                    self.visit(slots, level - 1, part, detached);
                    if let Some(pool) = &mut self.pool
                        && detached
                    {
                        self.tables.give_back_empty(pool, table);
                    }
                }
            }
            if detached && self.pool.is_some() {
                slot.store(0, Ordering::Release);
            }
        }
    }

    /// Neighbours that differ in nothing but their addresses are taken together:
    /// drivers map buffers page by page, and this makes them one.
    fn visit_leaves(&mut self, mut slots: &[AtomicU64], pages: Pages, below_a_cut: bool) {
        let format = self.tables.format;
        let mut first = pages.first;
        while let Some(slot) = slots.first() {
            let entry = slot.load(Ordering::Acquire);
            let detached = below_a_cut || !format.is_attached(entry);
            let count = match format.leaf_of(entry) {
                Some(leaf) if detached => {
                    let count = alike(format, entry, slots);
                    (self.show)(Detached {
                        pages: Pages {
                            first,
                            last: first + count as u64 - 1,
                        },
                        leaf,
                        mappings: if leaf.last { count as u64 } else { 0 },
                        // Alike in the evidence too.
                        written: self.tables.is_written(entry, leaf),
                    });
                    if self.pool.is_some() {
                        clear(&slots[..count]);
                    }
                    count
                }
                _ => 1,
            };
            slots = &slots[count..];
            first += count as u64;
        }
    }
}

/// Empties slots, eight at a time.
fn clear(slots: &[AtomicU64]) {
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

/// How many leaves from the first of `slots` on, which is `entry`, follow one
/// another in memory and are otherwise equal.
fn alike(format: impl EntryFormat, entry: u64, slots: &[AtomicU64]) -> usize {
    let follows = |(slot, index): (&AtomicU64, usize)| {
        slot.load(Ordering::Acquire) == format.further(entry, index as u64)
    };
    let mut count = 1;
    // Eight at a time as long as they do, then one by one.
    while let Some(eight) = slots[count..].first_chunk::<8>()
        && eight.iter().zip(count..).all(follows)
    {
        count += 8;
    }
    let rest = slots[count..].iter().zip(count..);
    count + rest.take_while(|one| follows(*one)).count()
}
