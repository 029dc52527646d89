//! The passthrough device: what it may do, and how it is handed over.

use super::Guest;
use hv_core::device::edu::{Edu, EduError, EduState, Staging};
use hv_core::memory::PhysMemory;
use hv_core::{Hpa, PAGE_SIZE};
use iommu::Iova;
use iommu::loan::Loan;
use iommu::space::SpaceError;
use log::error;
use migration::VmError;
use strandline_rt::physical::{IdentityMemory, MmioWindow};
use strandline_rt::{cpu, interrupts};

/// PCI command register: bus master.
const BUS_MASTER: u16 = 1 << 2;
/// Where the device finds the staging page; within its 28-bit DMA mask.
const STAGING_IOVA: Iova = Iova::new(PAGE_SIZE);
/// How many interrupts, ticks mostly, a transfer of the device's state may take.
const PATIENCE: u32 = 2000;

/// What is needed to read the device's state out and to put it back.
pub(super) struct Handover<'m> {
    pub(super) edu: Edu<MmioWindow>,
    pub(super) memory: &'m IdentityMemory,
    /// A page of the hypervisor.
    pub(super) staging: Hpa,
    /// The state of the guest's device while it is not in the device: read out and
    /// not put back, or arrived and not put in yet.
    pub(super) state: Option<EduState>,
}

/// Why the device's state could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum HandoverError {
    #[error(transparent)]
    Device(#[from] EduError),
    #[error(transparent)]
    Space(#[from] SpaceError),
}

impl HandoverError {
    /// Notes the details, which the engine's error has no room for.
    fn for_engine(self) -> VmError {
        error!("moving the device's state: {self}");
        VmError("the device's state cannot be moved")
    }
}

impl Handover<'_> {
    fn transfer<T>(
        &self,
        act: impl FnOnce(&Self, &Staging<'_>, &mut dyn FnMut() -> bool) -> Result<T, EduError>,
    ) -> Result<T, EduError> {
        let frame = self.memory.frame(self.staging).ok_or(EduError::Stuck)?;
        let staging = Staging {
            frame,
            address: STAGING_IOVA.raw(),
        };
        let mut patience = PATIENCE;
        act(self, &staging, &mut || {
            // The tick wakes it, however long the device takes.
            cpu::halt_until_interrupt();
            patience = patience.saturating_sub(1);
            patience > 0
        })
    }
}

impl Guest<'_> {
    /// Makes the device do what the guest configured: DMA or none, and interrupts
    /// to the host's vector, from where they are injected.
    pub(super) fn route_device(&mut self) {
        let pci = &self.vm.platform().pci;
        let bus_master = pci
            .command(0)
            .is_some_and(|command| command & BUS_MASTER != 0);
        let wants_interrupts = pci.msi(0).is_some();
        let function = self.device.function;
        function.enable(self.config, bus_master);
        let routed = if wants_interrupts {
            function.enable_msi(self.config, self.apic_id, crate::vectors::DEVICE)
        } else {
            function.disable_msi(self.config)
        };
        if let Err(error) = routed {
            error!("{error}");
        }
    }

    /// Whether the device is at rest. When it is, its interrupts are silenced, and
    /// those that were on their way have reached the guest's interrupt controller.
    pub(super) fn rest_device(&mut self) -> bool {
        let is_resting = self.handover.edu.is_resting();
        if is_resting {
            // The end of a transfer and its interrupt are one event for the
            // device: whoever sees the first finds the second at the local APIC.
            self.take_interrupts(interrupts::poll());
            if let Err(error) = self.device.function.disable_msi(self.config) {
                error!("{error}");
            }
        }
        is_resting
    }

    /// Reads the state of the resting device out.
    pub(super) fn save_device(&mut self) -> Result<EduState, VmError> {
        let state = self
            .with_device(|handover| {
                handover.transfer(|it, staging, mut relax| it.edu.save(staging, &mut relax))
            })
            .map_err(HandoverError::for_engine)?;
        self.handover.state = Some(state);
        Ok(state)
    }

    /// Puts the state that is held into the device, if any is.
    pub(super) fn restore_device(&mut self) -> Result<(), VmError> {
        let Some(state) = self.handover.state.take() else {
            return Ok(());
        };
        self.with_device(|handover| {
            handover.transfer(|it, staging, mut relax| it.edu.restore(&state, staging, &mut relax))
        })
        .map_err(HandoverError::for_engine)
    }

    /// Has the device reach the staging page and nothing else while `act` runs.
    fn with_device<T>(
        &mut self,
        act: impl FnOnce(&Handover<'_>) -> Result<T, EduError>,
    ) -> Result<T, HandoverError> {
        let loan: Loan =
            self.dma
                .borrow_device(self.source_id, self.handover.staging, STAGING_IOVA)?;
        // The guest may not have let it do DMA.
        self.device.function.enable(self.config, true);
        let result = act(&self.handover);
        self.dma.give_back(loan)?;
        Ok(result?)
    }
}
