//! Numbers and structures of the interface, on a 64-bit little-endian machine.
//!
//! Linux `include/uapi/linux/vfio.h`, section "API for Type1 VFIO IOMMU". They are
//! checked against the crate `vfio-bindings` in `tests/vfio_abi.rs`.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_CHECK_EXTENSION`: `_IO(';', 100 + 1)`.
pub const CHECK_EXTENSION: u32 = 0x3b65;
/// `VFIO_IOMMU_GET_INFO`: `_IO(';', 100 + 12)`.
pub const GET_INFO: u32 = 0x3b70;
/// `VFIO_IOMMU_MAP_DMA`: `_IO(';', 100 + 13)`.
pub const MAP_DMA: u32 = 0x3b71;
/// `VFIO_IOMMU_UNMAP_DMA`: `_IO(';', 100 + 14)`.
pub const UNMAP_DMA: u32 = 0x3b72;
/// `VFIO_IOMMU_DIRTY_PAGES`: `_IO(';', 100 + 17)`.
pub const DIRTY_PAGES: u32 = 0x3b75;

/// What `VFIO_CHECK_EXTENSION` can be asked about.
pub mod extension {
    /// `VFIO_TYPE1_IOMMU`: version 1 of the interface.
    pub const TYPE1: u64 = 1;
    /// `VFIO_TYPE1v2_IOMMU`: version 2 of the interface.
    pub const TYPE1_V2: u64 = 3;
    /// `VFIO_UNMAP_ALL`: [`super::UnmapFlags::ALL`] is known.
    pub const UNMAP_ALL: u64 = 9;
    /// `VFIO_UPDATE_VADDR`: the `VADDR` flags are known and can be used.
    pub const UPDATE_VADDR: u64 = 10;
}

bitflags! {
    /// Flags of [`DmaMap`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct MapFlags: u32 {
        /// Devices may read.
        const READ = 1 << 0;
        /// Devices may write.
        const WRITE = 1 << 1;
        /// Only the caller's address of a mapping changes.
        const VADDR = 1 << 2;
    }

    /// Flags of [`DmaUnmap`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct UnmapFlags: u32 {
        /// A [`Bitmap`] follows, which is to be filled.
        const GET_DIRTY_BITMAP = 1 << 0;
        /// Everything; `iova` and `size` are 0.
        const ALL = 1 << 1;
        /// Nothing is unmapped, only the caller's address becomes invalid.
        const VADDR = 1 << 2;
    }

    /// Flags of [`DirtyBitmapHeader`], one of which is set.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DirtyFlags: u32 {
        /// Start tracking.
        const START = 1 << 0;
        /// Stop tracking.
        const STOP = 1 << 1;
        /// A [`BitmapRange`] follows: report and forget.
        const GET_BITMAP = 1 << 2;
    }

    /// Flags of [`Info`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct InfoFlags: u32 {
        /// `iova_pgsizes` is valid.
        const PGSIZES = 1 << 0;
        /// There are capabilities.
        const CAPS = 1 << 1;
    }
}

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// The size of the structure as the caller knows it.
    pub argsz: u32,
    /// [`MapFlags`].
    pub flags: u32,
    /// The caller's address of the memory.
    pub vaddr: u64,
    /// The first IOVA.
    pub iova: u64,
    /// In bytes.
    pub size: u64,
}

/// `struct vfio_iommu_type1_dma_unmap`, without its `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// The size of the structure and its `data` as the caller knows it.
    pub argsz: u32,
    /// [`UnmapFlags`].
    pub flags: u32,
    /// The first IOVA.
    pub iova: u64,
    /// In: how many bytes. Out, on success: how many of them were mapped.
    pub size: u64,
}

/// `struct vfio_bitmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Bitmap {
    /// How many bytes a bit stands for: 4096.
    pub pgsize: u64,
    /// The size of the bitmap in bytes: 8 for each 64 pages begun.
    pub size: u64,
    /// The caller's address of it.
    pub data: u64,
}

/// `struct vfio_iommu_type1_dirty_bitmap`, without its `data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DirtyBitmapHeader {
    /// The size of the structure and its `data` as the caller knows it.
    pub argsz: u32,
    /// [`DirtyFlags`].
    pub flags: u32,
}

/// `struct vfio_iommu_type1_dirty_bitmap_get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BitmapRange {
    /// The first IOVA.
    pub iova: u64,
    /// In bytes.
    pub size: u64,
    /// Where the bits go.
    pub bitmap: Bitmap,
}

/// `struct vfio_iommu_type1_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Info {
    /// In: how many bytes there are. Out: how many there should be.
    pub argsz: u32,
    /// [`InfoFlags`].
    pub flags: u32,
    /// The page sizes the unit has, one bit each.
    pub iova_pgsizes: u64,
    /// Where the first capability is, from the start of this structure; 0 if
    /// there was no room for them.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct vfio_info_cap_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapHeader {
    /// Which capability.
    pub id: u16,
    /// Its version.
    pub version: u16,
    /// Where the next one is, from the start of [`Info`]; 0 after the last.
    pub next: u32,
}

/// `struct vfio_iommu_type1_info_cap_migration`, capability 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapMigration {
    /// Id 2, version 1.
    pub header: CapHeader,
    /// 0.
    pub flags: u32,
    /// Zero; the C compiler's padding.
    pub pad: u32,
    /// The page sizes that bits can stand for.
    pub pgsize_bitmap: u64,
    /// The largest bitmap accepted, in bytes.
    pub max_dirty_bitmap_size: u64,
}

/// `struct vfio_iommu_type1_info_dma_avail`, capability 3, padded to 8 bytes as
/// all capabilities are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapDmaAvail {
    /// Id 3, version 1.
    pub header: CapHeader,
    /// How many more mappings there may be.
    pub avail: u32,
    /// Zero.
    pub pad: u32,
}

/// `struct vfio_iommu_type1_info_cap_iova_range`, capability 1, without its
/// `iova_ranges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapIovaRanges {
    /// Id 1, version 1.
    pub header: CapHeader,
    /// How many ranges follow.
    pub nr_iovas: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct vfio_iova_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ValidRange {
    /// The first address.
    pub start: u64,
    /// The last address.
    pub end: u64,
}
