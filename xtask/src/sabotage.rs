//! The mechanisms that a test build can break on purpose, as options.
//!
//! The names are the hypervisor's; a test in `tests/scenarios` keeps the two lists
//! equal without making this tool wait for the hypervisor's dependencies.

use clap::ValueEnum;

/// One mechanism to break. A run with a sabotage must end with lost pages, or with
/// interrupts that reached the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// An unmap does not report the pages the device could write
    UnmapReport,
    /// The guest is told that an unmap is complete before it is
    UnmapOrder,
    /// CPU writes are not tracked
    CpuDirty,
    /// No invalidation is sent to the remapping hardware
    Iotlb,
    /// Pages still mapped at switchover are not counted as dirty
    MappedDirty,
    /// Writes by the hypervisor's own device emulation are not logged
    EmulationDirty,
    /// Accessed and dirty bits are cleared without dropping cached translations
    EvidenceDrain,
    /// The device's interrupt requests are not remapped
    InterruptRemapping,
}

impl Sabotage {
    /// Every sabotage, in the hypervisor's order.
    pub const ALL: [Self; 8] = [
        Self::UnmapReport,
        Self::UnmapOrder,
        Self::CpuDirty,
        Self::Iotlb,
        Self::MappedDirty,
        Self::EmulationDirty,
        Self::EvidenceDrain,
        Self::InterruptRemapping,
    ];

    /// The name on command lines.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}
