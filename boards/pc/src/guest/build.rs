//! Putting a guest together.

use super::console::Console;
use super::device::{Assigned, OWN_PAGES};
use super::exits::ExitReport;
use super::unit::{self, Remapper};
use super::{Guest, Part, VIOMMU};
use crate::host::Host;
use crate::worker::Worker;
use hv_core::boot::{self, BootError, Payload};
use hv_core::memory::{AddSlotError, FramePool, GuestMemory, Slot};
use hv_core::npt::{NestedTables, NptError};
use hv_core::platform::pci::{AddFunctionError, PciBus};
use hv_core::platform::{IOMMU_PIN, Platform};
use hv_core::svm::{IdleVcpu, SvmError};
use hv_core::vcpu::VcpuState;
use hv_core::vm::Vm;
use hv_core::{Gfn, Gpa, Hpa, PAGE_SHIFT, PAGE_SIZE};
use iommu::dmar::{DmarError, GuestUnit};
use iommu::host::{amdvi, vtd};
use iommu::ivrs::IvrsError;
use iommu::layer::TooFewPins;
use iommu::reserved::ReservedRegion;
use iommu::space::SpaceError;
use iommu::unit::{SourceId, UnitError};
use iommu::viommu::any::{AnyViommu, Kind};
use iommu::viommu::virtio::Cursor;
use iommu::viommu::vtd::HOST_ADDRESS_WIDTH;
use iommu::viommu::{Passthrough, Passthroughs, Service, Viommu};
use iommu::viot::VirtioMmio;
use iommu::vtd::AddressWidth;
use iommu::{Iommu, Parts};
use raw_cpuid::cpuid;
use strandline_rt::pci::PciError;
use strandline_rt::physical::{IdentityMemory, MmioWindow, PhysRange};

/// Why there is no guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BuildError {
    /// The DMAR table.
    #[error(transparent)]
    Dmar(#[from] DmarError),
    /// The IVRS table.
    #[error(transparent)]
    Ivrs(#[from] IvrsError),
    /// Firmware lets the device use memory behind everybody's back: it would have to go
    /// on reaching it, whoever it belongs to.
    #[error(
        "device {device} cannot be passed through: firmware reserves memory for its DMA, {region} (RMRR or IVMD); turn off what uses it in the firmware's setup"
    )]
    Reserved {
        /// The device.
        device: SourceId,
        /// The memory.
        region: ReservedRegion,
    },
    /// No unit translates for the device.
    #[error("ACPI names no remapping unit for the device")]
    NoUnit,
    /// The remapping unit, of the VT-d kind.
    #[error(transparent)]
    Vtd(#[from] vtd::StartError),
    /// The remapping unit, of the AMD-Vi kind.
    #[error(transparent)]
    AmdVi(#[from] amdvi::StartError),
    /// The CPU's virtualisation.
    #[error(transparent)]
    Svm(#[from] SvmError),
    /// Its nested page tables.
    #[error(transparent)]
    Nested(#[from] NptError),
    /// Guest memory.
    #[error(transparent)]
    Slot(#[from] AddSlotError),
    /// The pin tracker's memory.
    #[error(transparent)]
    Pins(#[from] TooFewPins),
    /// The guest's image.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The guest's PCI bus.
    #[error(transparent)]
    Pci(#[from] AddFunctionError),
    /// The host's PCI device.
    #[error(transparent)]
    Device(#[from] PciError),
    /// The device's interrupts.
    #[error(transparent)]
    Interrupts(#[from] UnitError),
    /// The device's first attachment.
    #[error(transparent)]
    Dma(#[from] SpaceError),
    /// A register window is not mapped.
    #[error("registers at {0:#x} are beyond the identity map")]
    Window(u64),
    /// The buffer for the device's state.
    #[error("out of memory for the pages that hand a device over")]
    Staging,
    /// The machine's other CPU has a guest already.
    #[error("the machine's other CPU is taken")]
    NoWorker,
}

/// The memory a guest is made of.
pub struct Resources<'m> {
    /// All of the host memory below, by frame.
    pub frames: &'static IdentityMemory,
    /// The guest's memory, with its one slot and dirty log.
    pub memory: &'m GuestMemory<'m, IdentityMemory>,
    /// For nested page tables.
    pub nested_tables: PhysRange,
    /// For the remapping unit.
    pub iommu_tables: PhysRange,
    /// For CPU control blocks and the pages that hand a device over.
    pub vcpu: PhysRange,
    /// One counter a guest page.
    pub pins: &'m mut [u32],
    /// The APIC id of the CPU that runs [`crate::worker::main`], if the guest is to
    /// have a second CPU.
    pub worker: Option<u32>,
}

/// The IOMMU that a guest is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestIommu {
    /// Its kind.
    pub kind: Kind,
    /// Whether it offers to remap interrupts, if its kind can.
    pub interrupt_remapping: bool,
}

impl<'m> Guest<'m> {
    /// A guest with that vIOMMU that starts with `payload`, or an empty one, paused until
    /// it arrives from elsewhere.
    pub fn build(
        host: &'m Host,
        resources: Resources<'m>,
        given: GuestIommu,
        payload: Option<&Payload<'_>>,
    ) -> Result<Self, BuildError> {
        let Resources { frames, memory, .. } = resources;
        let kind = given.kind;
        // The remapping unit before anything else: from here on the device reaches
        // nothing it was not given.
        let (unit_frames, table_frames) = split(resources.iommu_tables, unit::UNIT_FRAMES);
        let Remapper { unit, source_id } = unit::start(host, frames, unit_frames)?;
        let mut dma = Iommu::new(Parts {
            mem: frames,
            format: unit.format(),
            unit,
            guest: memory,
            pool: table_frames,
            pins: resources.pins,
        })?;

        let mut tables = NestedTables::new(frames, pool(resources.nested_tables))?;
        for slot in memory.slots() {
            tables.map_ram(slot)?;
        }
        let mut vcpu_frames = pool(resources.vcpu);
        let vcpu = IdleVcpu::prepare(frames, &mut vcpu_frames, tables.root())?.occupy_this_cpu();
        let worker = match resources.worker {
            None => None,
            Some(id) => {
                let vcpu = IdleVcpu::prepare(frames, &mut vcpu_frames, tables.root())?;
                let worker = Worker::hire(&host.apic, id, vcpu);
                Some(worker.ok_or(BuildError::NoWorker)?)
            }
        };
        let cpus = if worker.is_some() { 2 } else { 1 };
        let mut pages = [Hpa::new(0); OWN_PAGES];
        for page in &mut pages {
            *page = vcpu_frames.take(frames).ok_or(BuildError::Staging)?;
        }
        let device = Assigned::take(host, source_id, &mut dma, frames, pages)?;
        if let Some((at, range)) = device.mapped_registers() {
            let at = Gpa::new(at.into());
            tables.map_device(at, Hpa::new(range.start), range.bytes)?;
        }

        let devices = passthroughs(source_id);
        let width = AddressWidth::Bits39;
        let mut viommu = AnyViommu::new(kind, width, devices, given.interrupt_remapping);
        while viommu.service(memory, &mut dma, super::VIOMMU_BUDGET)? == Service::More {}

        let state = match payload {
            Some(payload) => load(memory, payload, given)?,
            None => VcpuState::pvh(0, 0),
        };
        let mut pci = PciBus::new();
        pci.add(device.description())?;
        // The leaves a guest is shown are picked from those of this CPU.
        let platform = Platform::new(
            |leaf, subleaf| cpuid!(leaf, subleaf),
            pci,
            host.rates.tsc_hz,
            cpus,
            host.started,
        );
        Ok(Self {
            memory,
            vm: Vm::new(memory, tables, vcpu, state, platform),
            dma,
            viommu,
            saved: Cursor::default(),
            sections: Part::all(cpus)
                .map(|part| part.section(kind, &device))
                .collect(),
            device,
            console: Console::open(),
            worker,
            exits: ExitReport::new(host.clock),
            faults: 0,
            refused: 0,
            paused: payload.is_none(),
        })
    }
}

/// Gives a guest its memory: one slot from address 0 on, with nothing left in it.
pub fn add_memory(
    memory: &mut GuestMemory<'_, IdentityMemory>,
    range: PhysRange,
) -> Result<(), AddSlotError> {
    let frames = range.bytes >> PAGE_SHIFT;
    memory.add_slot(Slot {
        gfn: Gfn::new(0),
        hpa: Hpa::new(range.start),
        frames,
    })?;
    for gfn in (0..frames).map(Gfn::new) {
        if let Ok(frame) = memory.frame(gfn) {
            frame.clear();
        }
    }
    Ok(())
}

fn load(
    memory: &GuestMemory<'_, IdentityMemory>,
    payload: &Payload<'_>,
    given: GuestIommu,
) -> Result<VcpuState, BootError> {
    let registers = VIOMMU;
    match given.kind {
        Kind::Vtd => {
            let dmar = GuestUnit {
                registers,
                host_address_width: HOST_ADDRESS_WIDTH,
                interrupt_remapping: given.interrupt_remapping,
            };
            boot::load(memory, payload, &[&dmar.table()])
        }
        Kind::Virtio => {
            let unit = VirtioMmio { registers };
            let device = unit.device_table(IOMMU_PIN);
            boot::load(memory, payload, &[&unit.table(), &device])
        }
    }
}

fn passthroughs(host: SourceId) -> Passthroughs {
    let guest = Assigned::GUEST_ID;
    let mut devices = Passthroughs::new();
    // There is room for one.
    let _ = devices.push(Passthrough { guest, host });
    devices
}

fn pool(range: PhysRange) -> FramePool {
    FramePool::new(Hpa::new(range.start), range.bytes >> PAGE_SHIFT)
}

/// The first `frames` frames of a range, and the rest.
fn split(range: PhysRange, frames: u64) -> (FramePool, FramePool) {
    let bytes = (frames * PAGE_SIZE).min(range.bytes);
    let first = PhysRange {
        start: range.start,
        bytes,
    };
    let rest = PhysRange {
        start: first.end(),
        bytes: range.bytes - bytes,
    };
    (pool(first), pool(rest))
}

#[allow(unsafe_code)]
pub(super) fn window(range: PhysRange) -> Result<MmioWindow, BuildError> {
    // SAFETY: registers that ACPI or a base address register names. The unit has
    // this window alone; the device's is used while the guest, which has its own
    // way to them, does not run. What the device can reach is confined.
    unsafe { MmioWindow::new(range) }.ok_or(BuildError::Window(range.start))
}
