//! The passthrough device: what the guest sees of it, what it may do, and how it is
//! handed over.
//!
//! ```text
//!   Assigned::take    reset, and its description for the guest's PCI bus
//!   route_device      what the guest configured -> what the device may do
//!   rest_device       no command, transfer or interrupt is under way any more
//!   save_device, restore_device      its state out of one and into another
//!   release_device    reset: it does nothing more on this machine
//! ```

mod edu;
mod nvme;

use super::build::BuildError;
use super::{Dma, Guest, section};
use crate::events;
use crate::host::{DeviceKind, Host};
use crate::vectors;
use edu::EduHandover;
use hv_core::clock::Clock;
use hv_core::device::nvme::{GuestDma, SCRATCH_PAGES};
use hv_core::memory::GuestMemory;
use hv_core::platform::apic::Msi;
use hv_core::platform::pci::{Bar, Interrupts, MAX_VECTORS, PassthroughFunction, Placement};
use hv_core::vm::MmioRegion;
use hv_core::{Gpa, Hpa};
use iommu::Iova;
use iommu::unit::{InterruptTarget, SourceId, UnitError};
use iommu::viommu::any::AnyViommu;
use log::{error, info};
use migration::VmError;
use migration::stream::SectionInfo;
use nvme::AssignedNvme;
use strandline_rt::interrupts::{self, VectorSet};
use strandline_rt::pci::PciError;
use strandline_rt::physical::{IdentityMemory, PhysRange};
use strandline_rt::{cpu, pci};

/// Where firmware left the device's registers in the guest.
const BAR: u32 = 0xe000_0000;
/// The device's number on the guest's PCI bus.
const NUMBER: u8 = 3;
/// PCI command register: bus master.
const BUS_MASTER: u16 = 1 << 2;

/// How many pages of the hypervisor it takes to hand a device over.
pub(super) const OWN_PAGES: usize = SCRATCH_PAGES;

/// A device that is the guest's.
pub(super) struct Assigned<'m> {
    host: &'m Host,
    /// Its requester id on the guest's bus and on the host's.
    source_id: SourceId,
    kind: Kind<'m>,
}

/// What is done differently for each kind of device. There is one device: the size of
/// the larger variant is not wasted on many.
#[allow(clippy::large_enum_variant)]
enum Kind<'m> {
    Edu(EduHandover<'m>),
    Nvme(AssignedNvme<'m>),
}

/// What is needed to have the device do DMA for the hypervisor.
struct Lender<'a, 'm> {
    host: &'m Host,
    source_id: SourceId,
    dma: &'a mut Dma<'m>,
}

/// Lets the device raise `vector` on this CPU; the message that does.
fn grant(
    host: &Host,
    source_id: SourceId,
    dma: &mut Dma<'_>,
    vector: u8,
) -> Result<Msi, UnitError> {
    let apic_id = host.apic.id();
    dma.grant_interrupt(source_id, InterruptTarget { apic_id, vector })
}

impl<'a, 'm> Lender<'a, 'm> {
    fn new(device: &Assigned<'m>, dma: &'a mut Dma<'m>) -> Self {
        Self {
            host: device.host,
            source_id: device.source_id,
            dma,
        }
    }
}

impl<'m> Assigned<'m> {
    /// The device's requester id on the guest's bus.
    pub(super) const GUEST_ID: SourceId = SourceId::new((NUMBER as u16) << 3);

    /// Takes the host's device for a guest: resets it, if it can be. `source_id` is
    /// how the remapping unit of `dma` sees it, which lets it reach nothing as yet.
    /// `pages` are of the hypervisor.
    pub(super) fn take(
        host: &'m Host,
        source_id: SourceId,
        dma: &mut Dma<'m>,
        frames: &'m IdentityMemory,
        pages: [Hpa; OWN_PAGES],
    ) -> Result<Self, BuildError> {
        reset(host);
        let registers = super::build::window(host.device.window)?;
        let mut grant = |vector| grant(host, source_id, dma, vector);
        let kind = match host.kind {
            DeviceKind::Edu => {
                let message = grant(vectors::DEVICE)?;
                Kind::Edu(EduHandover::new(registers, frames, pages[0], message))
            }
            DeviceKind::Nvme => {
                Kind::Nvme(AssignedNvme::new(host, registers, grant, frames, pages)?)
            }
        };
        Ok(Self {
            host,
            source_id,
            kind,
        })
    }

    /// What the guest finds on its bus.
    pub(super) fn description(&self) -> PassthroughFunction {
        let function = self.host.device.function;
        let pci::DeviceId(vendor_id, device_id) = function.id();
        let identity = function.identity(&self.host.config);
        let (placement, interrupts) = match &self.kind {
            Kind::Edu(_) => (Placement::Fixed, Interrupts::Msi),
            Kind::Nvme(nvme) => (Placement::Movable, Interrupts::Msix(nvme.msix())),
        };
        PassthroughFunction {
            device: NUMBER,
            vendor_id,
            device_id,
            subsystem: identity.subsystem,
            class: identity.class.0,
            revision: identity.revision,
            bar0: Bar {
                home: BAR,
                bytes: self.host.device.window.bytes as u32,
                placement,
            },
            interrupts,
        }
    }

    /// Registers that the guest reaches without anybody between, and where.
    pub(super) fn mapped_registers(&self) -> Option<(u32, PhysRange)> {
        match self.kind {
            Kind::Edu(_) => Some((BAR, self.host.device.window)),
            Kind::Nvme(_) => None,
        }
    }

    /// Registers that are trapped, when the guest has them at `gpa`.
    pub(super) fn trapped_registers(&mut self, gpa: Option<Gpa>) -> Option<MmioRegion<'_>> {
        match &mut self.kind {
            Kind::Edu(_) => None,
            Kind::Nvme(nvme) => Some(nvme.region(gpa?)),
        }
    }

    /// How many commands the guest gave it here, as far as that is seen.
    pub(super) fn io_commands(&self) -> u64 {
        match &self.kind {
            Kind::Edu(_) => 0,
            Kind::Nvme(nvme) => nvme.io_commands(),
        }
    }

    /// Carries out what the guest wrote to trapped registers.
    fn serve(&mut self, view: &impl GuestDma) {
        if let Kind::Nvme(nvme) = &mut self.kind {
            nvme.serve(view);
        }
    }

    /// What stands for the device in the migration stream.
    pub(super) fn section(&self) -> SectionInfo {
        match self.kind {
            Kind::Edu(_) => section(3, 1),
            Kind::Nvme(_) => section(5, 1),
        }
    }

    /// How long saving and restoring the device takes, in microseconds.
    pub(super) fn downtime_us(&self) -> u64 {
        match self.kind {
            Kind::Edu(_) => EduHandover::DOWNTIME_US,
            Kind::Nvme(_) => AssignedNvme::DOWNTIME_US,
        }
    }

    /// The vectors of the device that are in `taken`.
    fn signalled(&self, taken: VectorSet) -> impl Iterator<Item = usize> + use<> {
        let first = match self.kind {
            Kind::Edu(_) => vectors::DEVICE..vectors::DEVICE + 1,
            Kind::Nvme(_) => vectors::DEVICE_MSIX..vectors::DEVICE_MSIX + MAX_VECTORS as u8,
        };
        first
            .enumerate()
            .filter_map(move |(index, vector)| taken.contains(vector).then_some(index))
    }

    /// Lets the device do DMA and interrupt, or not.
    fn route(&self, bus_master: bool, interrupts: bool) -> Result<(), PciError> {
        let (function, config) = (self.host.device.function, &self.host.config);
        function.enable(config, bus_master);
        match (&self.kind, interrupts) {
            (Kind::Edu(edu), true) => function.enable_msi(config, edu.message()),
            (Kind::Edu(_), false) => function.disable_msi(config),
            (Kind::Nvme(_), on) => function.enable_msix(config, on),
        }
    }
}

/// The guest's memory as its device sees it.
struct DeviceView<'a, 'm> {
    memory: &'m GuestMemory<'m, IdentityMemory>,
    viommu: &'a AnyViommu,
    dma: &'a Dma<'m>,
}

impl DeviceView<'_, '_> {
    fn translate(&self, iova: u64, write: bool) -> Option<Gpa> {
        let (device, iova) = (Assigned::GUEST_ID, Iova::new(iova));
        self.viommu
            .translate(self.memory, self.dma, device, iova, write)
    }
}

impl GuestDma for DeviceView<'_, '_> {
    fn read(&self, iova: u64, to: &mut [u8]) -> bool {
        let gpa = self.translate(iova, false);
        gpa.is_some_and(|gpa| self.memory.read(gpa, to).is_ok())
    }
    fn write(&self, iova: u64, from: &[u8]) -> bool {
        let gpa = self.translate(iova, true);
        gpa.is_some_and(|gpa| self.memory.write(gpa, from).is_ok())
    }
}

impl Guest<'_> {
    /// Carries out what the guest wrote to trapped registers of its device.
    pub(super) fn serve_device(&mut self) {
        let view = DeviceView {
            memory: self.memory,
            viommu: &self.viommu,
            dma: &self.dma,
        };
        self.device.serve(&view);
    }

    /// Makes the device do what the guest configured: DMA or none, and interrupts
    /// to the host's vectors, from where they are injected.
    pub(super) fn route_device(&mut self) {
        let pci = &self.vm.platform().pci;
        let bus_master = pci
            .command(0)
            .is_some_and(|command| command & BUS_MASTER != 0);
        let wants_interrupts = pci.wants_interrupts(0);
        if let Err(error) = self.device.route(bus_master, wants_interrupts) {
            error!("{error}");
        }
    }

    /// Hands the device's interrupts in `taken` on to the guest.
    pub(super) fn signal_device(&mut self, taken: VectorSet) {
        for vector in self.device.signalled(taken) {
            self.vm.platform().signal(0, vector);
        }
        self.deliver_interrupts();
    }

    /// Whether the device is at rest. When it is, its interrupts are silenced, and
    /// those that were on their way have reached the guest's interrupt controller.
    pub(super) fn rest_device(&mut self) -> Result<bool, VmError> {
        let view = DeviceView {
            memory: self.memory,
            viommu: &self.viommu,
            dma: &self.dma,
        };
        let is_resting = match &mut self.device.kind {
            Kind::Edu(edu) => edu.is_resting(),
            Kind::Nvme(nvme) => nvme.is_resting(&view)?,
        };
        if is_resting {
            // The end of a command and its interrupt are one event for the device:
            // whoever sees the first finds the second at the local APIC.
            self.take_interrupts(interrupts::poll());
            if let Err(error) = self.device.route(false, false) {
                error!("{error}");
            }
        }
        Ok(is_resting)
    }

    /// Reads the state of the resting device out, to the front of `to`.
    pub(super) fn save_device(&mut self, to: &mut [u8]) -> Result<usize, VmError> {
        let mut lender = Lender::new(&self.device, &mut self.dma);
        match &mut self.device.kind {
            Kind::Edu(edu) => edu.save(&mut lender, to),
            Kind::Nvme(nvme) => nvme.save(to),
        }
    }

    /// Takes the state of a device that is to be put into this one.
    pub(super) fn load_device(&mut self, bytes: &[u8]) -> Result<(), VmError> {
        match &mut self.device.kind {
            Kind::Edu(edu) => edu.load(bytes),
            Kind::Nvme(nvme) => nvme.load(bytes),
        }
    }

    /// Puts the state that is held into the device, if any is.
    pub(super) fn restore_device(&mut self) -> Result<(), VmError> {
        let mut lender = Lender::new(&self.device, &mut self.dma);
        let signalled = match &mut self.device.kind {
            Kind::Edu(edu) => edu.restore(&mut lender).map(|()| VectorList::new())?,
            Kind::Nvme(nvme) => nvme.restore(&mut lender)?,
        };
        // Whether or not the interrupt of a completion had arrived: one too many
        // does no harm.
        for vector in signalled {
            self.vm.platform().signal(0, vector);
        }
        self.deliver_interrupts();
        Ok(())
    }

    /// Takes the device away from a guest that ended or left.
    pub fn release_device(&mut self) {
        if let Err(error) = self.device.route(false, false) {
            error!("{error}");
        }
        reset(self.device.host);
        if let Err(error) = self.dma.revoke_interrupts(self.device.source_id) {
            error!("{error}");
        }
    }
}

/// Vectors of the device.
type VectorList = heapless::Vec<usize, MAX_VECTORS>;

/// Resets the passthrough device, if it can be: what it did before, for whomever, is
/// over.
fn reset(host: &Host) {
    let function = host.device.function;
    let mut wait = |us| {
        let until = host.clock.now_us().saturating_add(us);
        while host.clock.now_us() < until {
            cpu::pause();
        }
    };
    let can_reset = function.reset(&host.config, &mut wait);
    if can_reset {
        info!("device: {function} was reset");
    } else {
        info!("device: {function} has no function level reset");
    }
    events::emit("device-reset", &[("done", can_reset.into())]);
}
