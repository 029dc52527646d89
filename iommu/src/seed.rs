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
//! - bits are set, never cleared: the caller passes zeroed memory.

use crate::addr::RangeError;
use crate::bitmap::DirtyBitmap;
use crate::layer::Iommu;
use crate::tables::EntryFormat;
use crate::unit::{DomainId, HostUnit};
use crate::unmap::UnmapError;
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
    /// Where the caller has the bitmap. What it points to is passed beside the
    /// request, as a pointer means nothing to this layer.
    pub bitmap: u64,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// The command is another one.
    #[error("unknown command")]
    UnknownCommand,
    /// There are fewer bytes than the structure has.
    #[error("the request cannot be read")]
    Unreadable,
    /// `argsz` is less than the structure has.
    #[error("the request is too short")]
    TooShort,
    /// A flag is set that means nothing.
    #[error("unknown flag")]
    UnknownFlag,
    /// `iova` and `size` are no range of whole pages.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// `bitmap_size` is less than the pages take.
    #[error("the bitmap is too small for the range")]
    BitmapTooSmall,
    /// There is less memory for the bitmap than the pages take.
    #[error("the bitmap cannot be written")]
    BitmapUnwritable,
    /// The unmap was refused, or failed.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
}

impl SeedError {
    /// The positive errno that VFIO's users expect.
    pub const fn errno(self) -> i32 {
        const EIO: i32 = 5;
        const EFAULT: i32 = 14;
        const EINVAL: i32 = 22;
        const ENOTTY: i32 = 25;
        match self {
            Self::UnknownCommand => ENOTTY,
            Self::Unreadable | Self::BitmapUnwritable => EFAULT,
            Self::Unmap(UnmapError::Unit(_)) => EIO,
            Self::TooShort
            | Self::UnknownFlag
            | Self::Range(_)
            | Self::BitmapTooSmall
            | Self::Unmap(_) => EINVAL,
        }
    }
}

/// Does `command` on `domain`. `request` holds the structure, of which `size` is
/// set to the bytes unmapped; on an error it is untouched. `bitmap` is the memory
/// the structure's pointer stands for, as words in memory order.
pub fn ioctl<M: PhysMemory, U: HostUnit, F: EntryFormat>(
    iommu: &mut Iommu<'_, M, U, F>,
    domain: DomainId,
    command: u32,
    request: &mut [u8],
    bitmap: &mut [u64],
) -> Result<(), SeedError> {
    if command != UNMAP_DMA_GET_BITMAP {
        return Err(SeedError::UnknownCommand);
    }
    let (header, _) = UnmapBitmap::read_from_prefix(request).map_err(|_| SeedError::Unreadable)?;
    let unmapped = unmap_bitmap(iommu, domain, &header, bitmap)?;
    let answer = UnmapBitmap {
        size: unmapped,
        ..header
    };
    answer
        .write_to_prefix(request)
        .map_err(|_| SeedError::Unreadable)
}

/// Does a request that is read already. Returns how many bytes were unmapped.
pub fn unmap_bitmap<M: PhysMemory, U: HostUnit, F: EntryFormat>(
    iommu: &mut Iommu<'_, M, U, F>,
    domain: DomainId,
    request: &UnmapBitmap,
    bitmap: &mut [u64],
) -> Result<u64, SeedError> {
    if (request.argsz as usize) < size_of::<UnmapBitmap>() {
        return Err(SeedError::TooShort);
    }
    if request.flags & !FLAG_GET_DIRTY_BITMAP != 0 {
        return Err(SeedError::UnknownFlag);
    }
    let range = IovaRange::from_bytes(Iova::new(request.iova), request.size)?;
    if request.flags & FLAG_GET_DIRTY_BITMAP == 0 {
        return Ok(iommu.unmap(domain, range, None)?.bytes());
    }
    let words = DirtyBitmap::words_needed(range.pages());
    if request.bitmap_size / 8 < words {
        return Err(SeedError::BitmapTooSmall);
    }
    // Only the words the pages take: what lies behind them is not ours to write.
    let bitmap = usize::try_from(words)
        .ok()
        .and_then(|words| bitmap.get_mut(..words))
        .ok_or(SeedError::BitmapUnwritable)?;
    let unmapped = iommu.unmap(domain, range, Some(&mut DirtyBitmap::new(bitmap)))?;
    Ok(unmapped.bytes())
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
