//! The IOMMU layer: what a passthrough device can reach, and which guest pages it
//! may have written.
//!
//! Reading order, which is also the order of events when a guest unmaps:
//! `viommu` decodes the guest's invalidation and compares the guest's tables
//! with what is mapped; the `Iommu` object takes the translation out of the host
//! tables, has the [`unit::HostUnit`] invalidate and drain, harvests, marks the
//! pages in the guest's dirty log, and only then does the guest's wait descriptor
//! complete.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod acpi_table;
pub mod addr;
pub mod amdvi;
mod attach;
pub mod bitmap;
mod bits;
pub mod device_tlb;
pub mod dirty_mode;
mod dma_space;
pub mod dmar;
mod domain;
mod harvest;
pub mod hold;
pub mod host;
mod interrupts;
pub mod ivrs;
pub mod layer;
pub mod loan;
pub mod page_block;
pub mod pins;
pub mod reserved;
pub mod space;
pub mod tables;
mod tracking;
pub mod unit;
pub mod unmap;
pub mod vfio;
pub mod viommu;
pub mod viot;
pub mod vtd;

pub use addr::{Iova, IovaRange};
pub use bitmap::DirtyBitmap;
pub use domain::{MAX_DEVICES, MAX_DOMAINS};
pub use layer::{Iommu, Parts};
