//! What a unit can do (AMD IOMMU 3.0, 3.4.2 "Extended Feature Register").

use bitflags::bitflags;

bitflags! {
    /// The features that matter here.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u64 {
        /// IASup: INVALIDATE_IOMMU_ALL is known.
        const INVALIDATE_ALL = 1 << 6;
        /// HASup: the unit can set accessed bits in the host's tables.
        const HOST_ACCESSED = 1 << 49;
        /// HDSup: the unit can set dirty bits in the host's tables.
        const HOST_DIRTY = 1 << 52;
    }
}

/// NpCache, bit 26 of the capability header in the unit's PCI configuration
/// space (3.2.1 "IOMMU Capability Header"): entries that are not present may be
/// cached.
pub const CAPABILITY_NP_CACHE: u32 = 1 << 26;
/// IotlbSup, bit 24 of the same: the unit can tell devices to forget what they keep in
/// their own TLBs.
pub const CAPABILITY_DEVICE_TLB: u32 = 1 << 24;
/// The capability's id, bits 7:0, and its type, bits 18:16, as one masked value:
/// a secure device (0fh) that is an IOMMU (011b).
pub const CAPABILITY_IS_IOMMU: u32 = 0x0003_000f;
/// The bits of id and type.
pub const CAPABILITY_KIND: u32 = 0x0007_00ff;
