//! A virtual CPU, independent of the hardware extension that runs it.
//!
//! Everything a guest CPU consists of is plain data, [`VcpuState`]. A [`Vcpu`]
//! knows how to let hardware act on it:
//!
//! ```text
//!   VcpuState + Entry  --run-->  (hardware)  -->  VcpuState + Exit
//! ```
//!
//! So exit handling never touches a VMCB or VMCS, runs in host tests against a
//! scripted CPU, and migrating a CPU is copying its state.

mod parts;
mod state;
mod validate;

pub use parts::{Fx, Pending, Segment};
pub use state::{VcpuState, gpr};
pub use validate::StateError;
pub(crate) use validate::{EFER_ALLOWED, EFER_LMA, EFER_LME};

use crate::Gpa;

/// What the next entry is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Flush every translation of this guest before it runs.
    pub flush_tlb: bool,
    /// Exit with [`Exit::InterruptWindow`] as soon as the guest could take an
    /// external interrupt.
    pub interrupt_window: bool,
    /// What the guest's time stamp counter is ahead of the host's, modulo 2^64.
    pub tsc_offset: u64,
}

/// Why the guest stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The host had an interrupt; its handler has run.
    HostInterrupt,
    /// The guest can take an external interrupt now.
    InterruptWindow,
    /// An instruction that the hypervisor carries out; the guest has not executed
    /// it. `next_rip` is behind it.
    Instruction {
        /// Which one.
        what: Intercepted,
        /// Where the guest goes on.
        next_rip: u64,
    },
    /// An exception of the guest's that it has to get all the same.
    Exception(Pending),
    /// The next instruction is an IRET, and NMIs are masked until it is executed.
    InterruptReturn,
    /// A guest physical access that nested paging does not allow.
    NestedFault(NestedFault),
    /// A triple fault.
    Shutdown,
    /// The hardware refused the state.
    InvalidState,
    /// An exit that nobody asked for, by its hardware code.
    Unexpected(u64),
}

/// Instructions that exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intercepted {
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// IN, OUT and their string forms.
    Io(IoAccess),
    /// RDMSR of an MSR that is not the guest's own.
    ReadMsr,
    /// WRMSR to an MSR that is not the guest's own.
    WriteMsr,
    /// WBINVD or INVD.
    WriteBack,
    /// An instruction that this guest's CPU does not have.
    Missing,
}

/// An access to an I/O port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoAccess {
    /// The first port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// IN, not OUT.
    pub is_in: bool,
    /// INS or OUTS, with or without REP.
    pub is_string: bool,
}

/// An access that nested paging did not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedFault {
    /// The address, to the byte.
    pub gpa: Gpa,
    /// A write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The access was the CPU's own, to a guest page table.
    pub table_walk: bool,
    /// The access happened while an interrupt or exception was being delivered,
    /// not as part of the instruction at RIP.
    pub in_delivery: bool,
}

/// A CPU that can run a guest.
pub trait Vcpu {
    /// Lets the guest run on from `state` until something has to be done for it,
    /// and leaves in `state` how far it came.
    ///
    /// [`VcpuState::pending`] is delivered first. When this returns it holds the
    /// event whose delivery the exit interrupted, if any, so that running again
    /// delivers it.
    ///
    /// While [`VcpuState::nmi_masked`] is set, an IRET ends the run with
    /// [`Exit::InterruptReturn`].
    ///
    /// Host interrupts are disabled on call and on return. One that arrives ends
    /// the run with [`Exit::HostInterrupt`] and has been handled then; none is
    /// handled otherwise, so a guest that exits all the time cannot hide one.
    fn run(&mut self, state: &mut VcpuState, entry: Entry) -> Exit;

    /// The host's time stamp counter now, the same on all of its CPUs.
    fn host_tsc(&self) -> u64;
}
