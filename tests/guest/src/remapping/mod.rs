//! The guest's IOMMU, whichever it is given: ACPI says which.

mod virtio;
mod vtd;

use crate::machine::MachineError;
use hv_core::Gpa;
use iommu::space::Access;
use iommu::{Iova, IovaRange};
pub(crate) use virtio::{Virtio, VirtioError, find as find_virtio};
pub(crate) use vtd::{Memory, Vtd, unit_range};

/// A DMA of the device that was refused.
pub(crate) struct Fault {
    pub(crate) iova: Iova,
    pub(crate) write: bool,
}

/// What the guest asks of its IOMMU, for its one device.
pub(crate) trait Remapping {
    /// Attaches the device to the domain of that number. What was mapped in it when
    /// it was used last is mapped again.
    fn attach(&mut self, domain: usize) -> Result<(), MachineError>;

    /// Maps pages for the device in the domain it is attached to.
    fn map(&mut self, range: IovaRange, gpa: Gpa, access: Access) -> Result<(), MachineError>;

    /// Unmaps pages in the domain the device is attached to. On return the device
    /// does not reach them any more.
    fn unmap(&mut self, range: IovaRange) -> Result<(), MachineError>;

    /// The oldest fault of the device that nobody has taken yet.
    fn take_fault(&mut self) -> Option<Fault>;
}

/// An IOMMU of either kind.
#[allow(clippy::large_enum_variant, reason = "there is one, and no heap")]
pub(crate) enum AnyRemapping {
    Vtd(Vtd),
    Virtio(Virtio),
}

impl AnyRemapping {
    pub(crate) fn get(&mut self) -> &mut dyn Remapping {
        match self {
            Self::Vtd(vtd) => vtd,
            Self::Virtio(virtio) => virtio,
        }
    }
}
