//! One guest: its CPU, its second stage and its platform, and what happens at each
//! exit.
//!
//! ```text
//!            +-----------------------------------------------+
//!            v                                               |
//!   interrupt ready? -> flush owed? -> enter -> exit: what? -+-> Event
//!                                                  |
//!        CPUID, MSR, port, nothing there: answered and on again
//!        host interrupt, HLT, region of the image: the image acts
//! ```
//!
//! Nothing a guest does ends in a panic of the hypervisor: an access to nothing
//! reads all ones, an unknown MSR is #GP, and what cannot go on is
//! [`Event::Fatal`] for this guest alone.

mod alu;
mod decode;
#[cfg(test)]
mod tests;
mod walk;

use crate::Gpa;
use crate::dirty::DirtyLog;
use crate::memory::{GuestMemory, PhysMemory};
use crate::npt::{NestedTables, NptError};
use crate::platform::apic::Msi;
use crate::platform::msr::{self, MsrEffect};
use crate::platform::time::Time;
use crate::platform::{IoEffect, Platform, PlatformError, PlatformState, cpuid};
use crate::vcpu::gpr::{RAX, RCX};
use crate::vcpu::{
    Entry, Exit, Intercepted, IoAccess, NestedFault, Pending, StateError, Vcpu, VcpuState,
};
use decode::{MAX_LENGTH, Operation, Place, sign_extend, truncate};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Device registers that the image emulates, such as a vIOMMU.
pub trait MmioDevice {
    /// Reads `width` bytes (1, 2, 4 or 8) at `offset`, which need not be aligned.
    fn read(&mut self, offset: u64, width: u8) -> u64;
    /// Writes `width` bytes; the upper bytes of `value` are zero.
    fn write(&mut self, offset: u64, width: u8, value: u64);
}

/// Where an [`MmioDevice`] lies.
pub struct MmioRegion<'a> {
    /// The first byte. Nothing is mapped there in the second stage.
    pub gpa: Gpa,
    /// How many bytes there are.
    pub bytes: u64,
    /// Who answers.
    pub device: &'a mut dyn MmioDevice,
}

/// What the image lends a guest while it runs.
pub struct Outside<'a, 'd> {
    /// Registers that the image emulates.
    pub mmio: &'a mut [MmioRegion<'d>],
    /// Takes the bytes that the guest sends over its serial line.
    pub console: &'a mut dyn FnMut(u8),
}

/// Why [`Vm::run`] came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A host interrupt was taken; its handler has run.
    Interrupted,
    /// The guest waits for an interrupt and none is pending. Running it again is
    /// harmless and comes back with the same event until there is one.
    Halted,
    /// The guest touched a region of the image, which may have work to do before
    /// the guest goes on. The access itself is complete.
    MmioDone,
    /// The guest changed the command register or MSI of a function that is passed
    /// through: see [`crate::platform::pci::PciBus`].
    PciChanged,
    /// The guest ended with this status.
    GuestExit(u32),
    /// The guest cannot go on.
    Fatal(GuestError),
}

/// What a guest did that it cannot go on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestError {
    /// A triple fault.
    #[error("the guest shut down by a triple fault at RIP {rip:#x}")]
    TripleFault {
        /// Where, as far as it is known.
        rip: u64,
    },
    /// It fetched instructions, kept page tables, or took an exception on a stack
    /// where it has no memory.
    #[error("the guest executes or keeps CPU structures at {gpa}, where it has no memory")]
    CpuOutsideMemory {
        /// Where.
        gpa: Gpa,
    },
    /// It accessed device registers with an instruction that is not emulated, or
    /// not in 64-bit code.
    #[error("the guest accesses {gpa} with an instruction at RIP {rip:#x} that is not emulated")]
    Instruction {
        /// The instruction.
        rip: u64,
        /// What it accessed.
        gpa: Gpa,
    },
    /// The hardware refuses the CPU's state.
    #[error("the hardware refuses the guest's CPU state at RIP {rip:#x}")]
    InvalidState {
        /// Where.
        rip: u64,
    },
    /// An exit that was not asked for.
    #[error("the guest exited with the unexpected code {code:#x} at RIP {rip:#x}")]
    Unexpected {
        /// The hardware's code.
        code: u64,
        /// Where.
        rip: u64,
    },
}

/// The state of CPU and platform; memory is apart. The layout is fixed: these
/// bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VmState {
    /// The CPU.
    pub vcpu: VcpuState,
    /// The platform.
    pub platform: PlatformState,
    /// Zero.
    reserved: u64,
}

/// Why a state from outside is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    /// The CPU's part.
    #[error(transparent)]
    Vcpu(#[from] StateError),
    /// The platform's part.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// One guest.
pub struct Vm<'m, M, V> {
    memory: &'m GuestMemory<'m, M>,
    tables: NestedTables<'m, M>,
    vcpu: V,
    state: VcpuState,
    platform: Platform,
}

impl<'m, M: PhysMemory, V: Vcpu> Vm<'m, M, V> {
    /// A guest with `memory`, which `tables` maps, that starts in `state`. `vcpu`
    /// was made for these tables.
    pub fn new(
        memory: &'m GuestMemory<'m, M>,
        tables: NestedTables<'m, M>,
        vcpu: V,
        state: VcpuState,
        platform: Platform,
    ) -> Self {
        Self {
            memory,
            tables,
            vcpu,
            state,
            platform,
        }
    }

    /// Lets the guest run until something needs the image. Host interrupts are
    /// disabled on call and on return; each that arrives meanwhile is handled and
    /// then reported as [`Event::Interrupted`].
    pub fn run(&mut self, outside: &mut Outside<'_, '_>) -> Event {
        loop {
            self.platform.advance(self.now());
            let Some(interrupt_window) = self.offer_interrupt() else {
                return Event::Halted;
            };
            let entry = Entry {
                flush_tlb: self.tables.take_flush_request(),
                interrupt_window,
            };
            self.state.cr8 = self.platform.apic.task_priority_class();
            let exit = self.vcpu.run(&mut self.state, entry);
            self.platform.apic.set_task_priority_class(self.state.cr8);
            if let Some(event) = self.handle(exit, outside) {
                return event;
            }
        }
    }

    /// The image delivers an interrupt: one that it routed from a function, or one
    /// of a device it emulates.
    pub fn inject_msi(&mut self, msi: Msi) {
        self.platform.apic.deliver(msi);
    }

    /// The platform, to look at and to receive serial input.
    pub fn platform(&mut self) -> &mut Platform {
        &mut self.platform
    }

    /// The CPU, as it was left at the last exit.
    pub fn cpu(&self) -> &VcpuState {
        &self.state
    }

    /// Starts tracking writes of the CPU: [`NestedTables::start_tracking`].
    pub fn start_tracking(&mut self) -> Result<(), NptError> {
        self.tables.start_tracking()
    }

    /// Marks in `log` what the CPU wrote: [`NestedTables::harvest`]. The guest's
    /// TLB is flushed before it runs again. For the last time it is called when
    /// the guest will not run any more, and nothing more needs to be done.
    pub fn harvest(&self, log: &DirtyLog<'_>) -> u64 {
        self.tables.harvest(log)
    }

    /// Ends tracking: [`NestedTables::stop_tracking`].
    pub fn stop_tracking(&mut self) {
        self.tables.stop_tracking();
    }

    /// The state of CPU and platform. The guest is stopped between two calls of
    /// [`Vm::run`], so it is complete.
    pub fn save(&self) -> VmState {
        // A guest that waits has not exited for a while.
        let mut vcpu = self.state;
        vcpu.tsc = self.vcpu.tsc();
        VmState {
            vcpu,
            platform: self.platform.save(),
            reserved: 0,
        }
    }

    /// Takes over a state from another machine. It is checked first: on an error
    /// nothing changes.
    pub fn restore(&mut self, state: &VmState) -> Result<(), RestoreError> {
        state.vcpu.validate()?;
        self.platform.restore(&state.platform)?;
        self.state = state.vcpu;
        self.vcpu.set_tsc(state.vcpu.tsc);
        Ok(())
    }

    /// Gives the CPU the interrupt that the APIC has for it, if it can take it now.
    /// Says whether to stop as soon as it can take one, or `None` while it is
    /// halted and nothing wakes it.
    fn offer_interrupt(&mut self) -> Option<bool> {
        let vector = self.platform.apic.deliverable();
        match vector {
            Some(vector) if self.state.accepts_interrupts() => {
                self.platform.apic.accept(vector);
                self.state.pending = Pending::interrupt(vector);
                self.state.halted = 0;
                Some(self.platform.apic.deliverable().is_some())
            }
            _ if self.state.halted != 0 => None,
            Some(_) => Some(true),
            None => Some(false),
        }
    }

    /// Does what the guest needs. `None`: let it run on.
    fn handle(&mut self, exit: Exit, outside: &mut Outside<'_, '_>) -> Option<Event> {
        let rip = self.state.rip;
        match exit {
            Exit::HostInterrupt => Some(Event::Interrupted),
            Exit::InterruptWindow => None,
            Exit::Instruction { what, next_rip } => self.execute(what, next_rip, outside),
            Exit::Exception(event) => {
                self.state.pending = event;
                None
            }
            Exit::NestedFault(fault) => self.access(fault, outside.mmio),
            Exit::Shutdown => Some(Event::Fatal(GuestError::TripleFault { rip })),
            Exit::InvalidState => Some(Event::Fatal(GuestError::InvalidState { rip })),
            Exit::Unexpected(code) => Some(Event::Fatal(GuestError::Unexpected { code, rip })),
        }
    }

    /// Carries out one intercepted instruction.
    fn execute(
        &mut self,
        what: Intercepted,
        next_rip: u64,
        outside: &mut Outside<'_, '_>,
    ) -> Option<Event> {
        match what {
            Intercepted::Missing => self.state.pending = Pending::UD,
            Intercepted::Cpuid => {
                cpuid::execute(&mut self.state, self.platform.host_cpuid);
                self.state.advance_to(next_rip);
            }
            // Caches are coherent here, and nothing is written past them.
            Intercepted::WriteBack => self.state.advance_to(next_rip),
            Intercepted::Halt => {
                self.state.advance_to(next_rip);
                self.state.halted = 1;
            }
            Intercepted::ReadMsr => {
                let number = self.state.gpr32(RCX);
                match msr::read(&self.state, &self.platform.apic, number, self.now()) {
                    Ok(value) => {
                        self.state.set_edx_eax(value);
                        self.state.advance_to(next_rip);
                    }
                    Err(_) => self.state.pending = Pending::GP,
                }
            }
            Intercepted::WriteMsr => self.write_msr(next_rip),
            // String forms would need the guest's segments and tables; no driver of
            // what is on this platform uses them.
            Intercepted::Io(access) if access.is_string => self.state.pending = Pending::GP,
            Intercepted::Io(access) => return self.port(access, next_rip, outside),
        }
        None
    }

    fn write_msr(&mut self, next_rip: u64) {
        let (number, value) = (self.state.gpr32(RCX), self.state.edx_eax());
        let now = self.now();
        match msr::write(&mut self.state, &mut self.platform.apic, number, value, now) {
            Ok(effect) => {
                if let MsrEffect::SetTsc(value) = effect {
                    self.platform.timeline.rebase(self.vcpu.tsc(), value);
                    self.vcpu.set_tsc(value);
                }
                self.state.advance_to(next_rip);
            }
            Err(_) => self.state.pending = Pending::GP,
        }
    }

    fn port(
        &mut self,
        access: IoAccess,
        next_rip: u64,
        outside: &mut Outside<'_, '_>,
    ) -> Option<Event> {
        self.state.advance_to(next_rip);
        let now = self.now();
        if access.is_in {
            let value = u64::from(self.platform.read_port(access, now));
            let rax = &mut self.state.gpr[RAX];
            *rax = match access.width {
                1 => *rax & !0xff | value,
                2 => *rax & !0xffff | value,
                _ => value,
            };
            return None;
        }
        let value = self.state.gpr32(RAX);
        match self
            .platform
            .write_port(access, value, now, outside.console)
        {
            IoEffect::None => None,
            IoEffect::Exit(status) => Some(Event::GuestExit(status)),
            IoEffect::PciChanged => Some(Event::PciChanged),
        }
    }

    /// Carries out an access to an address where the guest has no memory.
    fn access(&mut self, fault: NestedFault, regions: &mut [MmioRegion<'_>]) -> Option<Event> {
        let (gpa, rip) = (fault.gpa, self.state.rip);
        if fault.fetch || fault.table_walk || fault.in_delivery {
            return Some(Event::Fatal(GuestError::CpuOutsideMemory { gpa }));
        }
        let Some(access) = self.decode_current() else {
            return Some(Event::Fatal(GuestError::Instruction { rip, gpa }));
        };
        let width = access.width;
        let mut region = regions
            .iter_mut()
            .find(|region| region.contains(gpa, width));
        let is_outside = region.is_some();
        match access.operation {
            Operation::Read { to, is_signed } => {
                let value = self.read_bus(region, gpa, width);
                let value = if is_signed {
                    sign_extend(value, width)
                } else {
                    value
                };
                to.set(&mut self.state, value);
            }
            Operation::Write(from) => {
                // A move within the device does not exist.
                let value = self.value_of(from).unwrap_or_default();
                self.write_bus(region, gpa, width, value);
            }
            Operation::Exchange(register) => {
                let value = self.read_bus(region.as_deref_mut(), gpa, width);
                self.write_bus(region, gpa, width, register.get(&self.state));
                register.set(&mut self.state, value);
            }
            Operation::Compute { op, to, from } => {
                let device = self.read_bus(region.as_deref_mut(), gpa, width);
                let left = self.value_of(to).unwrap_or(device);
                let right = self.value_of(from).unwrap_or(device);
                let (result, rflags) = alu::compute(op, left, right, width, self.state.rflags);
                self.state.rflags = rflags;
                match (to, result) {
                    (Place::Device, Some(value)) => self.write_bus(region, gpa, width, value),
                    (Place::Register(to), Some(value)) => to.set(&mut self.state, value),
                    _ => {}
                }
            }
        }
        self.state.advance_to(rip.wrapping_add(access.length));
        is_outside.then_some(Event::MmioDone)
    }

    /// The value in a place on the CPU's side.
    fn value_of(&self, place: Place) -> Option<u64> {
        match place {
            Place::Device => None,
            Place::Register(register) => Some(register.get(&self.state)),
            Place::Immediate(value) => Some(value),
        }
    }

    /// Reads from a region of the image, or else from the platform, whose registers
    /// are 32 bits wide.
    fn read_bus(&mut self, region: Option<&mut MmioRegion<'_>>, gpa: Gpa, width: u8) -> u64 {
        let value = match region {
            Some(region) => region.device.read(gpa.raw() - region.gpa.raw(), width),
            None if width == 4 => {
                let value = self.platform.read_memory(gpa, self.now());
                value.map_or(u64::MAX, u64::from)
            }
            None => u64::MAX,
        };
        truncate(value, width)
    }

    /// Writes likewise.
    fn write_bus(&mut self, region: Option<&mut MmioRegion<'_>>, gpa: Gpa, width: u8, value: u64) {
        let value = truncate(value, width);
        match region {
            Some(region) => {
                let offset = gpa.raw() - region.gpa.raw();
                region.device.write(offset, width, value);
            }
            None if width == 4 => {
                let now = self.now();
                self.platform.write_memory(gpa, value as u32, now);
            }
            None => {}
        }
    }

    /// The guest's time.
    fn now(&self) -> Time {
        self.platform.timeline.at(self.vcpu.tsc())
    }

    /// The access at RIP, in 64-bit code.
    fn decode_current(&self) -> Option<decode::Access> {
        if !self.state.is_64_bit() {
            return None;
        }
        let mut bytes = [0; MAX_LENGTH];
        let count = walk::fetch(self.memory, &self.state, self.state.rip, &mut bytes);
        decode::decode(bytes.get(..count)?)
    }
}

impl MmioRegion<'_> {
    fn contains(&self, gpa: Gpa, width: u8) -> bool {
        let offset = gpa.raw().checked_sub(self.gpa.raw());
        let end = offset.and_then(|offset| offset.checked_add(width.into()));
        end.is_some_and(|end| end <= self.bytes)
    }
}
