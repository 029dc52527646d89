//! The guest as migration's destination sees it: empty until it arrives.

use super::{Guest, VIOMMU_BUDGET, WRONG_LENGTH, get};
use crate::events;
use hv_core::Gfn;
use hv_core::memory::Frame;
use hv_core::vm::VmState;
use iommu::viommu::any::AnyState;
use iommu::viommu::{Service, Viommu};
use log::error;
use migration::VmError;
use migration::destination::DestinationVm;
use migration::stream::{Config, Refusal, SectionInfo};

impl DestinationVm for Guest<'_> {
    fn prepare(&mut self, config: &Config) -> Result<(), Refusal> {
        let slots = self.memory.slots();
        let same_memory = config.memory.len() == slots.len()
            && config
                .memory
                .iter()
                .zip(slots)
                .all(|(run, slot)| (run.gfn, run.frames) == (slot.gfn, slot.frames));
        if !same_memory {
            return Err(Refusal::Memory);
        }
        if config.sections[..] != self.sections[..] {
            return Err(Refusal::Sections);
        }
        Ok(())
    }

    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.memory.frame(gfn).ok()
    }

    fn mismatch(&mut self, gfn: Gfn) {
        error!("guest frame {gfn} differs from the source's");
        events::emit("mismatch", &[("gfn", gfn.number().into())]);
    }

    fn load(&mut self, info: SectionInfo, bytes: &[u8]) -> Result<(), VmError> {
        match self.sections.iter().position(|known| *known == info) {
            Some(0) => {
                let state = get::<VmState>(bytes)?;
                self.vm.restore(&state).map_err(|error| {
                    error!("{error}");
                    VmError("the virtual machine's state is refused")
                })
            }
            Some(1) => {
                let state = AnyState::read(self.viommu.kind(), bytes).ok_or(WRONG_LENGTH)?;
                self.viommu.restore(&state).map_err(|error| {
                    error!("{error}");
                    VmError("the vIOMMU's state is refused")
                })
            }
            Some(2) => self.load_device(bytes),
            _ => Err(VmError("there is no such section")),
        }
    }

    /// Mappings that only the vIOMMU of the source knew of.
    fn load_more(&mut self, _: SectionInfo, bytes: &[u8]) -> Result<(), VmError> {
        let restored = self.viommu.restore_mappings(&mut self.dma, bytes);
        restored.map_err(|error| {
            error!("{error}");
            VmError("the vIOMMU's mappings are refused")
        })
    }

    /// Mappings first: the vIOMMU reads the guest's tables, which arrived with its
    /// memory. Then the device, while it can reach nothing of the guest.
    fn complete(&mut self) -> Result<(), VmError> {
        loop {
            let served = self
                .viommu
                .service(self.memory, &mut self.dma, VIOMMU_BUDGET);
            match served {
                Ok(Service::Idle) => break,
                Ok(Service::More) => {}
                Err(error) => {
                    error!("the device's mappings: {error}");
                    return Err(VmError("the device's mappings cannot be made"));
                }
            }
        }
        self.restore_device()
    }

    fn start(&mut self) {
        self.route_device();
        self.paused = false;
    }

    fn discard(&mut self) {
        self.paused = true;
    }
}
