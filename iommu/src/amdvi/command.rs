//! Commands to the unit (AMD IOMMU 3.0, 2.4 "Commands").
//!
//! ```text
//!  first word                                     second word
//!  63  60 59              32 31               0
//! |opcode|  domain, address |  flags, device   |  address, S, PDE; or data |
//! ```

use super::bits::halves;
use super::bits::{flag, get, join, put};
use crate::page_block::PageBlock;
use crate::unit::SourceId;

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
    /// COMPLETION_WAIT with F and nothing to store: later commands start only once all
    /// earlier ones are complete.
    Fence,
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
    /// INVALIDATE_IOTLB_PAGES (2.4.4): has a device forget what it keeps in its own TLB.
    /// It is complete when the device has answered.
    DeviceTlb {
        /// DeviceID, bits 15:0, and QueueID, bits 47:32, which tells apart whose
        /// invalidations are counted together: each device's own.
        device: SourceId,
        /// Maxpend, bits 31:24: how many the device takes at a time, from 1 to 32.
        pending: u8,
        /// Which pages.
        block: PageBlock,
    },
    /// INVALIDATE_INTERRUPT_TABLE (2.4.5): forgets a device's interrupt remapping table.
    InterruptTable {
        /// DeviceID, bits 15:0.
        device: SourceId,
    },
    /// INVALIDATE_IOMMU_ALL (2.4.8): forgets everything. Needs
    /// [`Features::INVALIDATE_ALL`](super::Features::INVALIDATE_ALL).
    All,
}

/// F, bit 2 of the first word of COMPLETION_WAIT.
const FLUSH: u64 = 1 << 2;
/// PDE, bit 1 of the second word.
const PDE: u64 = 1 << 1;

const COMPLETION_WAIT: u64 = 1;
const INVALIDATE_DEVTAB_ENTRY: u64 = 2;
const INVALIDATE_IOMMU_PAGES: u64 = 3;
const INVALIDATE_IOTLB_PAGES: u64 = 4;
const INVALIDATE_INTERRUPT_TABLE: u64 = 5;
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
            Self::Fence => join(put(COMPLETION_WAIT, 60, 4) | FLUSH, 0),
            Self::DeviceTlb {
                device,
                pending,
                block,
            } => {
                let id = device.raw() as u64;
                let first = put(INVALIDATE_IOTLB_PAGES, 60, 4)
                    | put(id, 32, 16)
                    | put(pending as u64, 24, 8)
                    | put(id, 0, 16);
                join(first, block.encode())
            }
            Self::InterruptTable { device } => join(
                put(INVALIDATE_INTERRUPT_TABLE, 60, 4) | put(device.raw() as u64, 0, 16),
                0,
            ),
            Self::All => join(put(INVALIDATE_IOMMU_ALL, 60, 4), 0),
        }
    }

    /// Reads a command; `None` for one that is not here.
    pub const fn decode(raw: u128) -> Option<Self> {
        let (first, second) = halves(raw);
        match get(first, 60, 4) {
            // Without S it stores nothing.
            COMPLETION_WAIT if first & FLUSH != 0 && !flag(first, 0) => Some(Self::Fence),
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
            INVALIDATE_IOTLB_PAGES => Some(Self::DeviceTlb {
                device: SourceId::new(get(first, 0, 16) as u16),
                pending: get(first, 24, 8) as u8,
                block: PageBlock::decode(second),
            }),
            INVALIDATE_INTERRUPT_TABLE => Some(Self::InterruptTable {
                device: SourceId::new(get(first, 0, 16) as u16),
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
        let interrupts = Command::InterruptTable {
            device: SourceId::new(0x0118),
        };
        assert_eq!(interrupts.encode(), 0x5000_0000_0000_0118);
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
        let device_tlb = Command::DeviceTlb {
            device: SourceId::new(0x0118),
            pending: 32,
            block: PageBlock { page: 4, order: 2 },
        };
        assert_eq!(device_tlb.encode(), 0x5001 << 64 | 0x4000_0118_2000_0118);
        assert_eq!(Command::Fence.encode(), 0x1000_0000_0000_0004);
        assert_eq!(Command::decode(Command::ILLEGAL), None);
    }

    proptest::proptest! {
        #[test]
        fn every_command_reads_back(
            which in 0..7, id: u16, page in 0u64..1 << 52, order in 0u8..=52, data: u64, tables: bool,
        ) {
            let first = page.checked_shr(order.into()).unwrap_or(0) << order;
            let block = PageBlock { page: first, order };
            let command = match which {
                0 => Command::CompletionWait { address: page << 3 & 0x000f_ffff_ffff_fff8, data },
                1 => Command::DeviceEntry { device: SourceId::new(id) },
                2 => Command::Pages { domain: id, block, tables },
                3 => Command::DeviceTlb {
                    device: SourceId::new(id),
                    pending: (data & 31) as u8 + 1,
                    block,
                },
                4 => Command::Fence,
                5 => Command::InterruptTable { device: SourceId::new(id) },
                _ => Command::All,
            };
            proptest::prop_assert_eq!(Command::decode(command.encode()), Some(command));
        }
    }
}
