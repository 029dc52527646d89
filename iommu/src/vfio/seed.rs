//! The call this project started from, byte for byte: "unmap, and tell me which
//! pages may have been written".
//!
//! Proposed for Linux in November 2019 as `VFIO_IOMMU_UNMAP_DMA_GET_BITMAP`
//! ("vfio: KABI for migration interface", version 9), and superseded by the flag
//! `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP` on the ordinary unmap in Linux 5.8. The
//! layout is the proposal's; the conduct follows what was learnt by 5.8:
//!
//! - the whole request is checked, bitmap included, before anything changes;
//! - an unknown flag is refused;
//! - a bitmap is filled only if its flag is set, has one bit a page, and never
//!   more than the pages take is written;
//! - it holds what the unmap itself reported, not what is left after it;
//! - tracking must have been started for a bitmap to be asked for;
//! - the caller passes zeroed memory.

use super::abi::Bitmap;
use super::caller::{CallerMemory, EmulatedDevices, read, write};
use super::container::Version;
use super::info::TRACKED_PAGE;
use super::{Container, VfioError};
use crate::tables::EntryFormat;
use crate::unit::HostUnit;
use crate::{Iova, IovaRange};
use hv_core::memory::PhysMemory;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The command's number: `_IO(';', 100 + 18)`.
pub const UNMAP_DMA_GET_BITMAP: u32 = 0x3b76;

/// The flag with which a bitmap is asked for; without it, this is a plain unmap.
pub const FLAG_GET_DIRTY_BITMAP: u32 = 1 << 0;

/// `struct vfio_iommu_type1_dma_unmap_bitmap`, on a 64-bit little-endian machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnmapBitmap {
    /// The size of the structure as the caller knows it, 40 at the least.
    pub argsz: u32,
    /// 0 or [`FLAG_GET_DIRTY_BITMAP`].
    pub flags: u32,
    /// The first IOVA, page aligned.
    pub iova: u64,
    /// In: how many bytes to unmap. Out, on success: how many were mapped.
    pub size: u64,
    /// The size of the bitmap in bytes: 8 for each 64 pages begun.
    pub bitmap_size: u64,
    /// The caller's address of the bitmap.
    pub bitmap: u64,
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'_, '_, M, U, F> {
    pub(super) fn unmap_dma_get_bitmap(
        &mut self,
        arg: u64,
        memory: &mut impl CallerMemory,
        devices: &mut impl EmulatedDevices,
    ) -> Result<(), VfioError> {
        // The proposal had it for version 2 only, unlike the flag of 5.8.
        if self.version == Version::V1 {
            return Err(VfioError::Version1);
        }
        let request: UnmapBitmap = read(memory, arg)?;
        if (request.argsz as usize) < size_of::<UnmapBitmap>() {
            return Err(VfioError::TooShort);
        }
        if request.flags & !FLAG_GET_DIRTY_BITMAP != 0 {
            return Err(VfioError::Flags);
        }
        let range = IovaRange::from_bytes(Iova::new(request.iova), request.size)?;
        let mut bitmap = None;
        if request.flags & FLAG_GET_DIRTY_BITMAP != 0 {
            let asked = Bitmap {
                pgsize: TRACKED_PAGE,
                size: request.bitmap_size,
                data: request.bitmap,
            };
            self.check_bitmap(&asked, request.size, memory)?;
            if !self.mappings.is_tracking() {
                return Err(VfioError::NotTracking);
            }
            bitmap = Some(request.bitmap);
        }
        let answer = (arg, size_of::<UnmapBitmap>());
        let size = self.unmap(range.into(), answer, bitmap, memory, devices)?;
        write(memory, arg, &UnmapBitmap { size, ..request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn the_layout_is_that_of_the_c_structure() {
        assert_eq!(size_of::<UnmapBitmap>(), 40);
        assert_eq!(offset_of!(UnmapBitmap, flags), 4);
        assert_eq!(offset_of!(UnmapBitmap, iova), 8);
        assert_eq!(offset_of!(UnmapBitmap, size), 16);
        assert_eq!(offset_of!(UnmapBitmap, bitmap_size), 24);
        assert_eq!(offset_of!(UnmapBitmap, bitmap), 32);
        assert_eq!(UNMAP_DMA_GET_BITMAP, u32::from(b';') << 8 | (100 + 18));
    }
}
