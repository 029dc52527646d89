//! Who holds each guest page, and how often.
//!
//! It answers, each in one load: may this page be moved or given back to the host,
//! who holds it, and can a device write it? The answer covers every domain,
//! attached to a device or not: a page stays due for a report as long as it is
//! mapped.

use crate::space::Access;
use core::ops::Range;
use hv_core::Gfn;

/// Somebody on whose account a page must stay where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A mapping in some domain's tables: at most 4,095 of those that permit
    /// writes, and as many of those that do not.
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

/// Where a word keeps one of the counts.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

impl Field {
    const WRITABLE: Self = Self { shift: 0, bits: 12 };
    const READ_ONLY: Self = Self {
        shift: 12,
        bits: 12,
    };
    const EMULATED_DEVICES: Self = Self { shift: 24, bits: 5 };
    const COPIES: Self = Self { shift: 29, bits: 3 };

    const fn of(holder: Holder) -> Self {
        match holder {
            Holder::Mapping(access) if access.writes() => Self::WRITABLE,
            Holder::Mapping(_) => Self::READ_ONLY,
            Holder::EmulatedDevice => Self::EMULATED_DEVICES,
            Holder::Copy => Self::COPIES,
        }
    }

    const fn max(self) -> u32 {
        (1 << self.bits) - 1
    }

    const fn count(self, word: u32) -> u32 {
        word >> self.shift & self.max()
    }
}

/// How often every guest page is held by whom, in four bytes a page.
#[derive(Debug)]
pub struct PinTracker<'m> {
    words: &'m mut [u32],
    writable_pages: u64,
}

/// A page's counter is full, or the page is outside the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest frame {0} cannot be held once more")]
pub struct CannotPin(pub Gfn);

impl<'m> PinTracker<'m> {
    /// A tracker for guest frames `0..memory.len()`, none of them pinned.
    pub fn new(memory: &'m mut [u32]) -> Self {
        memory.fill(0);
        Self {
            words: memory,
            writable_pages: 0,
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
        let field = Field::of(holder.into());
        let range = self.range(first, count).ok_or(CannotPin(first))?;
        let is_full = |word: &u32| field.count(*word) == field.max();
        let words = &self.words[range];
        // All are looked at in any case: without a way out, many are at once.
        if words.iter().fold(false, |any, word| any | is_full(word)) {
            let index = words.iter().position(is_full).unwrap_or(0) as u64;
            return Err(CannotPin(Gfn::new(first.number() + index)));
        }
        Ok(())
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
        let field = Field::of(holder);
        let mut first_ones = 0;
        for word in &mut self.words[range] {
            *word += 1 << field.shift;
            first_ones += u64::from(field.count(*word) == 1);
        }
        if is_writer(holder) {
            self.writable_pages += first_ones;
        }
        Ok(())
    }

    /// Counts one holder less, of the kind they were pinned for, of each of `count`
    /// pages from `first` on. A page that is not held in that way stays as it is.
    pub fn unpin(&mut self, first: Gfn, count: u64, holder: impl Into<Holder>) {
        let Some(range) = self.range(first, count) else {
            return;
        };
        let holder = holder.into();
        let field = Field::of(holder);
        let mut last_ones = 0;
        for word in &mut self.words[range] {
            // Without branches, so that several pages are counted at once.
            let held = field.count(*word) != 0;
            debug_assert!(held, "a page is unpinned more often than pinned");
            *word -= u32::from(held) << field.shift;
            last_ones += u64::from(held & (field.count(*word) == 0));
        }
        if is_writer(holder) {
            self.writable_pages -= last_ones;
        }
    }

    /// Whether `gfn` must stay where it is, for anybody's sake.
    pub fn is_pinned(&self, gfn: Gfn) -> bool {
        self.word(gfn).is_some_and(|word| word != 0)
    }

    /// Who holds `gfn`; nobody holds a page outside the tracker.
    pub fn holders(&self, gfn: Gfn) -> Holders {
        let word = self.word(gfn).unwrap_or(0);
        Holders {
            writable: Field::WRITABLE.count(word),
            read_only: Field::READ_ONLY.count(word),
            emulated_devices: Field::EMULATED_DEVICES.count(word),
            copies: Field::COPIES.count(word),
        }
    }

    /// Whether some device may write `gfn` through a mapping.
    pub fn is_writable(&self, gfn: Gfn) -> bool {
        self.word(gfn)
            .is_some_and(|word| Field::WRITABLE.count(word) != 0)
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
            .filter(|(_, word)| Field::WRITABLE.count(**word) != 0)
            .map(|(number, _)| Gfn::new(number))
            .take(how_many)
    }

    fn word(&self, gfn: Gfn) -> Option<u32> {
        let index = usize::try_from(gfn.number()).ok()?;
        self.words.get(index).copied()
    }

    /// The places of `count` pages from `first` on, if it tracks them all.
    fn range(&self, first: Gfn, count: u64) -> Option<Range<usize>> {
        let end = first.number().checked_add(count)?;
        // What ends within the slice fits its index type.
        (end <= self.frames()).then_some(first.number() as usize..end as usize)
    }
}

fn is_writer(holder: Holder) -> bool {
    matches!(holder, Holder::Mapping(access) if access.writes())
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
            (Holder::Mapping(Access::Read), 4095),
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
            read_only: 4095,
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
}
