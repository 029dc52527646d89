//! How often a guest exits, by reason.

use super::MmioRegion;
use crate::Gpa;
use crate::platform::apic::{self, register};
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
    /// WRMSR, but for those of the local APIC that have a reason of their own.
    WriteMsr,
    /// The end of an interrupt, told to the local APIC, by MSR or in memory.
    EndOfInterrupt,
    /// The local APIC's timer, likewise.
    ApicTimer,
    /// An interrupt that one CPU sends, likewise.
    ApicCommand,
    /// Registers of the vIOMMU.
    Iommu,
    /// Registers of the passthrough device that are trapped.
    Device,
    /// Other device registers in memory.
    Mmio,
    /// Anything else.
    Other,
}

impl Reason {
    /// Every reason, in the order of the counts.
    pub const ALL: [Self; 14] = [
        Self::HostInterrupt,
        Self::InterruptWindow,
        Self::Cpuid,
        Self::Halt,
        Self::Port,
        Self::ReadMsr,
        Self::WriteMsr,
        Self::EndOfInterrupt,
        Self::ApicTimer,
        Self::ApicCommand,
        Self::Iommu,
        Self::Device,
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
            Self::EndOfInterrupt => "end-of-interrupt",
            Self::ApicTimer => "apic-timer",
            Self::ApicCommand => "apic-command",
            Self::Iommu => "iommu",
            Self::Device => "device",
            Self::Mmio => "mmio",
            Self::Other => "other",
        }
    }

    /// Of an exit of a guest that has these regions. `msr` is the MSR that an exit for
    /// one is about.
    pub(super) fn of(exit: &Exit, msr: u32, regions: &[MmioRegion<'_>]) -> Self {
        match exit {
            Exit::HostInterrupt => Self::HostInterrupt,
            Exit::InterruptWindow => Self::InterruptWindow,
            Exit::NestedFault(fault) => Self::of_access(fault.gpa, regions),
            Exit::Instruction { what, .. } => match what {
                Intercepted::Cpuid => Self::Cpuid,
                Intercepted::Halt => Self::Halt,
                Intercepted::Io(_) => Self::Port,
                Intercepted::ReadMsr => Self::ReadMsr,
                Intercepted::WriteMsr => {
                    let register = msr.checked_sub(apic::FIRST_MSR);
                    register.and_then(Self::of_apic).unwrap_or(Self::WriteMsr)
                }
                Intercepted::WriteBack | Intercepted::Missing => Self::Other,
            },
            Exit::Exception(_)
            | Exit::InterruptReturn
            | Exit::Shutdown
            | Exit::InvalidState
            | Exit::Unexpected(_) => Self::Other,
        }
    }

    fn of_access(gpa: Gpa, regions: &[MmioRegion<'_>]) -> Self {
        if let Some(region) = regions.iter().find(|region| region.contains(gpa, 1)) {
            return region.counts_as;
        }
        let offset = gpa.raw().wrapping_sub(apic::WINDOW);
        let register = u32::try_from(offset >> 4).ok();
        register.and_then(Self::of_apic).unwrap_or(Self::Mmio)
    }

    /// Of a register of the local APIC, by its number.
    const fn of_apic(number: u32) -> Option<Self> {
        Some(match number {
            register::END_OF_INTERRUPT => Self::EndOfInterrupt,
            register::COMMAND | register::COMMAND_HIGH | register::SELF => Self::ApicCommand,
            register::FIRST_LVT
            | register::TIMER_INITIAL
            | register::TIMER_CURRENT
            | register::TIMER_DIVIDE => Self::ApicTimer,
            _ => return None,
        })
    }
}

/// Exits of all CPUs of a guest on this machine, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts([u64; Reason::ALL.len()]);

impl ExitCounts {
    pub(super) fn note(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
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
    use crate::vcpu::NestedFault;
    use crate::vm::MmioDevice;

    #[test]
    fn every_reason_has_a_count_of_its_own() {
        let mut counts = ExitCounts::default();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let before = counts;
        counts.note(Reason::HostInterrupt);
        counts.note(Reason::Other);
        counts.note(Reason::Other);
        let since = counts.since(&before);
        assert_eq!(since.of(Reason::HostInterrupt), 1);
        assert_eq!(since.of(Reason::Other), 2);
        assert_eq!(since.of(Reason::Mmio), 0);
    }

    #[test]
    fn an_access_counts_for_what_was_accessed() {
        struct Nothing;
        impl MmioDevice for Nothing {
            fn read(&mut self, _: u64, _: u8) -> u64 {
                0
            }
            fn write(&mut self, _: u64, _: u8, _: u64) {}
        }
        let regions = [MmioRegion {
            gpa: Gpa::new(0xe000_0000),
            bytes: 0x2000,
            counts_as: Reason::Device,
            device: &mut Nothing,
        }];
        let fault = |gpa| {
            Exit::NestedFault(NestedFault {
                gpa: Gpa::new(gpa),
                write: true,
                fetch: false,
                table_walk: false,
                in_delivery: false,
            })
        };
        let write = Exit::Instruction {
            what: Intercepted::WriteMsr,
            next_rip: 0,
        };
        for (exit, msr, reason) in [
            (fault(0xe000_1000), 0, Reason::Device),
            (fault(0xe000_2000), 0, Reason::Mmio),
            (fault(apic::WINDOW + 0xb0), 0, Reason::EndOfInterrupt),
            (fault(apic::WINDOW + 0x300), 0, Reason::ApicCommand),
            (fault(apic::WINDOW + 0x80), 0, Reason::Mmio),
            (write, 0x838, Reason::ApicTimer),
            (write, 0x80b, Reason::EndOfInterrupt),
            (write, 0xc000_0080, Reason::WriteMsr),
            (write, 0, Reason::WriteMsr),
        ] {
            assert_eq!(
                Reason::of(&exit, msr, &regions),
                reason,
                "{exit:?} {msr:#x}"
            );
        }
    }
}
