//! Runs of pages, and how tables cut them.

use crate::IovaRange;
use hv_core::{Hpa, PAGE_SHIFT, PAGE_SIZE};

/// log2 of the number of entries in a table.
const INDEX_BITS: u32 = 9;

/// Pages `first..=last`, by page number (IOVA / 4 KiB). Never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pages {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Pages {
    /// One page.
    pub(crate) const fn one(page: u64) -> Self {
        Self {
            first: page,
            last: page,
        }
    }

    /// How many there are.
    pub(crate) const fn count(self) -> u64 {
        self.last - self.first + 1
    }

    /// The same pages as a range of addresses.
    pub(crate) const fn range(self) -> IovaRange {
        IovaRange::of_pages(self.first, self.last)
    }

    /// Cut where the slots of a table of `level` begin, ascending.
    pub(crate) fn parts(self, level: u8) -> impl Iterator<Item = Self> {
        let shift = slot_shift(level);
        (self.first >> shift..(self.last >> shift) + 1).map(move |slot| Self {
            first: self.first.max(slot << shift),
            last: self.last.min((slot << shift) + slot_pages(level) - 1),
        })
    }

    /// The smallest run that holds both.
    pub(crate) fn hull(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

impl From<IovaRange> for Pages {
    fn from(range: IovaRange) -> Self {
        Self {
            first: range.start().raw() >> PAGE_SHIFT,
            last: (range.start().raw() >> PAGE_SHIFT) + (range.pages() - 1),
        }
    }
}

/// Pages with contiguous host memory behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) pages: Pages,
    /// Behind the first page.
    pub(crate) hpa: Hpa,
}

impl Extent {
    /// Cut like [`Pages::parts`].
    pub(crate) fn parts(self, level: u8) -> impl Iterator<Item = Self> {
        self.pages.parts(level).map(move |pages| Self {
            pages,
            hpa: Hpa::new(self.hpa.raw() + (pages.first - self.pages.first) * PAGE_SIZE),
        })
    }
}

/// log2 of the number of pages that one slot of a table of `level` spans.
pub(super) const fn slot_shift(level: u8) -> u32 {
    INDEX_BITS * (level as u32 - 1)
}

/// How many pages one slot of a table of `level` spans.
pub(crate) const fn slot_pages(level: u8) -> u64 {
    1 << slot_shift(level)
}

/// Which slot of a table of `level` `page` belongs to.
pub(crate) const fn slot_index(level: u8, page: u64) -> usize {
    (page >> slot_shift(level)) as usize % (1 << INDEX_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_run_is_cut_at_slot_boundaries() {
        let pages = Pages {
            first: 510,
            last: 1024,
        };
        let parts: Vec<_> = pages.parts(2).map(|part| (part.first, part.last)).collect();
        assert_eq!(parts, [(510, 511), (512, 1023), (1024, 1024)]);
        assert_eq!(pages.parts(1).count(), 515);
        assert_eq!(pages.parts(3).count(), 1);
        assert_eq!(slot_index(1, 513), 1);
        assert_eq!(slot_index(2, 513), 1);
    }

    #[test]
    fn an_extent_is_cut_with_its_memory() {
        let extent = Extent {
            pages: Pages {
                first: 511,
                last: 512,
            },
            hpa: Hpa::new(0x5000),
        };
        assert!(
            extent
                .parts(2)
                .map(|part| part.hpa.raw())
                .eq([0x5000, 0x6000])
        );
    }
}
