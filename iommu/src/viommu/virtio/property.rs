//! What PROBE tells of an endpoint.
//!
//! Virtio 1.2, sections 5.13.6.7 "PROBE request" and 5.13.6.8.1 "Property
//! RESV_MEM". All endpoints are alike: each has the one property.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{Immutable, IntoBytes};

/// `VIRTIO_IOMMU_PROBE_T_RESV_MEM`.
const RESERVED_MEMORY: u16 = 1;
/// `VIRTIO_IOMMU_RESV_MEM_T_MSI`.
const MSI: u8 = 1;

/// The doorbell of message signalled interrupts on a PC: a write there is an
/// interrupt before it is a DMA, so no unit translates it.
pub(super) const DOORBELL: core::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// `struct virtio_iommu_probe_resv_mem`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ReservedMemory {
    /// Type in bits 11:0, the others reserved.
    kind: U16,
    /// The bytes behind these two fields.
    length: U16,
    /// What it is reserved for.
    subtype: u8,
    reserved: [u8; 3],
    /// The first address.
    start: U64,
    /// The last address.
    end: U64,
}

/// The size of an endpoint's properties.
pub(super) const PROBE_SIZE: usize = size_of::<ReservedMemory>();
/// Type and length.
const HEADER: usize = 4;

/// The properties of any endpoint.
pub(super) fn properties() -> [u8; PROBE_SIZE] {
    zerocopy::transmute!(ReservedMemory {
        kind: U16::new(RESERVED_MEMORY),
        length: U16::new((PROBE_SIZE - HEADER) as u16),
        subtype: MSI,
        reserved: [0; 3],
        start: U64::new(*DOORBELL.start()),
        end: U64::new(*DOORBELL.end()),
    })
}
