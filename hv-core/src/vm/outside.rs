//! What the image and a guest's machine say to each other.

use super::Reason;
use crate::Gpa;
use crate::platform::{GuestExit, IoEffect};

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
    /// What accesses to it count as among the guest's exits.
    pub counts_as: Reason,
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

impl MmioRegion<'_> {
    pub(super) fn contains(&self, gpa: Gpa, width: u8) -> bool {
        let offset = gpa.raw().checked_sub(self.gpa.raw());
        let end = offset.and_then(|offset| offset.checked_add(width.into()));
        end.is_some_and(|end| end <= self.bytes)
    }
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
    /// Devices sent interrupts, which are the image's to deliver: see
    /// [`crate::platform::Platform::take_request`]. They may also have when another
    /// event says so much.
    InterruptRequested,
    /// There is news for a CPU other than CPU 0: see [`Vm::order`](super::Vm::order) and
    /// [`Vm::must_call`](super::Vm::must_call).
    OtherCpu,
    /// The guest ended by itself.
    GuestExit(GuestExit),
    /// The guest cannot go on.
    Fatal(GuestError),
}

impl Event {
    /// What the image has to do for an access.
    pub(super) fn of(effect: IoEffect) -> Option<Self> {
        match effect {
            IoEffect::None => None,
            IoEffect::Exit(exit) => Some(Self::GuestExit(exit)),
            IoEffect::PciChanged => Some(Self::PciChanged),
        }
    }
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
