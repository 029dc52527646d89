//! How often a guest exits, by reason.

use crate::vcpu::{Exit, Intercepted};

/// Why a guest exited, as far as figures tell reasons apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// An interrupt of the host: its tick, a device's, or another CPU's.
    HostInterrupt,
    /// The guest could take an interrupt that waited.
    InterruptWindow,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// A port.
    Port,
    /// RDMSR.
    ReadMsr,
    /// WRMSR: in x2APIC mode these are the APIC's timer, ends of interrupt and messages.
    WriteMsr,
    /// Device registers in memory.
    Mmio,
    /// Anything else.
    Other,
}

impl Reason {
    /// Every reason, in the order of the counts.
    pub const ALL: [Self; 9] = [
        Self::HostInterrupt,
        Self::InterruptWindow,
        Self::Cpuid,
        Self::Halt,
        Self::Port,
        Self::ReadMsr,
        Self::WriteMsr,
        Self::Mmio,
        Self::Other,
    ];

    /// The name in events and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostInterrupt => "host-interrupt",
            Self::InterruptWindow => "interrupt-window",
            Self::Cpuid => "cpuid",
            Self::Halt => "halt",
            Self::Port => "port",
            Self::ReadMsr => "read-msr",
            Self::WriteMsr => "write-msr",
            Self::Mmio => "mmio",
            Self::Other => "other",
        }
    }

    const fn of(exit: &Exit) -> Self {
        match exit {
            Exit::HostInterrupt => Self::HostInterrupt,
            Exit::InterruptWindow => Self::InterruptWindow,
            Exit::NestedFault(_) => Self::Mmio,
            Exit::Instruction { what, .. } => match what {
                Intercepted::Cpuid => Self::Cpuid,
                Intercepted::Halt => Self::Halt,
                Intercepted::Io(_) => Self::Port,
                Intercepted::ReadMsr => Self::ReadMsr,
                Intercepted::WriteMsr => Self::WriteMsr,
                Intercepted::WriteBack | Intercepted::Missing => Self::Other,
            },
            Exit::Exception(_) | Exit::Shutdown | Exit::InvalidState | Exit::Unexpected(_) => {
                Self::Other
            }
        }
    }
}

/// Exits of all CPUs of a guest on this machine, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts([u64; Reason::ALL.len()]);

impl ExitCounts {
    pub(super) fn note(&mut self, exit: &Exit) {
        self.0[Reason::of(exit) as usize] += 1;
    }

    /// How often it was for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// What came since `earlier`, which is of the same guest.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(core::array::from_fn(|at| {
            self.0[at].wrapping_sub(earlier.0[at])
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let mut counts = ExitCounts::default();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let before = counts;
        counts.note(&Exit::HostInterrupt);
        counts.note(&Exit::Shutdown);
        counts.note(&Exit::Shutdown);
        let since = counts.since(&before);
        assert_eq!(since.of(Reason::HostInterrupt), 1);
        assert_eq!(since.of(Reason::Other), 2);
        assert_eq!(since.of(Reason::Mmio), 0);
    }
}
