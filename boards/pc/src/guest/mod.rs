//! The guest: its virtual machine, its IOMMU in both senses, and its device.
//!
//! This is where the three layers meet. One turn of [`Guest::advance`]:
//!
//! ```text
//!   vIOMMU work left? --service--> DmaSpace (host tables, invalidate, drain,
//!         |                         report into the dirty log), then wait status
//!         v
//!   Vm::run  ->  Interrupted: faults to the vIOMMU, then the device's interrupt
//!                MmioDone:    the vIOMMU's registers were touched: service
//!                PciChanged:  route the device's interrupt, let it do DMA or not
//!                in any case: what devices sent goes through the vIOMMU to the CPUs
//!                Halted:      nothing to do for the guest
//! ```
//!
//! A second CPU of the guest is served before, in the same way ([`others`]).

mod build;
mod confine;
mod console;
mod destination;
mod device;
mod exits;
mod operator;
mod others;
mod source;
mod unit;

pub use build::{BuildError, GuestIommu, Resources, add_memory};
pub use unit::UNIT_FRAMES;

use crate::events;
use crate::worker::Worker;
use console::Console;
use device::Assigned;
use exits::ExitReport;
use heapless::Vec;
use hv_core::Gpa;
use hv_core::memory::GuestMemory;
use hv_core::platform::apic::Request;
use hv_core::platform::{GuestExit, IOMMU_PIN};
use hv_core::svm::SvmVcpu;
use hv_core::vm::{Event, GuestError, MmioDevice, MmioRegion, Outside, Reason, Vm};
use iommu::Iommu;
use iommu::space::SpaceError;
use iommu::tables::AnyFormat;
use iommu::unit::{Fault, SourceId};
use iommu::viommu::any::{AnyViommu, Kind};
use iommu::viommu::virtio::Cursor;
use iommu::viommu::{Service, Viommu};
use migration::VmError;
use migration::stream::{MAX_SECTIONS, SectionId, SectionInfo};
use strandline_rt::interrupts::VectorSet;
use strandline_rt::physical::IdentityMemory;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where the guest finds its IOMMU.
pub const VIOMMU: Gpa = Gpa::new(0xfed9_0000);
/// What the vIOMMU may do in one turn, in its own steps: bounds the time a guest
/// can hold up the host with one register write.
const VIOMMU_BUDGET: u32 = 64;
/// How many faults are handed on in one turn.
const FAULT_BUDGET: u32 = 16;

/// The guest status that means content: what `strandline_rt::debug_exit` writes.
const CONTENT: u32 = 0x10;

/// What goes across beside memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// A CPU, by its number.
    Cpu(usize),
    /// The platform that the CPUs share.
    Platform,
    /// The vIOMMU.
    Viommu,
    /// The passthrough device.
    Device,
}

impl Part {
    /// How the stream names it.
    fn section(self, viommu: Kind, device: &Assigned<'_>) -> SectionInfo {
        match self {
            Self::Cpu(number) => SectionInfo {
                instance: number as u16,
                ..section(1, 5)
            },
            Self::Platform => section(4, 3),
            Self::Viommu => {
                let id = match viommu {
                    Kind::Vtd => 2,
                    Kind::Virtio => 6,
                };
                section(id, viommu.state_version() as u16)
            }
            Self::Device => device.section(),
        }
    }

    /// The parts of a guest with so many CPUs, in the order in which they go.
    fn all(cpus: usize) -> impl Iterator<Item = Self> {
        let shared = [Self::Platform, Self::Viommu, Self::Device];
        (0..cpus).map(Self::Cpu).chain(shared)
    }
}

const fn section(id: u16, version: u16) -> SectionInfo {
    SectionInfo {
        id: SectionId(id),
        version,
        instance: 0,
    }
}

type Machine<'m> = Vm<'m, IdentityMemory, SvmVcpu<'m>>;
type Dma<'m> = Iommu<'m, IdentityMemory, unit::HostUnit<'m>, AnyFormat>;

/// The guest and everything that is the guest's.
pub struct Guest<'m> {
    memory: &'m GuestMemory<'m, IdentityMemory>,
    vm: Machine<'m>,
    dma: Dma<'m>,
    viommu: AnyViommu,
    /// How far the mappings were saved that the vIOMMU alone knows of.
    saved: Cursor,
    device: Assigned<'m>,
    console: Console<'m>,
    /// The physical CPU that the guest's second one is on.
    worker: Option<Worker<'m>>,
    /// How the stream names the guest's parts.
    sections: Vec<SectionInfo, MAX_SECTIONS>,
    exits: ExitReport,
    /// How many faults of the device there were.
    faults: u64,
    /// How many pages that the guest maps for its device were refused, as reported.
    refused: u64,
    /// Not to be run: it is about to leave, or has not arrived yet.
    paused: bool,
}

/// How far a turn came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The guest ran, or there is more to do for it.
    Ran,
    /// A host interrupt cut in.
    Interrupted,
    /// The guest waits, and there is more to do for it: no host interrupt could cut
    /// in.
    Busy,
    /// The guest waits for an interrupt, or is paused.
    Idle,
}

/// How the guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestEnd {
    /// By itself, with this status: 0 if it is content.
    #[error("the guest ended with status {0}")]
    Exit(u32),
    /// It turned its machine off.
    #[error("the guest turned its machine off")]
    PowerOff,
    /// It reset its machine, which cannot be started again here.
    #[error("the guest reset its machine")]
    Reset,
    /// It did what no guest can go on from.
    #[error(transparent)]
    Error(#[from] GuestError),
    /// Its device cannot be confined any more.
    #[error("the guest's device cannot be served: {0}")]
    Dma(#[from] SpaceError),
}

impl GuestEnd {
    /// What the operator is told: 0 if all is well. A guest that resets its machine
    /// wants to go on, and cannot.
    pub fn status(self) -> u64 {
        match self {
            Self::Exit(status) => status.into(),
            Self::PowerOff => 0,
            Self::Reset | Self::Error(_) | Self::Dma(_) => u64::MAX,
        }
    }

    /// The way it ended, in a word for programs.
    pub fn way(self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Error(_) | Self::Dma(_) => "error",
        }
    }
}

impl<'m> Guest<'m> {
    /// Lets the guest run until something happened, and does what that asks for.
    pub fn advance(&mut self) -> Result<Turn, GuestEnd> {
        if self.paused {
            return Ok(Turn::Idle);
        }
        // Bounded work, then the guest again: what it asked for completes when it
        // completes, and a guest that asks for too much waits for itself.
        self.serve_viommu()?;
        self.serve_other()?;
        let event = self.with_bus(|vm, outside| vm.run(outside));
        self.act(event)
    }

    /// Does what an event asks for.
    fn act(&mut self, event: Event) -> Result<Turn, GuestEnd> {
        match event {
            Event::Interrupted => Ok(Turn::Interrupted),
            Event::MmioDone => {
                self.serve_device();
                self.serve_viommu()?;
                Ok(Turn::Ran)
            }
            Event::PciChanged => {
                self.route_device();
                Ok(Turn::Ran)
            }
            Event::Halted if self.viommu.is_idle() => Ok(Turn::Idle),
            Event::Halted => Ok(Turn::Busy),
            Event::InterruptRequested | Event::OtherCpu => Ok(Turn::Ran),
            Event::GuestExit(GuestExit::Status(CONTENT)) => Err(GuestEnd::Exit(0)),
            Event::GuestExit(GuestExit::Status(status)) => Err(GuestEnd::Exit(status)),
            Event::GuestExit(GuestExit::PowerOff) => Err(GuestEnd::PowerOff),
            Event::GuestExit(GuestExit::Reset) => Err(GuestEnd::Reset),
            Event::Fatal(error) => Err(error.into()),
        }
    }

    /// Lends the virtual machine all registers on the guest's bus, and its console; then
    /// delivers what devices sent meanwhile.
    fn with_bus<T>(&mut self, act: impl FnOnce(&mut Machine<'m>, &mut Outside<'_, '_>) -> T) -> T {
        let result = self.lend_bus(act);
        if self.vm.platform().has_requests() {
            self.deliver_interrupts();
        }
        result
    }

    fn lend_bus<T>(&mut self, act: impl FnOnce(&mut Machine<'m>, &mut Outside<'_, '_>) -> T) -> T {
        let bar = self.vm.platform().pci.window(0);
        let window = self.viommu.kind().window();
        let mut registers = Registers(&mut self.viommu);
        let mut regions = Vec::<_, 2>::new();
        let viommu = MmioRegion {
            gpa: VIOMMU,
            bytes: window,
            counts_as: Reason::Iommu,
            device: &mut registers,
        };
        // The first that contains an address has it; there is room for two.
        let _ = regions.push(viommu);
        let _ = self
            .device
            .trapped_registers(bar)
            .map(|it| regions.push(it));
        let console = &mut self.console;
        act(
            &mut self.vm,
            &mut Outside {
                mmio: &mut regions,
                console: &mut |byte| console.send(byte),
            },
        )
    }

    /// Hands the interrupts that devices sent to the guest's CPUs, as the guest's IOMMU
    /// will have them, and the IOMMU's own. Called after all that can make a device send
    /// one, so that none is on its way when the guest is saved.
    fn deliver_interrupts(&mut self) {
        loop {
            while let Some(Request { source, msi }) = self.vm.platform().take_request() {
                let source = SourceId::new(source);
                let message = self.viommu.remap_interrupt(self.memory, source, msi);
                if let Some(message) = message {
                    self.vm.platform().deliver(message);
                }
            }
            // Messages that were refused are faults, of which the IOMMU may tell: by a
            // message that nobody remaps, or by its line, which is another request when
            // it rises.
            while let Some(msi) = self.viommu.take_interrupt() {
                self.vm.inject_msi(msi);
            }
            let line = self.viommu.interrupt_line();
            self.vm.platform().set_input(IOMMU_PIN.into(), line);
            if !self.vm.platform().has_requests() {
                break;
            }
        }
    }

    /// Hands on what host interrupts brought. To be called with every set of
    /// vectors that was taken.
    ///
    /// Faults go first: a device reports the end of a transfer that was refused
    /// like any other, and the guest may look for the fault when it hears.
    pub fn take_interrupts(&mut self, vectors: VectorSet) {
        self.hand_on_faults();
        self.note_strangers(vectors);
        self.exits
            .update(self.vm.exits(), self.device.io_commands());
        self.receive_console_input();
        self.signal_device(vectors);
    }

    /// Waits for the guest to end a line on its console with `word`.
    pub fn wait_for_cue(&mut self, word: &'m str) {
        self.console.wait_for(word);
    }

    /// Whether it did since the last call.
    pub fn take_cue(&mut self) -> bool {
        self.console.take_cue()
    }

    /// Hands the guest's serial port what was typed, as far as it has room. The rest
    /// waits in the real port, and behind it.
    fn receive_console_input(&mut self) {
        while self.vm.platform().can_receive()
            && let Some(byte) = self.console.port.read_byte()
        {
            // There is room.
            let _ = self.vm.platform().receive(byte);
        }
        self.deliver_interrupts();
    }

    fn serve_viommu(&mut self) -> Result<(), SpaceError> {
        // What the guest acknowledged is gone before there is more.
        self.deliver_interrupts();
        if !self.viommu.is_idle() {
            let done = self
                .viommu
                .service(self.memory, &mut self.dma, VIOMMU_BUDGET)?;
            if done == Service::More {
                log::debug!("the vIOMMU has more to do than fits a turn");
            }
        }
        self.report_refused();
        self.deliver_interrupts();
        Ok(())
    }

    /// Faults of the device become faults of the guest's own unit, but for its
    /// interrupt requests: whom the host's messages go to is not the guest's business.
    fn hand_on_faults(&mut self) {
        let (mut transfers, mut interrupts) = (0u64, 0u64);
        for _ in 0..FAULT_BUDGET {
            let Some(fault) = self.dma.take_fault() else {
                break;
            };
            self.faults += 1;
            self.log_fault(&fault);
            match fault {
                Fault::Dma(fault) => {
                    transfers += 1;
                    self.viommu
                        .inject_fault(self.memory, fault.source, fault.iova, fault.write);
                }
                Fault::Interrupt(_) => interrupts += 1,
            }
        }
        for (name, count) in [("dma-fault", transfers), ("interrupt-fault", interrupts)] {
            if count > 0 {
                events::emit(name, &[("count", count.into())]);
            }
        }
        if transfers > 0 {
            self.deliver_interrupts();
        }
    }
}

/// The vIOMMU's registers on the guest's bus.
struct Registers<'a>(&'a mut AnyViommu);

impl MmioDevice for Registers<'_> {
    fn read(&mut self, offset: u64, width: u8) -> u64 {
        Viommu::read(self.0, offset, width)
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) {
        Viommu::write(self.0, offset, width, value);
    }
}

/// Writes state to the front of a section's place, and returns how long it is.
fn put(state: &(impl IntoBytes + Immutable), to: &mut [u8]) -> Result<usize, VmError> {
    put_bytes(state.as_bytes(), to)
}

/// Writes state that is laid out already.
fn put_bytes(bytes: &[u8], to: &mut [u8]) -> Result<usize, VmError> {
    let place = to
        .get_mut(..bytes.len())
        .ok_or(VmError("a section is too large"))?;
    place.copy_from_slice(bytes);
    Ok(bytes.len())
}

const WRONG_LENGTH: VmError = VmError("a section has the wrong length");

/// Reads the state in a section.
fn get<T: FromBytes>(bytes: &[u8]) -> Result<T, VmError> {
    T::read_from_bytes(bytes).map_err(|_| WRONG_LENGTH)
}
