//! The guest as migration's source sees it.

use super::{Guest, Part, put, put_bytes};
use core::task::Poll;
use hv_core::Gfn;
use hv_core::dirty::DirtyLog;
use hv_core::memory::{Frame, Slot};
use iommu::viommu::Viommu;
use iommu::viommu::virtio::Cursor;
use log::error;
use migration::VmError;
use migration::source::SourceVm;
use migration::stream::SectionInfo;
use strandline_rt::interrupts;

impl SourceVm for Guest<'_> {
    fn slots(&self) -> &[Slot] {
        self.memory.slots()
    }

    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.memory.frame(gfn).ok()
    }

    fn log(&self) -> &DirtyLog<'_> {
        self.memory.log()
    }

    fn sections(&self) -> &[SectionInfo] {
        &self.sections
    }

    /// The log first: what the others find from then on has a place to go.
    fn start_tracking(&mut self) -> Result<(), VmError> {
        self.stop_other();
        self.memory.log().start();
        if let Err(error) = self.dma.start_tracking() {
            error!("dirty tracking of devices: {error}");
            self.memory.log().stop();
            return Err(VmError("dirty tracking cannot be started"));
        }
        if let Err(error) = self.vm.start_tracking() {
            error!("dirty tracking: {error}");
            self.dma.stop_tracking();
            self.memory.log().stop();
            return Err(VmError("dirty tracking cannot be started"));
        }
        Ok(())
    }

    fn stop_tracking(&mut self) {
        self.stop_other();
        self.vm.stop_tracking();
        self.dma.stop_tracking();
        self.memory.log().stop();
    }

    fn harvest(&mut self) {
        self.stop_other();
        self.vm.harvest(self.memory.log());
        if let Err(error) = self.dma.harvest() {
            // The last harvest then takes all that devices may write.
            error!("harvest of device writes: {error}");
        }
    }

    fn device_writable_pages(&self) -> u64 {
        self.dma.writable_pages()
    }

    fn device_downtime_us(&self) -> u64 {
        self.device.downtime_us()
    }

    fn pause(&mut self) {
        self.stop_other();
        self.paused = true;
    }

    fn quiesce(&mut self) -> Poll<Result<(), VmError>> {
        self.take_interrupts(interrupts::poll());
        match self.rest_device() {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn final_harvest(&mut self) {
        self.vm.harvest(self.memory.log());
        if let Err(error) = self.dma.harvest_stopped() {
            error!("last harvest of device writes: {error}");
        }
    }

    fn save(&mut self, index: usize, to: &mut [u8]) -> Result<usize, VmError> {
        let part = Part::all(self.vm.cpu_count()).nth(index);
        match part.ok_or(VmError("there is no such section"))? {
            Part::Cpu(number) => put(&self.vm.save_cpu(number), to),
            Part::Platform => put(&self.vm.save_platform(), to),
            Part::Viommu => {
                self.saved = Cursor::default();
                put_bytes(self.viommu.save().as_bytes(), to)
            }
            Part::Device => self.save_device(to),
        }
    }

    fn has_more(&self, index: usize) -> bool {
        Part::all(self.vm.cpu_count()).nth(index) == Some(Part::Viommu)
            && self.viommu.has_mappings(&self.dma, self.saved)
    }

    /// The mappings that the vIOMMU alone knows of.
    fn save_more(&mut self, _: usize, to: &mut [u8]) -> Result<usize, VmError> {
        Ok(self.viommu.save_mappings(&self.dma, &mut self.saved, to))
    }

    fn resume(&mut self) {
        if let Err(error) = self.restore_device() {
            error!("the guest goes on with a device that lost its state: {error}");
        }
        self.route_device();
        self.paused = false;
    }
}
