//! Who holds each guest page, how often, and when a device could last write it.
//!
//! It answers, each in one load: may this page be moved or given back to the host,
//! who holds it, can a device write it, and if not, when could one last? The answer
//! covers every domain, attached to a device or not: a page stays due for a report as
//! long as it is mapped.

mod word;

use crate::space::Access;
use core::ops::Range;
use hv_core::Gfn;

/// Somebody on whose account a page must stay where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A mapping in some domain's tables: at most 4,095 of those that permit writes,
    /// and 2,047 of those that do not.
    Mapping(Access),
    /// A device that the hypervisor emulates, which reaches the page directly: at
    /// most 31 times.
    EmulatedDevice,
    /// A copy that is under way: at most 7 at a time.
    Copy,
}

impl From<Access> for Holder {
    fn from(access: Access) -> Self {
        Self::Mapping(access)
    }
}

/// How often a page is held, by whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// Mappings that permit writes.
    pub writable: u32,
    /// Mappings that permit reads only.
    pub read_only: u32,
    /// Emulated devices.
    pub emulated_devices: u32,
    /// Copies under way.
    pub copies: u32,
}

/// A span of time, by number: the next one begins when tracking starts, and with each
/// harvest.
///
/// They count from 1. [`Epoch::LAST`] never ends: it stands for itself and whatever
/// would come after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Epoch(u16);

impl Epoch {
    /// The one in which a tracker begins.
    pub const FIRST: Self = Self(1);
    /// The one that has no end: 4,095.
    pub const LAST: Self = Self(4095);

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The one after it.
    const fn next(self) -> Self {
        match self {
            Self::LAST => Self::LAST,
            Self(number) => Self(number + 1),
        }
    }
}

/// When a device could last write a page, earlier answers being less.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LastWritable {
    /// At no time since the tracker was made.
    Never,
    /// In that epoch, and at no time after.
    In(Epoch),
    /// It can now.
    Now,
}

/// Who holds every guest page, in four bytes a page.
#[derive(Debug)]
pub struct PinTracker<'m> {
    words: &'m mut [u32],
    writable_pages: u64,
    epoch: Epoch,
}

/// A page's counter is full, or the page is outside the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest frame {0} cannot be held once more")]
pub struct CannotPin(pub Gfn);

impl<'m> PinTracker<'m> {
    /// A tracker for guest frames `0..memory.len()`, but no more than 2^32 - 1, none
    /// of them pinned.
    pub fn new(memory: &'m mut [u32]) -> Self {
        // So that a run of pages is counted in 32 bits.
        let frames = memory.len().min(u32::MAX as usize);
        let words = &mut memory[..frames];
        words.fill(0);
        Self {
            words,
            writable_pages: 0,
            epoch: Epoch::FIRST,
        }
    }

    /// How many frames it tracks, from frame 0 on.
    pub fn frames(&self) -> u64 {
        self.words.len() as u64
    }

    /// Whether each of `count` pages from `first` on can be held once more in this
    /// way.
    pub fn check(
        &self,
        first: Gfn,
        count: u64,
        holder: impl Into<Holder>,
    ) -> Result<(), CannotPin> {
        let range = self.range(first, count).ok_or(CannotPin(first))?;
        match word::first_full(&self.words[range], holder.into()) {
            Some(index) => Err(CannotPin(Gfn::new(first.number() + index as u64))),
            None => Ok(()),
        }
    }

    /// Counts one more holder of each of `count` pages from `first` on. On an error
    /// nothing changes.
    pub fn pin(
        &mut self,
        first: Gfn,
        count: u64,
        holder: impl Into<Holder>,
    ) -> Result<(), CannotPin> {
        let holder = holder.into();
        self.check(first, count, holder)?;
        let range = self.range(first, count).ok_or(CannotPin(first))?;
        self.writable_pages += u64::from(word::add(&mut self.words[range], holder));
        Ok(())
    }

    /// Counts one holder less, of the kind they were pinned for, of each of `count`
    /// pages from `first` on. A page that is not held in that way stays as it is.
    #[inline(always)]
    pub fn unpin(&mut self, first: Gfn, count: u64, holder: impl Into<Holder>) {
        let Some(range) = self.range(first, count) else {
            return;
        };
        let gone = word::remove(&mut self.words[range], holder.into(), self.epoch);
        self.writable_pages -= u64::from(gone);
    }

    /// The epoch that it is in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Begins the next epoch, if there is one.
    pub fn begin_epoch(&mut self) {
        self.epoch = self.epoch.next();
    }

    /// Whether `gfn` must stay where it is, for anybody's sake.
    pub fn is_pinned(&self, gfn: Gfn) -> bool {
        word::is_held(self.word(gfn))
    }

    /// Who holds `gfn`; nobody holds a page outside the tracker.
    pub fn holders(&self, gfn: Gfn) -> Holders {
        word::holders(self.word(gfn))
    }

    /// Whether some device may write `gfn` through a mapping.
    pub fn is_writable(&self, gfn: Gfn) -> bool {
        word::is_writable(self.word(gfn))
    }

    /// When some device could last write `gfn` through a mapping.
    pub fn last_writable(&self, gfn: Gfn) -> LastWritable {
        word::last_writable(self.word(gfn))
    }

    /// How many pages devices may write, each counted once.
    pub fn writable_pages(&self) -> u64 {
        self.writable_pages
    }

    /// The pages devices may write, ascending. It does not look beyond the last.
    pub fn writable(&self) -> impl Iterator<Item = Gfn> {
        let how_many = usize::try_from(self.writable_pages).unwrap_or(usize::MAX);
        (0..)
            .zip(self.words.iter())
            .filter(|(_, word)| word::is_writable(**word))
            .map(|(number, _)| Gfn::new(number))
            .take(how_many)
    }

    /// The word of `gfn`; that of a page outside the tracker is empty.
    fn word(&self, gfn: Gfn) -> u32 {
        let index = usize::try_from(gfn.number()).ok();
        let word = index.and_then(|index| self.words.get(index));
        word.copied().unwrap_or(0)
    }

    /// The places of `count` pages from `first` on, if it tracks them all.
    fn range(&self, first: Gfn, count: u64) -> Option<Range<usize>> {
        let end = first.number().checked_add(count)?;
        // What ends within the slice fits its index type.
        (end <= self.frames()).then_some(first.number() as usize..end as usize)
    }
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
        pins.pin(PAGE, 1, Access::Read).unwrap();
        assert!(pins.is_pinned(PAGE) && !pins.is_writable(PAGE));
        pins.pin(PAGE, 1, Access::Write).unwrap();
        pins.pin(PAGE, 1, Access::ReadWrite).unwrap();
        assert_eq!(pins.writable_pages(), 1, "distinct pages are counted");
        pins.unpin(PAGE, 1, Access::Write);
        assert!(pins.is_writable(PAGE));
        pins.unpin(PAGE, 1, Access::ReadWrite);
        assert!(pins.is_pinned(PAGE) && !pins.is_writable(PAGE));
        assert_eq!(pins.writable_pages(), 0);
        pins.unpin(PAGE, 1, Access::Read);
        assert!(!pins.is_pinned(PAGE));
    }

    #[test]
    fn a_full_counter_refuses_and_does_not_run_into_the_next() {
        let mut memory = [0; 4];
        let mut pins = PinTracker::new(&mut memory);
        let limits = [
            (Holder::Mapping(Access::ReadWrite), 4095),
            (Holder::Mapping(Access::Read), 2047),
            (Holder::EmulatedDevice, 31),
            (Holder::Copy, 7),
        ];
        for (holder, limit) in limits {
            for _ in 0..limit {
                pins.pin(PAGE, 1, holder).unwrap();
            }
            assert_eq!(pins.pin(PAGE, 1, holder), Err(CannotPin(PAGE)));
        }
        let full = Holders {
            writable: 4095,
            read_only: 2047,
            emulated_devices: 31,
            copies: 7,
        };
        assert_eq!(pins.holders(PAGE), full);
        assert_eq!(pins.writable_pages(), 1);
        for (holder, limit) in limits {
            assert!(pins.is_pinned(PAGE));
            for _ in 0..limit {
                pins.unpin(PAGE, 1, holder);
            }
        }
        assert!(!pins.is_pinned(PAGE));
        assert_eq!(pins.holders(PAGE), Holders::default());
        assert_eq!(pins.writable_pages(), 0);
    }

    #[test]
    fn holders_without_a_mapping_make_no_page_writable_by_devices() {
        let mut memory = [0; 4];
        let mut pins = PinTracker::new(&mut memory);
        pins.pin(PAGE, 1, Holder::EmulatedDevice).unwrap();
        pins.pin(PAGE, 1, Holder::Copy).unwrap();
        assert!(pins.is_pinned(PAGE) && !pins.is_writable(PAGE));
        assert_eq!((pins.writable_pages(), pins.writable().count()), (0, 0));
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
            pins.pin(Gfn::new(gfn), 1, access).unwrap();
        }
        let outside = Gfn::new(8);
        assert_eq!(pins.pin(outside, 1, Access::Read), Err(CannotPin(outside)));
        let listed: Vec<_> = pins.writable().map(Gfn::number).collect();
        assert_eq!(listed, [2, 7]);
    }

    #[test]
    fn a_page_tells_in_which_epoch_its_last_writable_mapping_went() {
        let mut memory = [0; 8];
        let mut pins = PinTracker::new(&mut memory);
        pins.pin(PAGE, 2, Access::Read).unwrap();
        assert_eq!(pins.last_writable(PAGE), LastWritable::Never);
        pins.pin(PAGE, 1, Access::Write).unwrap();
        pins.pin(PAGE, 1, Access::ReadWrite).unwrap();
        pins.begin_epoch();
        pins.unpin(PAGE, 1, Access::Write);
        assert_eq!(pins.last_writable(PAGE), LastWritable::Now);
        pins.begin_epoch();
        pins.unpin(PAGE, 1, Access::ReadWrite);
        let third = LastWritable::In(Epoch(3));
        assert_eq!(pins.last_writable(PAGE), third);
        pins.begin_epoch();
        pins.unpin(PAGE, 2, Access::Read);
        assert_eq!(pins.last_writable(PAGE), third, "a read tells nothing");
        assert!(!pins.is_pinned(PAGE), "an epoch holds no page");
        assert_eq!(pins.last_writable(Gfn::new(4)), LastWritable::Never);
        pins.pin(PAGE, 1, Access::Write).unwrap();
        assert_eq!(pins.holders(PAGE).writable, 1, "the epoch made way");
        assert!(third < LastWritable::Now && LastWritable::Never < third);
    }

    #[test]
    fn the_last_epoch_stands_for_all_that_would_follow() {
        let mut memory = [0; 8];
        let mut pins = PinTracker::new(&mut memory);
        for number in 1..5000 {
            assert_eq!(pins.epoch().number(), number.min(4095));
            pins.pin(PAGE, 1, Access::Write).unwrap();
            pins.unpin(PAGE, 1, Access::Write);
            assert_eq!(pins.last_writable(PAGE), LastWritable::In(pins.epoch()));
            pins.begin_epoch();
        }
        assert_eq!(pins.holders(PAGE), Holders::default());
    }

    #[test]
    fn a_run_of_pages_is_counted_like_its_pages_one_by_one() {
        let (mut memory, mut other) = ([0; 300], [0; 300]);
        let mut runs = PinTracker::new(&mut memory);
        let mut pages = PinTracker::new(&mut other);
        let spans = [
            (0, 300, Access::ReadWrite),
            (70, 5, Access::Read),
            (10, 1, Access::Write),
            (3, 201, Access::ReadWrite),
            (100, 200, Access::Read),
        ];
        let same = |runs: &PinTracker<'_>, pages: &PinTracker<'_>| {
            assert_eq!(runs.writable_pages(), pages.writable_pages());
            assert_eq!(runs.words, pages.words);
        };
        for (first, count, access) in spans {
            runs.pin(Gfn::new(first), count, access).unwrap();
            for gfn in first..first + count {
                pages.pin(Gfn::new(gfn), 1, access).unwrap();
            }
            same(&runs, &pages);
        }
        for (first, count, access) in spans {
            runs.begin_epoch();
            pages.begin_epoch();
            runs.unpin(Gfn::new(first), count, access);
            for gfn in first..first + count {
                pages.unpin(Gfn::new(gfn), 1, access);
            }
            same(&runs, &pages);
        }
        assert_eq!(runs.writable_pages(), 0);
    }

    #[test]
    fn a_page_held_by_others_is_not_unpinned_for_a_mapping_it_does_not_have() {
        // Without debug assertions: with them it ends the test.
        if cfg!(debug_assertions) {
            return;
        }
        let mut memory = [0; 8];
        let mut pins = PinTracker::new(&mut memory);
        pins.pin(PAGE, 1, Holder::Copy).unwrap();
        let held = pins.holders(PAGE);
        for holder in [
            Access::Write.into(),
            Access::Read.into(),
            Holder::EmulatedDevice,
        ] {
            pins.unpin(PAGE, 1, holder);
            assert_eq!(pins.holders(PAGE), held);
        }
    }
}
