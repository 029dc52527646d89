//! Commands to the unit (AMD IOMMU 3.0, 2.4 "Commands").
//!
//! ```text
//!  first word                                     second word
//!  63  60 59              32 31               0
//! |opcode|  domain, address |  flags, device   |  address, S, PDE; or data |
//! ```

use super::bits::halves;
use super::bits::{flag, get, join, put};
use crate::unit::SourceId;

/// Which translations of a domain an invalidation drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageBlock {
    /// The first page, by number; a multiple of the block's size.
    pub page: u64,
    /// The block has 2^order pages; 52 is the whole address space.
    pub order: u8,
}

impl PageBlock {
    /// All pages.
    pub const ALL: Self = Self { page: 0, order: 52 };

    /// Address and S flag (2.4.3): with S set, the lowest zero bit from 12 on
    /// gives the size, and bit 63 clear with all below it set means everything.
    const fn encode(self) -> u64 {
        match self.order {
            0 => self.page << 12,
            order if order < 52 => {
                let below = (1 << (order - 1)) - 1;
                (self.page | below) << 12 | S
            }
            _ => ALL_PAGES | S,
        }
    }

    const fn decode(raw: u64) -> Self {
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
}

/// One command. Those that are not here are no business of this project.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// COMPLETION_WAIT (2.4.1): once all earlier commands are complete, stores
    /// `data` (S flag) at `address`, which is a multiple of 8.
    CompletionWait {
        /// Bits 51:3 of the first word.
        address: u64,
        /// The second word.
        data: u64,
    },
    /// INVALIDATE_DEVTAB_ENTRY (2.4.2): forgets a device's entry.
    DeviceEntry {
        /// DeviceID, bits 15:0.
        device: SourceId,
    },
    /// INVALIDATE_IOMMU_PAGES (2.4.3) with PDE set: forgets translations and what
    /// is cached of the tables above them.
    Pages {
        /// DomainID, bits 47:32.
        domain: u16,
        /// Which pages.
        block: PageBlock,
        /// PDE, bit 1 of the second word: entries above the leaves go too.
        tables: bool,
    },
    /// INVALIDATE_IOMMU_ALL (2.4.8): forgets everything. Needs
    /// [`Features::INVALIDATE_ALL`](super::Features::INVALIDATE_ALL).
    All,
}

/// S, bit 0 of the second word: the address holds a size.
const S: u64 = 1 << 0;
/// PDE, bit 1 of the second word.
const PDE: u64 = 1 << 1;
/// The address that with S means all pages.
const ALL_PAGES: u64 = 0x7fff_ffff_ffff_f000;

const COMPLETION_WAIT: u64 = 1;
const INVALIDATE_DEVTAB_ENTRY: u64 = 2;
const INVALIDATE_IOMMU_PAGES: u64 = 3;
const INVALIDATE_IOMMU_ALL: u64 = 8;

impl Command {
    /// A command that no unit knows: opcode 0 is reserved (2.4, table "IOMMU
    /// commands"). The unit logs ILLEGAL_COMMAND_ERROR and stops fetching.
    pub const ILLEGAL: u128 = 0;

    /// The command in memory.
    pub const fn encode(self) -> u128 {
        match self {
            Self::CompletionWait { address, data } => join(
                put(COMPLETION_WAIT, 60, 4) | address & 0x000f_ffff_ffff_fff8 | 1,
                data,
            ),
            Self::DeviceEntry { device } => join(
                put(INVALIDATE_DEVTAB_ENTRY, 60, 4) | put(device.raw() as u64, 0, 16),
                0,
            ),
            Self::Pages {
                domain,
                block,
                tables,
            } => join(
                put(INVALIDATE_IOMMU_PAGES, 60, 4) | put(domain as u64, 32, 16),
                block.encode() | if tables { PDE } else { 0 },
            ),
            Self::All => join(put(INVALIDATE_IOMMU_ALL, 60, 4), 0),
        }
    }

    /// Reads a command; `None` for one that is not here.
    pub const fn decode(raw: u128) -> Option<Self> {
        let (first, second) = halves(raw);
        match get(first, 60, 4) {
            // Without S it stores nothing.
            COMPLETION_WAIT if flag(first, 0) => Some(Self::CompletionWait {
                address: first & 0x000f_ffff_ffff_fff8,
                data: second,
            }),
            INVALIDATE_DEVTAB_ENTRY => Some(Self::DeviceEntry {
                device: SourceId::new(get(first, 0, 16) as u16),
            }),
            INVALIDATE_IOMMU_PAGES => Some(Self::Pages {
                domain: get(first, 32, 16) as u16,
                block: PageBlock::decode(second),
                tables: second & PDE != 0,
            }),
            INVALIDATE_IOMMU_ALL => Some(Self::All),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bits_of_the_specification() {
        let wait = Command::CompletionWait {
            address: 0x1238,
            data: 7,
        };
        assert_eq!(wait.encode(), 7 << 64 | 0x1000_0000_0000_1239);
        let device = Command::DeviceEntry {
            device: SourceId::new(0x0118),
        };
        assert_eq!(device.encode(), 0x2000_0000_0000_0118);
        assert_eq!(Command::All.encode(), 0x8000_0000_0000_0000);
        let all = Command::Pages {
            domain: 0x55,
            block: PageBlock::ALL,
            tables: true,
        };
        assert_eq!(
            all.encode(),
            0x7fff_ffff_ffff_f003 << 64 | 0x3000_0055_0000_0000
        );
        assert_eq!(Command::decode(Command::ILLEGAL), None);
    }

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
        fn every_command_reads_back(
            which in 0..4, id: u16, page in 0u64..1 << 52, order in 0u8..=52, data: u64, tables: bool,
        ) {
            let command = match which {
                0 => Command::CompletionWait { address: page << 3 & 0x000f_ffff_ffff_fff8, data },
                1 => Command::DeviceEntry { device: SourceId::new(id) },
                2 => Command::Pages {
                    domain: id,
                    block: PageBlock { page: page.checked_shr(order.into()).unwrap_or(0) << order, order },
                    tables,
                },
                _ => Command::All,
            };
            proptest::prop_assert_eq!(Command::decode(command.encode()), Some(command));
        }
    }
}
