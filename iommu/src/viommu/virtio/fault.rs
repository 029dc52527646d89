//! The report of a refused DMA.
//!
//! Virtio 1.2, section 5.13.6.9 "Fault reporting".

use crate::Iova;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// `VIRTIO_IOMMU_FAULT_F_READ`.
const READ: u32 = 1 << 0;
/// `VIRTIO_IOMMU_FAULT_F_WRITE`.
const WRITE: u32 = 1 << 1;
/// `VIRTIO_IOMMU_FAULT_F_ADDRESS`.
const ADDRESS: u32 = 1 << 8;

/// `VIRTIO_IOMMU_FAULT_R_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FaultReason {
    /// The endpoint is attached to no domain.
    Domain = 1,
    /// Nothing is mapped there, or not for this access.
    Mapping = 2,
}

/// `struct virtio_iommu_fault`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Fault {
    reason: u8,
    reserved: [u8; 3],
    /// What kind of access, and that the address is given.
    flags: U32,
    /// Whose.
    endpoint: U32,
    reserved1: U32,
    /// Where.
    address: U64,
}

impl Fault {
    pub(super) fn new(reason: FaultReason, endpoint: u32, iova: Iova, write: bool) -> Self {
        let access = if write { WRITE } else { READ };
        Self {
            reason: reason as u8,
            reserved: [0; 3],
            flags: (access | ADDRESS).into(),
            endpoint: endpoint.into(),
            reserved1: 0.into(),
            address: iova.raw().into(),
        }
    }
}
