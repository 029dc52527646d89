//! One guest: its CPUs, its second stage and its platform, and what happens at each
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
//! # More than one CPU
//! CPU 0 enters the guest here, in [`Vm::run`]. Each other CPU is another physical
//! CPU's, to which the image carries an [`Order`] and from which it carries back how
//! far the guest came. Between the two the CPU is *away*, and nothing here refers to
//! it. So there is no lock and nothing to forget: whatever a guest's CPU needs is done
//! by one physical CPU, one exit at a time, and another one only ever enters and
//! leaves the guest.
//!
//! ```text
//!   image, CPU 0                                 CPU 1
//!   order(1)       -- state, entry -->           enter the guest
//!   run: CPU 0's guest        <--- interrupt --- exit
//!   returned(1, state, exit) <-- state, exit --  wait for an order
//! ```
//!
//! Nothing a guest does ends in a panic of the hypervisor: an access to nothing
//! reads all ones, an unknown MSR is #GP, and what cannot go on is
//! [`Event::Fatal`] for this guest alone.

mod access;
mod alu;
mod decode;
mod execute;
mod exits;
mod interrupts;
mod oddity;
mod outside;
mod saved;
#[cfg(test)]
mod tests;
mod walk;

pub use exits::{ExitCounts, Reason};
pub use outside::{Event, GuestError, MmioDevice, MmioRegion, Outside};
pub use saved::{CpuState, RestoreError};

use crate::dirty::DirtyLog;
use crate::memory::{GuestMemory, PhysMemory};
use crate::npt::{GuestTlb, NestedTables, NptError, Stopped};
use crate::platform::Platform;
use crate::platform::apic::{Message, Msi};
use crate::platform::processors::MAX_CPUS;
use crate::platform::time::Time;
use crate::vcpu::gpr::RCX;
use crate::vcpu::{Entry, Exit, Vcpu, VcpuState};
use heapless::Vec;
use oddity::Oddities;

/// One CPU of a guest.
struct Cpu {
    state: VcpuState,
    /// What its time stamp counter is ahead of the host's, modulo 2^64.
    tsc_offset: u64,
    tlb: GuestTlb,
    /// It exits by itself as soon as it can take the interrupt that waits.
    watches_window: bool,
    /// It was called back, or woken, and has not been seen since.
    is_called: bool,
    /// When it entered the guest last.
    entered: Time,
}

/// What another physical CPU is to do: enter the guest in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The state of the guest's CPU.
    pub state: VcpuState,
    /// What the entry is asked to do.
    pub entry: Entry,
}

/// How far another physical CPU came with an [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// The state of the guest's CPU.
    pub state: VcpuState,
    /// The entry that was made.
    pub entry: Entry,
    /// Why the guest exited.
    pub exit: Exit,
}

/// One guest.
pub struct Vm<'m, M, V> {
    memory: &'m GuestMemory<'m, M>,
    tables: NestedTables<'m, M>,
    /// The physical CPU that CPU 0 is on.
    vcpu: V,
    cpus: Vec<Cpu, MAX_CPUS>,
    platform: Platform,
    exits: ExitCounts,
    oddities: Oddities,
    /// The host's time stamp counter when CPU 0 was saved or restored last.
    moment: u64,
}

impl<'m, M: PhysMemory, V: Vcpu> Vm<'m, M, V> {
    /// A guest with `memory`, which `tables` maps, and the CPUs of `platform`. The
    /// first starts in `state`, on `vcpu`, which was made for these tables; the others
    /// wait for a start-up.
    pub fn new(
        memory: &'m GuestMemory<'m, M>,
        tables: NestedTables<'m, M>,
        vcpu: V,
        state: VcpuState,
        mut platform: Platform,
    ) -> Self {
        // The guest's counters start at 0.
        let tsc_offset = vcpu.host_tsc().wrapping_neg();
        let states = core::iter::once(state).chain(core::iter::repeat(VcpuState::after_init(0)));
        let cpus = platform.cpus.iter_mut().zip(states).map(|(_, state)| Cpu {
            state,
            tsc_offset,
            tlb: GuestTlb::unknown(),
            watches_window: false,
            is_called: false,
            entered: Time::from_ns(0),
        });
        Self {
            memory,
            tables,
            vcpu,
            cpus: cpus.collect(),
            platform,
            exits: ExitCounts::default(),
            oddities: Oddities::default(),
            moment: 0,
        }
    }

    /// Lets CPU 0 run until something needs the image. Host interrupts are disabled on
    /// call and on return; each that arrives meanwhile is handled and then reported as
    /// [`Event::Interrupted`].
    pub fn run(&mut self, outside: &mut Outside<'_, '_>) -> Event {
        loop {
            let Some(entry) = self.prepare(0) else {
                return Event::Halted;
            };
            let exit = self.vcpu.run(&mut self.cpus[0].state, entry);
            self.left(0, entry);
            if let Some(event) = self.handle(0, exit, outside) {
                return event;
            }
            if self.platform.has_requests() {
                return Event::InterruptRequested;
            }
            if (1..self.cpus.len()).any(|cpu| self.has_news(cpu)) {
                return Event::OtherCpu;
            }
        }
    }

    /// How many CPUs the guest has. They are numbered from 0 on; a number that there
    /// is none of is a defect of the caller, and panics below.
    pub fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    /// What the physical CPU of `cpu`, which is not CPU 0, is to do; `None` while it is
    /// away, or waits and nothing wakes it. It is away from now on.
    pub fn order(&mut self, cpu: usize) -> Option<Order> {
        if self.is_away(cpu) {
            return None;
        }
        let entry = self.prepare(cpu)?;
        let state = self.cpus[cpu].state;
        Some(Order { state, entry })
    }

    /// `cpu` comes back. Does what its guest needs.
    pub fn returned(
        &mut self,
        cpu: usize,
        back: &Return,
        outside: &mut Outside<'_, '_>,
    ) -> Option<Event> {
        self.recalled(cpu, back);
        self.handle(cpu, back.exit, outside)
    }

    /// `cpu` comes back because the guest is to stop, and nothing is done for it: an
    /// instruction or access that exited is executed again when the guest goes on.
    pub fn recalled(&mut self, cpu: usize, back: &Return) {
        self.cpus[cpu].state = back.state;
        self.left(cpu, back.entry);
    }

    /// Whether `cpu` is away and must come back, because there is news for it: an
    /// interrupt, an NMI, a reset. Says so once until it has come.
    pub fn must_call(&mut self, cpu: usize) -> bool {
        let must = self.is_away(cpu) && self.has_news(cpu);
        self.cpus[cpu].is_called |= must;
        must
    }

    /// Whether `cpu` is away.
    pub fn is_away(&self, cpu: usize) -> bool {
        self.cpus[cpu].tlb.is_inside()
    }

    /// The image delivers an interrupt that nobody remaps, such as an IOMMU's own. It is
    /// dropped unless it is a fixed or lowest-priority interrupt, or an NMI, for a CPU that
    /// there is.
    pub fn inject_msi(&mut self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi) {
            self.platform.deliver(message);
        }
    }

    /// The platform, to look at and to receive serial input.
    pub fn platform(&mut self) -> &mut Platform {
        &mut self.platform
    }

    /// How often the guest exited here.
    pub fn exits(&self) -> &ExitCounts {
        &self.exits
    }

    /// Starts tracking writes of the CPUs, none of which is away:
    /// [`NestedTables::start_tracking`].
    pub fn start_tracking(&mut self) -> Result<(), NptError> {
        let stopped = Stopped::all(self.cpus.iter().map(|cpu| &cpu.tlb));
        self.tables.start_tracking(&stopped)
    }

    /// Marks in `log` what the CPUs, none of which is away, wrote:
    /// [`NestedTables::harvest`].
    pub fn harvest(&mut self, log: &DirtyLog<'_>) -> u64 {
        let stopped = Stopped::all(self.cpus.iter().map(|cpu| &cpu.tlb));
        self.tables.harvest(log, &stopped)
    }

    /// Ends tracking, while no CPU is away: [`NestedTables::stop_tracking`].
    pub fn stop_tracking(&mut self) {
        let stopped = Stopped::all(self.cpus.iter().map(|cpu| &cpu.tlb));
        self.tables.stop_tracking(&stopped);
    }

    /// What the next entry of `cpu` is asked to do, or `None` while it waits and
    /// nothing wakes it. The CPU counts as inside the guest from now on.
    fn prepare(&mut self, cpu: usize) -> Option<Entry> {
        let now = self.now();
        self.platform.advance(now);
        self.obey_signals(cpu);
        let interrupt_window = self.offer_interrupt(cpu)?;
        let class = self.platform.cpus.get(cpu).apic.task_priority_class();
        let own = &mut self.cpus[cpu];
        (own.is_called, own.entered) = (false, now);
        own.state.cr8 = class;
        own.state.withdraw_features();
        // An interrupt that is given first leaves no room for a window.
        own.watches_window = interrupt_window && !own.state.pending.is_interrupt();
        Some(Entry {
            flush_tlb: self.tables.enter(&mut own.tlb),
            interrupt_window,
            tsc_offset: own.tsc_offset,
        })
    }

    /// `cpu` has left the guest, which it had entered like this.
    fn left(&mut self, cpu: usize, entry: Entry) {
        let own = &mut self.cpus[cpu];
        (own.is_called, own.watches_window) = (false, false);
        own.tlb.leave(entry.flush_tlb);
        let apic = &mut self.platform.cpus.get(cpu).apic;
        apic.set_task_priority_class(own.state.cr8);
    }

    /// Does what the guest needs. `None`: let it run on.
    fn handle(&mut self, cpu: usize, exit: Exit, outside: &mut Outside<'_, '_>) -> Option<Event> {
        let state = &self.cpus[cpu].state;
        let (rip, msr) = (state.rip, state.gpr32(RCX));
        self.exits.note(Reason::of(&exit, msr, outside.mmio));
        match exit {
            Exit::HostInterrupt => Some(Event::Interrupted),
            Exit::InterruptWindow => None,
            Exit::Instruction { what, next_rip } => self.execute(cpu, what, next_rip, outside),
            Exit::Exception(event) => {
                self.cpus[cpu].state.pending = event;
                None
            }
            Exit::InterruptReturn => {
                self.cpus[cpu].state.end_nmi();
                None
            }
            Exit::NestedFault(fault) => self.access(cpu, fault, outside.mmio),
            Exit::Shutdown => Some(Event::Fatal(GuestError::TripleFault { rip })),
            Exit::InvalidState => Some(Event::Fatal(GuestError::InvalidState { rip })),
            Exit::Unexpected(code) => Some(Event::Fatal(GuestError::Unexpected { code, rip })),
        }
    }

    /// The guest's time, which follows the counter of CPU 0.
    fn now(&self) -> Time {
        let tsc = self.vcpu.host_tsc().wrapping_add(self.cpus[0].tsc_offset);
        self.platform.timeline.at(tsc)
    }
}
