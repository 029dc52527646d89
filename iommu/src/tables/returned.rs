//! Leaves that came back: see [`crate::dirty_mode`] for the units that do this.

use super::detach::Keep;
use super::{Entry, EntryFormat, Pages, Place, Tables};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::memory::PhysMemory;

impl<'m, M: PhysMemory, F: EntryFormat> Tables<'m, M, F> {
    /// Takes every leaf there that is attached, or all but those to `keep`, out of the
    /// hardware's sight once more. Returns their hull, `None` if all have stayed
    /// detached.
    ///
    /// Entries that lead to tables do not come back: hardware has no bit to set in
    /// them. Nor does it matter what is below one that was cut off.
    pub(crate) fn detach_returned(
        &self,
        place: &Place<'m>,
        keep: Option<Keep<'_>>,
    ) -> Option<Pages> {
        let mut hull = None;
        match place {
            Place::Leaves(part) => {
                self.detach_returned_in(part.slots, 1, part.pages, keep, &mut hull);
            }
            Place::Tables { root, pages } => {
                let slots = self.slots_of(*root, self.levels, *pages);
                self.detach_returned_in(slots, self.levels, *pages, keep, &mut hull);
            }
        }
        hull
    }

    fn detach_returned_in(
        &self,
        slots: &'m [AtomicU64],
        level: u8,
        pages: Pages,
        keep: Option<Keep<'_>>,
        hull: &mut Option<Pages>,
    ) {
        for (slot, part) in slots.iter().zip(pages.parts(level)) {
            let entry = slot.load(Ordering::Acquire);
            if !self.format.is_attached(entry) {
                continue;
            }
            match self.format.decode(level, entry) {
                Entry::Table { table, .. } => {
                    let slots = self.slots_of(table, level - 1, part);
                    self.detach_returned_in(slots, level - 1, part, keep, hull);
                }
                Entry::Leaf(leaf) if keep.is_none_or(|keep| !keep(part.first, leaf)) => {
                    slot.fetch_and(self.format.revoked(), Ordering::AcqRel);
                    *hull = Some(hull.map_or(part, |hull| hull.hull(part)));
                }
                Entry::Leaf(_) | Entry::Empty => {}
            }
        }
    }
}
