//! IO virtual addresses and ranges of them.

use hv_core::{PAGE_SHIFT, PAGE_SIZE};

hv_core::address_type! {
    /// An IO virtual address: what a device puts on the bus, in its domain.
    Iova
}

/// A non-empty range of whole pages that does not wrap; it may end at 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IovaRange {
    start: Iova,
    pages: u64,
}

/// Why a range was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It has no byte.
    #[error("the range is empty")]
    Empty,
    /// It goes past 2^64.
    #[error("the range wraps around the end of the address space")]
    Wraps,
    /// Its start or its size is not a multiple of the page size.
    #[error("the range does not start and end on a page boundary")]
    Unaligned,
}

impl IovaRange {
    /// All of the address space.
    pub const ALL: Self = Self {
        start: Iova::new(0),
        pages: 1 << (64 - PAGE_SHIFT),
    };

    /// `pages` pages from `start` on. Checked in the order empty, wrapping,
    /// misaligned.
    pub const fn new(start: Iova, pages: u64) -> Result<Self, RangeError> {
        if pages == 0 {
            return Err(RangeError::Empty);
        }
        if pages - 1 > (u64::MAX - start.raw()) >> PAGE_SHIFT {
            return Err(RangeError::Wraps);
        }
        if !start.is_page_aligned() {
            return Err(RangeError::Unaligned);
        }
        Ok(Self { start, pages })
    }

    /// `bytes` bytes from `start` on, which must be whole pages.
    pub const fn from_bytes(start: Iova, bytes: u64) -> Result<Self, RangeError> {
        if bytes == 0 {
            return Err(RangeError::Empty);
        }
        if bytes - 1 > u64::MAX - start.raw() {
            return Err(RangeError::Wraps);
        }
        if !start.is_page_aligned() || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Unaligned);
        }
        Self::new(start, bytes >> PAGE_SHIFT)
    }

    /// Pages `first..=last` by number, neither of which is above 2^52 - 1.
    pub(crate) const fn of_pages(first: u64, last: u64) -> Self {
        debug_assert!(first <= last && last < Self::ALL.pages);
        Self {
            start: Iova::new(first << PAGE_SHIFT),
            pages: last - first + 1,
        }
    }

    /// The first address.
    pub const fn start(self) -> Iova {
        self.start
    }

    /// The number of pages, from 1 to 2^52.
    pub const fn pages(self) -> u64 {
        self.pages
    }

    /// The first address of the last page. (The end itself may not fit 64 bits.)
    pub const fn last_page(self) -> Iova {
        Iova::new(self.start.raw() + (self.pages - 1) * PAGE_SIZE)
    }

    /// The first address behind the range; `None` if it ends with the address space.
    pub const fn behind(self) -> Option<Iova> {
        self.last_page().checked_add(PAGE_SIZE)
    }

    /// Whether `iova` lies in the range.
    pub const fn contains(self, iova: Iova) -> bool {
        self.start.raw() <= iova.raw() && iova.page_base().raw() <= self.last_page().raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_may_end_at_two_to_the_64() {
        let last = Iova::new(u64::MAX - 0xfff);
        let range = IovaRange::from_bytes(last, PAGE_SIZE).unwrap();
        assert_eq!(range.last_page(), last);
        assert!(range.contains(Iova::new(u64::MAX)));
        assert_eq!(IovaRange::new(last, 2), Err(RangeError::Wraps));
        assert_eq!(IovaRange::new(Iova::new(0), 1 << 52), Ok(IovaRange::ALL));
        assert_eq!(
            IovaRange::new(Iova::new(0), 1 << 53),
            Err(RangeError::Wraps)
        );
    }

    #[test]
    fn empty_and_unaligned_ranges_are_refused_after_wrapping_ones() {
        assert_eq!(IovaRange::new(Iova::new(1), 0), Err(RangeError::Empty));
        assert_eq!(IovaRange::new(Iova::new(1), 1), Err(RangeError::Unaligned));
        assert_eq!(
            IovaRange::from_bytes(Iova::new(1), u64::MAX),
            Ok(()).and(Err(RangeError::Unaligned))
        );
        assert_eq!(
            IovaRange::from_bytes(Iova::new(2), u64::MAX),
            Err(RangeError::Wraps)
        );
    }
}
