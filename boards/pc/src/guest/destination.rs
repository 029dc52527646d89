//! The guest as migration's destination sees it: empty until it arrives.

use super::{Guest, Part, VIOMMU_BUDGET, get};
use crate::events;
use core::task::Poll;
use hv_core::Gfn;
use hv_core::memory::Frame;
use hv_core::platform::PlatformState;
use hv_core::vm::{CpuState, RestoreError};
use iommu::viommu::vtd::VtdState;
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
        if config.sections != self.sections {
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
        let position = self.sections.iter().position(|known| *known == info);
        let part = position.and_then(|at| Part::all(self.vm.cpu_count()).nth(at));
        match part.ok_or(VmError("there is no such section"))? {
            Part::Cpu(number) => {
                let state = get::<CpuState>(bytes)?;
                self.vm.restore_cpu(number, &state).map_err(refused)
            }
            Part::Platform => {
                let state = get::<PlatformState>(bytes)?;
                self.vm.restore_platform(&state).map_err(refused)
            }
            Part::Viommu => {
                let state = get::<VtdState>(bytes)?;
                self.viommu.restore(&state).map_err(|error| {
                    error!("{error}");
                    VmError("the vIOMMU's state is refused")
                })
            }
            Part::Device => self.load_device(bytes),
        }
    }

    /// Mappings first: the vIOMMU reads the guest's tables, which arrived with its
    /// memory. Then the device, while it can reach nothing of the guest.
    fn complete(&mut self) -> Poll<Result<(), VmError>> {
        let served = self
            .viommu
            .service(self.memory, &mut self.dma, VIOMMU_BUDGET);
        match served {
            Ok(Service::Idle) => Poll::Ready(self.restore_device()),
            Ok(Service::More) => Poll::Pending,
            Err(error) => {
                error!("the device's mappings: {error}");
                Poll::Ready(Err(VmError("the device's mappings cannot be made")))
            }
        }
    }

    fn start(&mut self) {
        self.route_device();
        self.exits.skip(self.vm.exits());
        self.paused = false;
    }

    /// The device first: it must not write what is about to be somebody else's.
    fn discard(&mut self) {
        self.paused = true;
        self.release_device();
        for slot in self.memory.slots() {
            for index in 0..slot.frames {
                if let Ok(frame) = self.memory.frame(Gfn::new(slot.gfn.number() + index)) {
                    frame.clear();
                }
            }
        }
    }
}

fn refused(error: RestoreError) -> VmError {
    error!("{error}");
    VmError("the virtual machine's state is refused")
}
