//! An NVMe controller: registers that are trapped, MSI-X, and queues that are brought
//! in another controller to where they are in this one.

use super::{Lender, VectorList};
use crate::events;
use crate::guest::build::BuildError;
use crate::guest::{get, put};
use crate::host::Host;
use crate::vectors;
use hv_core::clock::Clock;
use hv_core::device::nvme::{
    GuestDma, MAX_QUEUES, Nvme, NvmeError, NvmeState, RingPages, SCRATCH_PAGES, Scratch,
};
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;
use hv_core::platform::pci::{MAX_VECTORS, MsixLayout};
use hv_core::vm::{MmioRegion, Reason};
use hv_core::{Gpa, Hpa};
use iommu::space::SpaceError;
use iommu::unit::UnitError;
use iommu::{Iova, IovaRange};
use log::{error, info};
use migration::VmError;
use strandline_rt::cpu;
use strandline_rt::pci::MsixPlace;
use strandline_rt::physical::{IdentityMemory, MmioWindow};

/// How long rebuilding may take, in microseconds: a queue may need thousands of commands.
/// The source waits longer before it gives up.
const PATIENCE_US: u64 = 2_000_000;

/// A controller that is the guest's.
pub(super) struct AssignedNvme<'m> {
    nvme: Nvme<MmioWindow>,
    msix: MsixLayout,
    memory: &'m IdentityMemory,
    /// Pages of the hypervisor.
    scratch: [Hpa; SCRATCH_PAGES],
    /// What arrived, was checked, and is not put into the controller yet.
    arrived: Option<NvmeState>,
}

/// Why the controller's state could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum HandoverError {
    #[error(transparent)]
    Device(#[from] NvmeError),
    #[error(transparent)]
    Space(#[from] SpaceError),
}

/// Notes the details, which the engine's error has no room for.
fn for_engine(error: impl Into<HandoverError>) -> VmError {
    error!("moving the device's state: {}", error.into());
    VmError("the device's state cannot be moved")
}

impl<'m> AssignedNvme<'m> {
    /// How long saving and restoring take, in microseconds.
    pub(super) const DOWNTIME_US: u64 = 50_000;

    /// The controller behind `registers`, which was reset. Its vectors are sent to
    /// the host's, by the messages that `grant` gives for them; none is sent before
    /// MSI-X is turned on.
    pub(super) fn new(
        host: &Host,
        registers: MmioWindow,
        mut grant: impl FnMut(u8) -> Result<Msi, UnitError>,
        memory: &'m IdentityMemory,
        scratch: [Hpa; SCRATCH_PAGES],
    ) -> Result<Self, BuildError> {
        let place = host.device.function.msix_place(&host.config)?;
        let vectors = place.vectors.min(MAX_VECTORS as u16);
        for index in 0..vectors {
            let message = grant(vectors::DEVICE_MSIX + index as u8)?;
            program(&registers, &place, index, message);
        }
        Ok(Self {
            nvme: Nvme::new(registers),
            msix: MsixLayout {
                vectors,
                table: place.table,
                pending: place.pending,
            },
            memory,
            scratch,
            arrived: None,
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
            counts_as: Reason::Device,
            device: &mut self.nvme,
        }
    }

    pub(super) fn io_commands(&self) -> u64 {
        self.nvme.io_commands()
    }

    pub(super) fn serve(&mut self, view: &impl GuestDma) {
        self.nvme.serve(view);
    }

    pub(super) fn is_resting(&mut self, view: &impl GuestDma) -> Result<bool, VmError> {
        self.nvme.rest(view).map_err(for_engine)
    }

    pub(super) fn save(&self, to: &mut [u8]) -> Result<usize, VmError> {
        put(&self.nvme.save().map_err(for_engine)?, to)
    }

    pub(super) fn load(&mut self, bytes: &[u8]) -> Result<(), VmError> {
        let state = get(bytes)?;
        self.nvme.check(&state).map_err(for_engine)?;
        self.arrived = Some(state);
        Ok(())
    }

    /// Brings the controller to the state that arrived, if any did. Returns the
    /// vectors that the guest is owed.
    pub(super) fn restore(&mut self, lender: &mut Lender<'_, '_>) -> Result<VectorList, VmError> {
        let Some(state) = self.arrived.take() else {
            return Ok(VectorList::new());
        };
        self.rebuild(&state, lender).map_err(for_engine)?;
        Ok(state.waiting_vectors().take(MAX_VECTORS).collect())
    }

    /// Has the controller reach scratch pages in the place of its rings, and nothing
    /// else, while it is rebuilt. MSI-X is on, for queues cannot have vectors
    /// otherwise; what they send meanwhile is at most one message too many.
    fn rebuild(
        &mut self,
        state: &NvmeState,
        lender: &mut Lender<'_, '_>,
    ) -> Result<(), HandoverError> {
        let Lender {
            host,
            source_id,
            dma,
        } = lender;
        let mut ranges = RingRanges::new();
        for ring in state.rings() {
            // There is room for all rings of a state.
            let _ = ranges.push(self.scratch_for(ring)?);
        }
        let frames = self.scratch.map(|page| self.memory.frame(page));
        let [Some(a), Some(b), Some(c), Some(d)] = frames else {
            return Err(SpaceError::OutOfMemory.into());
        };
        let scratch = Scratch {
            pages: [a, b, c, d],
        };
        let loan = dma.borrow_device(*source_id, ranges)?;
        let result = self.restore_on_loan(host, state, &scratch);
        // Whatever came of it: the device must not keep what it was lent.
        dma.give_back(loan)?;
        Ok(result?)
    }

    /// Lets the device do DMA and send messages, but only for as long as it takes.
    fn restore_on_loan(
        &mut self,
        host: &Host,
        state: &NvmeState,
        scratch: &Scratch<'_>,
    ) -> Result<(), NvmeError> {
        let function = host.device.function;
        let messages = |on| {
            let done = function.enable_msix(&host.config, on);
            done.map_err(|_| NvmeError::Stuck)
        };
        messages(true)?;
        function.enable(&host.config, true);
        let began = host.clock.now_us();
        let result = self.nvme.restore(state, scratch, &mut || {
            cpu::pause();
            host.clock.now_us().saturating_sub(began) < PATIENCE_US
        });
        let us = host.clock.now_us().saturating_sub(began);
        function.enable(&host.config, false);
        messages(false)?;
        let commands = result?;
        info!("device: rebuilt by {commands} commands in {us} us");
        events::emit(
            "device-rebuilt",
            &[("commands", commands.into()), ("us", us.into())],
        );
        Ok(())
    }

    fn scratch_for(&self, ring: RingPages) -> Result<(IovaRange, Hpa), SpaceError> {
        let start = Iova::new(ring.start);
        let range = IovaRange::new(start, ring.pages).map_err(|_| SpaceError::OutOfRange)?;
        let page = self.scratch.get(ring.scratch);
        Ok((range, *page.ok_or(SpaceError::OutOfRange)?))
    }
}

/// The rings of a controller: two for each pair of queues.
type RingRanges = heapless::Vec<(IovaRange, Hpa), { 2 * MAX_QUEUES }>;

/// Writes one entry of the device's own MSI-X table (PCI Local Bus Specification
/// 3.0, section 6.8.2): address, data, and vector control without its mask.
fn program(registers: &MmioWindow, place: &MsixPlace, index: u16, message: Msi) {
    let entry = place.table as usize + 16 * usize::from(index);
    registers.write32(entry, message.address as u32);
    registers.write32(entry + 4, (message.address >> 32) as u32);
    registers.write32(entry + 8, message.data);
    registers.write32(entry + 12, 0);
}
