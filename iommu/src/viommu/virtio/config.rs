//! The device's configuration space.
//!
//! Virtio 1.2, section 5.13.4 "Device configuration layout".

use super::property::PROBE_SIZE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// The page sizes that can be mapped: any multiple of 4 KiB. The other bit says
/// which larger size the host's tables hold in one leaf.
pub(super) const PAGE_SIZES: u64 = 1 << 12 | 1 << 21;
/// The last number of a domain.
pub(super) const LAST_DOMAIN: u32 = 0xffff;
/// Where `bypass` is: all a driver may write.
pub(super) const BYPASS: usize = 36;

/// `struct virtio_iommu_config`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    /// The lowest bit is the granularity, the others are hints.
    page_size_mask: U64,
    /// The first IOVA.
    input_start: U64,
    /// The last IOVA.
    input_end: U64,
    /// The first domain.
    domain_start: U32,
    /// The last domain.
    domain_end: U32,
    /// The size of PROBE's properties.
    probe_size: U32,
    /// Whether endpoints without a domain reach all of the guest's memory.
    bypass: u8,
    reserved: [u8; 3],
}

impl Config {
    /// With so many bits of IOVA.
    pub(super) fn new(width: u8, bypass: bool) -> Self {
        Self {
            page_size_mask: PAGE_SIZES.into(),
            input_start: 0.into(),
            input_end: last_input(width).into(),
            domain_start: 0.into(),
            domain_end: LAST_DOMAIN.into(),
            probe_size: (PROBE_SIZE as u32).into(),
            bypass: bypass.into(),
            reserved: [0; 3],
        }
    }

    /// `width` bytes (up to 8) from `offset` on; zero past the end.
    pub(super) fn read(&self, offset: usize, width: u8) -> u64 {
        let mut value = [0; 8];
        let bytes = self.as_bytes().iter().skip(offset);
        for (to, from) in value.iter_mut().take(width.into()).zip(bytes) {
            *to = *from;
        }
        u64::from_le_bytes(value)
    }
}

/// The last IOVA of `width` bits.
pub(super) const fn last_input(width: u8) -> u64 {
    if width >= 64 {
        u64::MAX
    } else {
        (1 << width) - 1
    }
}
