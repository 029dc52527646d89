//! An NVMe controller: registers that are trapped, and MSI-X.

use crate::guest::build::BuildError;
use crate::host::Host;
use crate::vectors;
use hv_core::Gpa;
use hv_core::device::nvme::Nvme;
use hv_core::mmio::Mmio;
use hv_core::platform::pci::{MAX_VECTORS, MsixLayout};
use hv_core::vm::MmioRegion;
use migration::VmError;
use strandline_rt::pci::{Message, MsixPlace};
use strandline_rt::physical::MmioWindow;

/// A controller that is the guest's.
pub(super) struct AssignedNvme {
    nvme: Nvme<MmioWindow>,
    msix: MsixLayout,
}

impl AssignedNvme {
    /// How long saving and restoring take, in microseconds.
    pub(super) const DOWNTIME_US: u64 = 0;

    /// The controller behind `registers`, which was reset. Its vectors are sent to
    /// the host's; none is sent before MSI-X is turned on.
    pub(super) fn new(host: &Host, registers: MmioWindow) -> Result<Self, BuildError> {
        let place = host.device.function.msix_place(&host.config)?;
        let vectors = place.vectors.min(MAX_VECTORS as u16);
        for index in 0..vectors {
            let vector = vectors::DEVICE_MSIX + index as u8;
            let message = Message::fixed(host.apic.id(), vector)?;
            program(&registers, &place, index, message);
        }
        Ok(Self {
            nvme: Nvme::new(registers),
            msix: MsixLayout {
                vectors,
                table: place.table,
                pending: place.pending,
            },
        })
    }

    /// What the guest finds of MSI-X: as many vectors as are served.
    pub(super) fn msix(&self) -> MsixLayout {
        self.msix
    }

    /// The registers at `gpa`, up to the MSI-X structures, which are the platform's.
    pub(super) fn region(&mut self, gpa: Gpa) -> MmioRegion<'_> {
        MmioRegion {
            gpa,
            bytes: self.msix.table.min(self.msix.pending).into(),
            device: &mut self.nvme,
        }
    }

    pub(super) fn serve(&mut self) {
        self.nvme.serve();
    }

    pub(super) fn is_resting(&mut self) -> Result<bool, VmError> {
        Err(VmError("an NVMe controller cannot be moved"))
    }

    pub(super) fn save(&mut self, _: &mut [u8]) -> Result<usize, VmError> {
        Err(VmError("an NVMe controller cannot be moved"))
    }

    pub(super) fn load(&mut self, _: &[u8]) -> Result<(), VmError> {
        Err(VmError("an NVMe controller cannot be moved"))
    }

    pub(super) fn restore(&mut self) -> Result<(), VmError> {
        Ok(())
    }
}

/// Writes one entry of the device's own MSI-X table (PCI Local Bus Specification
/// 3.0, section 6.8.2): address, data, and vector control without its mask.
fn program(registers: &MmioWindow, place: &MsixPlace, index: u16, message: Message) {
    let entry = place.table as usize + 16 * usize::from(index);
    registers.write32(entry, message.address as u32);
    registers.write32(entry + 4, (message.address >> 32) as u32);
    registers.write32(entry + 8, message.data);
    registers.write32(entry + 12, 0);
}
