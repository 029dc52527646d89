//! What a CPU is interrupted with: what other CPUs told it, an NMI, an interrupt of
//! its APIC.
//!
//! AMD64 Architecture Programmer's Manual volume 2, sections 8.2.3 (NMI) and 8.5
//! (priorities). An NMI is taken whatever RFLAGS.IF says, one at a time: from its
//! delivery on, others are masked until the guest executes IRET. One that comes
//! meanwhile is held back, and two of those are one.
//!
//! # The end of an NMI's handler
//! ```text
//!            taken                 exit at IRET               IRET executed
//!   open ----------> masked -------------------> shadow ---------------------> open
//! ```
//! The guest exits at the IRET, before it, and the next NMI must not come before the
//! IRET is executed: its frame would lie where the IRET's own is. So what is left of the
//! masking is an interrupt shadow ([`VcpuState::end_nmi`]), in which neither an NMI nor
//! an interrupt is given, and which the hardware ends after one instruction. It is part
//! of the CPU's state as the shadows that STI and MOV SS make, and migrates as they do.
//! What is held back then needs one more exit:
//!
//! - The interrupt window is that exit if the IRET enables interrupts.
//! - Otherwise CPU 0 exits for the host's tick. Another CPU has none, and CPU 0 calls
//!   it, but not before [`STEP`] has passed: a call that is there before the guest is
//!   ends the entry before its first instruction, and calls that always were would keep
//!   the guest from ever executing it.

use super::Vm;
use crate::memory::PhysMemory;
use crate::vcpu::{Pending, Vcpu, VcpuState};

/// How long a CPU has for the one instruction that keeps an NMI from it, in nanoseconds.
const STEP: u64 = 1_000_000;

impl<M: PhysMemory, V: Vcpu> Vm<'_, M, V> {
    /// Whether something came for `cpu`, not CPU 0, that it does not know of.
    pub(super) fn has_news(&mut self, cpu: usize) -> bool {
        if self.cpus[cpu].is_called {
            return false;
        }
        let own = &self.cpus[cpu];
        let processor = self.platform.cpus.get(cpu);
        let interrupt = !own.watches_window && processor.apic.deliverable().is_some();
        // While it is away this is the state in which it went.
        let nmi = processor.has_nmi() && !own.state.masks_nmi();
        let at_once = interrupt || processor.has_signals() || nmi && own.state.accepts_nmi();
        at_once || nmi && self.now().since(own.entered) >= STEP
    }

    /// Does what other CPUs told this one: reset, start.
    pub(super) fn obey_signals(&mut self, cpu: usize) {
        let signals = self.platform.cpus.get(cpu).take_signals();
        let state = &mut self.cpus[cpu].state;
        if signals.init {
            *state = VcpuState::after_init(state.tsc);
        }
        if let Some(page) = signals.start
            && state.halted == VcpuState::WAITS_FOR_STARTUP
        {
            state.start_at(page);
        }
    }

    /// Gives the CPU the NMI or else the interrupt that there is for it, if it can take
    /// it now. Says whether to stop as soon as it can take an interrupt, or `None` while
    /// it is halted and nothing wakes it.
    pub(super) fn offer_interrupt(&mut self, cpu: usize) -> Option<bool> {
        let processor = self.platform.cpus.get(cpu);
        let state = &mut self.cpus[cpu].state;
        if state.halted == VcpuState::WAITS_FOR_STARTUP {
            return None;
        }
        if state.accepts_nmi() && processor.take_nmi() {
            state.begin_nmi();
            return Some(processor.apic.deliverable().is_some());
        }
        let nmi_waits = processor.has_nmi() && !state.masks_nmi();
        let apic = &mut processor.apic;
        match apic.deliverable() {
            Some(vector) if state.accepts_interrupts() => {
                apic.accept(vector);
                state.pending = Pending::interrupt(vector);
                state.halted = 0;
                Some(apic.deliverable().is_some())
            }
            _ if state.halted != 0 => None,
            Some(_) => Some(true),
            None => Some(nmi_waits),
        }
    }
}
