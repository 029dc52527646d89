//! Blocks of pages as device TLBs and AMD's units are told of them: an address with
//! the size in it (PCI Express 5.0, 10.3.1 "Invalidate Request"; AMD IOMMU 3.0, 2.4.3).

use crate::IovaRange;
use hv_core::PAGE_SHIFT;

/// An aligned power of two of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageBlock {
    /// The first page, by number; a multiple of the block's size.
    pub page: u64,
    /// The block has 2^order pages; 52 is the whole address space.
    pub order: u8,
}

/// S, bit 0: the address holds a size.
const S: u64 = 1 << 0;
/// The address that with S means all pages.
const ALL_PAGES: u64 = 0x7fff_ffff_ffff_f000;

impl PageBlock {
    /// All pages.
    pub const ALL: Self = Self { page: 0, order: 52 };

    /// The smallest block that covers `range`.
    pub const fn over(range: IovaRange) -> Self {
        let first = range.start().raw() >> PAGE_SHIFT;
        let last = range.last_page().raw() >> PAGE_SHIFT;
        // Page numbers that share all bits from `order` up lie in one such block.
        let order = u64::BITS - (first ^ last).leading_zeros();
        if order >= 52 {
            return Self::ALL;
        }
        Self {
            page: first >> order << order,
            order: order as u8,
        }
    }

    /// Address and S: with S set, the lowest zero bit from 12 on gives the size, and
    /// bit 63 clear with all below it set means everything.
    pub const fn encode(self) -> u64 {
        match self.order {
            0 => self.page << 12,
            order if order < 52 => {
                let below = (1 << (order - 1)) - 1;
                (self.page | below) << 12 | S
            }
            _ => ALL_PAGES | S,
        }
    }

    /// The block of an address and S; the bits between them do not count.
    pub const fn decode(raw: u64) -> Self {
        let page = raw >> 12;
        if raw & S == 0 {
            return Self { page, order: 0 };
        }
        let order = page.trailing_ones() as u8 + 1;
        if order >= 52 {
            return Self::ALL;
        }
        Self {
            page: page >> order << order,
            order,
        }
    }

    /// Whether the page of that number is in it.
    pub const fn contains(self, page: u64) -> bool {
        self.order >= 52 || page >> self.order == self.page >> self.order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Iova;

    #[test]
    fn the_lowest_zero_address_bit_gives_the_size() {
        let encoded = |page, order| PageBlock { page, order }.encode();
        assert_eq!(encoded(0x5, 0), 0x5000);
        assert_eq!(encoded(0x4, 1), 0x4001);
        assert_eq!(encoded(0x4, 2), 0x5001);
        assert_eq!(encoded(0x200, 9), 0x2f_f001);
    }

    proptest::proptest! {
        #[test]
        fn a_block_is_the_smallest_that_covers_its_range_and_reads_back(
            first in 0u64..1 << 27, count in 1u64..1 << 20,
        ) {
            let range = IovaRange::new(Iova::new(first << 12), count).unwrap();
            let splits = |order: u8| first >> order != (first + count - 1) >> order;
            let block = PageBlock::over(range);
            let PageBlock { page, order } = block;
            proptest::prop_assert!(!splits(order));
            proptest::prop_assert!(order == 0 || splits(order - 1));
            proptest::prop_assert_eq!(page, first >> order << order);
            proptest::prop_assert!(block.contains(first) && block.contains(first + count - 1));
            proptest::prop_assert_eq!(PageBlock::decode(block.encode()), block);
        }
    }

    #[test]
    fn everything_is_a_block_too() {
        assert_eq!(PageBlock::over(IovaRange::ALL), PageBlock::ALL);
        assert_eq!(PageBlock::decode(PageBlock::ALL.encode()), PageBlock::ALL);
        assert!(PageBlock::ALL.contains(u64::MAX >> 12));
    }
}
