//! Feature bits.
//!
//! Virtio 1.2, sections 5.13.3 "Feature bits" and 6 "Reserved Feature Bits".

use bitflags::bitflags;

bitflags! {
    /// What this device offers. Of the bits of section 5.13.3 it lacks
    /// - `BYPASS`, which `BYPASS_CONFIG` supersedes and must not come with it;
    /// - `MMIO`: there is nothing but guest memory that could be mapped, and the
    ///   doorbell for interrupts is a reserved region, which needs no mapping.
    ///
    /// Of those of the rings it has none: a request takes two descriptors and its
    /// driver waits for it, so there is nothing to save.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u64 {
        /// `input_range`: the host's tables translate so many bits and no more.
        const INPUT_RANGE = 1 << 0;
        /// `domain_range`: so that a wild number is refused instead of making a
        /// domain.
        const DOMAIN_RANGE = 1 << 1;
        /// MAP and UNMAP: what the device is for.
        const MAP_UNMAP = 1 << 2;
        /// PROBE: it tells of the doorbell, where nothing can be mapped.
        const PROBE = 1 << 4;
        /// `bypass`: before a driver takes over, the machine is as one without an
        /// IOMMU; from then on the driver decides.
        const BYPASS_CONFIG = 1 << 6;
        /// `VIRTIO_F_VERSION_1`: there is no legacy interface.
        const VERSION_1 = 1 << 32;
    }
}

impl Features {
    /// Whether a driver may use the device with these.
    pub(super) const fn are_acceptable(accepted: u64) -> bool {
        accepted & !Self::all().bits() == 0 && accepted & Self::VERSION_1.bits() != 0
    }
}
