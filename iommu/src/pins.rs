//! How often each guest page is mapped for devices.
//!
//! It answers, each in one load: may this page be given back to the host, and can
//! a device write it? The answer covers every domain, attached to a device or
//! not: a page stays due for a report as long as it is mapped.

use crate::space::Access;
use hv_core::Gfn;

/// Counts of the mappings, and of the writable ones, of every guest page, in four
/// bytes a page: the low half of a word counts all, the high half the writable.
#[derive(Debug)]
pub struct PinTracker<'m> {
    counts: &'m mut [u32],
    writable_pages: u64,
}

/// A page's counter is full, or the page is outside the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest frame {0} cannot be mapped once more")]
pub struct CannotPin(pub Gfn);

const WRITABLE_SHIFT: u32 = 16;
const MAX: u32 = 0xffff;

impl<'m> PinTracker<'m> {
    /// A tracker for guest frames `0..memory.len()`, none of them pinned.
    pub fn new(memory: &'m mut [u32]) -> Self {
        memory.fill(0);
        Self {
            counts: memory,
            writable_pages: 0,
        }
    }

    /// How many frames it tracks, from frame 0 on.
    pub fn frames(&self) -> u64 {
        self.counts.len() as u64
    }

    /// Whether `gfn` can be mapped once more: each page at most 65,535 times.
    pub fn check(&self, gfn: Gfn) -> Result<(), CannotPin> {
        let count = self.count(gfn).ok_or(CannotPin(gfn))?;
        // There are never more writable mappings than mappings.
        if count & MAX == MAX {
            return Err(CannotPin(gfn));
        }
        Ok(())
    }

    /// Counts one more mapping. On an error nothing changes.
    pub fn pin(&mut self, gfn: Gfn, access: Access) -> Result<(), CannotPin> {
        self.check(gfn)?;
        if let Some(count) = self.slot(gfn) {
            *count += step(access);
            let first_writer = access.writes() && *count >> WRITABLE_SHIFT == 1;
            self.writable_pages += u64::from(first_writer);
        }
        Ok(())
    }

    /// Counts one mapping less, of the access it was pinned with. A page that is
    /// not pinned stays as it is.
    pub fn unpin(&mut self, gfn: Gfn, access: Access) {
        let Some(count) = self.slot(gfn) else { return };
        let pinned = *count & MAX != 0;
        let writable = *count >> WRITABLE_SHIFT != 0;
        if !pinned || access.writes() && !writable {
            debug_assert!(false, "{gfn} is unpinned more often than pinned");
            return;
        }
        *count -= step(access);
        let last_writer = access.writes() && *count >> WRITABLE_SHIFT == 0;
        self.writable_pages -= u64::from(last_writer);
    }

    /// Whether some device may reach `gfn`, so that it must stay where it is.
    pub fn is_pinned(&self, gfn: Gfn) -> bool {
        self.count(gfn).is_some_and(|count| count != 0)
    }

    /// Whether some device may write `gfn`.
    pub fn is_writable(&self, gfn: Gfn) -> bool {
        self.count(gfn)
            .is_some_and(|count| count >> WRITABLE_SHIFT != 0)
    }

    /// How many pages devices may write, each counted once.
    pub fn writable_pages(&self) -> u64 {
        self.writable_pages
    }

    /// The pages devices may write, ascending.
    pub fn writable(&self) -> impl Iterator<Item = Gfn> {
        (0..)
            .zip(self.counts.iter())
            .filter(|(_, count)| **count >> WRITABLE_SHIFT != 0)
            .map(|(number, _)| Gfn::new(number))
    }

    fn count(&self, gfn: Gfn) -> Option<u32> {
        let index = usize::try_from(gfn.number()).ok()?;
        self.counts.get(index).copied()
    }

    fn slot(&mut self, gfn: Gfn) -> Option<&mut u32> {
        let index = usize::try_from(gfn.number()).ok()?;
        self.counts.get_mut(index)
    }
}

/// What one mapping adds to a page's word.
fn step(access: Access) -> u32 {
    1 + (u32::from(access.writes()) << WRITABLE_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const PAGE: Gfn = Gfn::new(3);

    #[test]
    fn a_page_is_pinned_until_its_last_mapping_goes() {
        let mut memory = [7; 8];
        let mut pins = PinTracker::new(&mut memory);
        assert!(!pins.is_pinned(PAGE));
        pins.pin(PAGE, Access::Read).unwrap();
        assert!(pins.is_pinned(PAGE) && !pins.is_writable(PAGE));
        pins.pin(PAGE, Access::Write).unwrap();
        pins.pin(PAGE, Access::ReadWrite).unwrap();
        assert_eq!(pins.writable_pages(), 1, "distinct pages are counted");
        pins.unpin(PAGE, Access::Write);
        assert!(pins.is_writable(PAGE));
        pins.unpin(PAGE, Access::ReadWrite);
        assert!(pins.is_pinned(PAGE) && !pins.is_writable(PAGE));
        assert_eq!(pins.writable_pages(), 0);
        pins.unpin(PAGE, Access::Read);
        assert!(!pins.is_pinned(PAGE));
    }

    #[test]
    fn a_full_counter_refuses_and_does_not_wrap() {
        let mut memory = [0; 4];
        let mut pins = PinTracker::new(&mut memory);
        for _ in 0..0xffff {
            pins.pin(PAGE, Access::ReadWrite).unwrap();
        }
        for access in [Access::Read, Access::ReadWrite] {
            assert_eq!(pins.pin(PAGE, access), Err(CannotPin(PAGE)));
        }
        assert_eq!(pins.writable_pages(), 1);
        for _ in 0..0xffff {
            pins.unpin(PAGE, Access::ReadWrite);
        }
        assert!(!pins.is_pinned(PAGE));
    }

    #[test]
    fn the_writable_pages_are_listed_and_no_others() {
        let mut memory = [0; 8];
        let mut pins = PinTracker::new(&mut memory);
        for (gfn, access) in [
            (1, Access::Read),
            (2, Access::Write),
            (7, Access::ReadWrite),
        ] {
            pins.pin(Gfn::new(gfn), access).unwrap();
        }
        let outside = Gfn::new(8);
        assert_eq!(pins.pin(outside, Access::Read), Err(CannotPin(outside)));
        let listed: Vec<_> = pins.writable().map(Gfn::number).collect();
        assert_eq!(listed, [2, 7]);
    }
}
