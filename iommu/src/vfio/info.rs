//! `VFIO_IOMMU_GET_INFO`: what the container can do (A5, B9).

use super::abi::{
    CapDmaAvail, CapHeader, CapIovaRanges, CapMigration, Info, InfoFlags, ValidRange,
};
use super::caller::{CallerMemory, behind, read, write};
use super::{Container, VfioError};
use crate::space::DmaSpace;
use crate::tables::{EntryFormat, Pages};
use crate::unit::HostUnit;
use hv_core::memory::PhysMemory;
use hv_core::{PAGE_SHIFT, PAGE_SIZE};
use zerocopy::{Immutable, IntoBytes};

/// The page that dirty bits stand for.
pub(super) const TRACKED_PAGE: u64 = PAGE_SIZE;
/// The largest bitmap accepted whatever the memory: Linux has no other.
const USUAL_BITMAP_BYTES: u64 = 1 << 28;
/// The part of [`Info`] that every caller has: up to `iova_pgsizes`.
const INFO_MIN: usize = 16;

/// Where an x86 device sends interrupts: a unit never translates these addresses
/// (VT-d specification, section "Interrupt Address Range").
const INTERRUPTS: Pages = Pages {
    first: 0xfee0_0000 >> PAGE_SHIFT,
    last: 0xfeef_ffff >> PAGE_SHIFT,
};

/// All capabilities, in the order of Linux.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Capabilities {
    migration: CapMigration,
    dma_avail: CapDmaAvail,
    iova_ranges: CapIovaRanges,
    valid: [ValidRange; 2],
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'_, '_, M, U, F> {
    pub(super) fn get_info(
        &self,
        arg: u64,
        memory: &mut impl CallerMemory,
    ) -> Result<(), VfioError> {
        let asked: [u8; INFO_MIN] = read(memory, arg)?;
        let argsz = u32::from_le_bytes([asked[0], asked[1], asked[2], asked[3]]);
        if (argsz as usize) < INFO_MIN {
            return Err(VfioError::TooShort);
        }
        let needed = size_of::<Info>() + size_of::<Capabilities>();
        let fits = argsz as usize >= needed;
        let large_pages = match self.iommu.tables.large_leaves {
            true => PAGE_SIZE << 9,
            false => 0,
        };
        let info = Info {
            argsz: if fits { argsz } else { needed as u32 },
            flags: (InfoFlags::PGSIZES | InfoFlags::CAPS).bits(),
            iova_pgsizes: TRACKED_PAGE | large_pages,
            cap_offset: if fits { size_of::<Info>() as u32 } else { 0 },
            pad: 0,
        };
        if fits {
            let at = behind(arg, size_of::<Info>())?;
            write(memory, at, &self.capabilities())?;
        }
        // A caller of the first days knows less of the structure.
        let known = size_of::<Info>().min(argsz as usize);
        let bytes = memory.bytes_mut(arg, known).ok_or(VfioError::Fault)?;
        bytes.copy_from_slice(&info.as_bytes()[..known]);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        let at = |offset: usize| (size_of::<Info>() + offset) as u32;
        let header = |id, next| CapHeader {
            id,
            version: 1,
            next,
        };
        let dma_avail = size_of::<CapMigration>();
        let iova_ranges = dma_avail + size_of::<CapDmaAvail>();
        Capabilities {
            migration: CapMigration {
                header: header(2, at(dma_avail)),
                flags: 0,
                pad: 0,
                pgsize_bitmap: TRACKED_PAGE,
                max_dirty_bitmap_size: self.max_bitmap_bytes(),
            },
            dma_avail: CapDmaAvail {
                header: header(3, at(iova_ranges)),
                avail: u32::try_from(self.mappings.available()).unwrap_or(u32::MAX),
                pad: 0,
            },
            iova_ranges: CapIovaRanges {
                header: header(1, 0),
                nr_iovas: 2,
                reserved: 0,
            },
            valid: self.valid_ranges().map(|pages| ValidRange {
                start: pages.first << PAGE_SHIFT,
                end: (pages.last << PAGE_SHIFT) + (PAGE_SIZE - 1),
            }),
        }
    }

    /// What a mapping must lie in one of.
    pub(super) fn valid_ranges(&self) -> [Pages; 2] {
        let width = u32::from(self.iommu.address_width());
        [
            Pages {
                first: 0,
                last: INTERRUPTS.first - 1,
            },
            Pages {
                first: INTERRUPTS.last + 1,
                last: (1 << (width - PAGE_SHIFT)) - 1,
            },
        ]
    }

    /// The largest bitmap accepted: 256 MiB as in Linux, and more where more
    /// memory was given to keep bits in.
    pub(super) fn max_bitmap_bytes(&self) -> u64 {
        self.mappings.bitmap_bytes().max(USUAL_BITMAP_BYTES)
    }
}
