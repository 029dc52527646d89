//! A VT-d unit, driven by the project's own layer, which keeps the tables.

use super::{Fault, Remapping};
use crate::machine::{MachineError, registers, table};
use hv_core::memory::{FramePool, GuestMemory};
use hv_core::{Gpa, Hpa, PAGE_SIZE};
use iommu::dmar::Dmar;
use iommu::host::vtd::{Implementation, VtdUnit};
use iommu::space::{Access, Attachment, DmaSpace};
use iommu::tables::VtdSecondStage;
use iommu::unit::{DomainId, Fault as UnitFault, SourceId};
use iommu::{Iommu, IovaRange, Parts};
use ledger_guest::ledger::DOMAINS;
use strandline_rt::BootInfo;
use strandline_rt::acpi::DMAR;
use strandline_rt::physical::{IdentityMemory, MmioWindow, PhysRange};

/// The size of a VT-d unit's register window.
const UNIT_BYTES: u64 = 4096;

/// The unit with its tables.
pub(crate) struct Vtd {
    source: SourceId,
    layer: Iommu<'static, IdentityMemory, VtdUnit<'static, MmioWindow, IdentityMemory>>,
    domains: [DomainId; DOMAINS],
    current: usize,
}

/// The memory for it.
pub(crate) struct Memory {
    /// All of the guest's own memory, by frame.
    pub(crate) memory: &'static IdentityMemory,
    /// What the device may reach.
    pub(crate) arena: &'static GuestMemory<'static, IdentityMemory>,
    /// Frames for tables.
    pub(crate) tables: PhysRange,
    /// One word for each frame up to the arena's last.
    pub(crate) pins: &'static mut [u32],
}

impl Vtd {
    /// Takes the unit that ACPI names into use, with the device blocked.
    pub(crate) fn start(
        boot: &BootInfo,
        source: SourceId,
        memory: Memory,
    ) -> Result<Self, MachineError> {
        let half = memory.tables.bytes / PAGE_SIZE / 2;
        let pool = |index| {
            let start = Hpa::new(memory.tables.start + index * half * PAGE_SIZE);
            FramePool::new(start, half)
        };
        let unit = VtdUnit::start(
            registers(unit_range(boot, source)?)?,
            memory.memory,
            pool(0),
            Implementation::Emulated,
        )?;
        let mut layer = Iommu::new(Parts {
            mem: memory.memory,
            format: VtdSecondStage,
            unit,
            guest: memory.arena,
            pool: pool(1),
            pins: memory.pins,
        })?;
        Ok(Self {
            source,
            domains: [layer.create_domain()?, layer.create_domain()?],
            layer,
            current: 0,
        })
    }
}

impl Remapping for Vtd {
    fn attach(&mut self, domain: usize) -> Result<(), MachineError> {
        self.current = domain % DOMAINS;
        let to = Attachment::Domain(self.domains[self.current]);
        Ok(self.layer.attach(self.source, to)?)
    }

    fn map(&mut self, range: IovaRange, gpa: Gpa, access: Access) -> Result<(), MachineError> {
        let domain = self.domains[self.current];
        Ok(self.layer.map(domain, range, gpa, access)?)
    }

    fn unmap(&mut self, range: IovaRange) -> Result<(), MachineError> {
        self.layer.unmap(self.domains[self.current], range, None)?;
        Ok(())
    }

    fn take_fault(&mut self) -> Option<Fault> {
        loop {
            let UnitFault::Dma(fault) = self.layer.take_fault()? else {
                continue;
            };
            if fault.source == self.source {
                return Some(Fault {
                    iova: fault.iova,
                    write: fault.write,
                });
            }
            log::warn!("a fault of somebody else: {fault}");
        }
    }
}

/// Where the registers of the device's unit are, according to ACPI.
pub(crate) fn unit_range(boot: &BootInfo, device: SourceId) -> Result<PhysRange, MachineError> {
    let mut bytes = [0; 1024];
    let unit = Dmar::parse(table(boot, DMAR, &mut bytes)?)?.unit_for(0, device);
    let base = unit.ok_or(MachineError::NoUnit)?.registers.raw();
    PhysRange::new(base, UNIT_BYTES).ok_or(MachineError::NoUnit)
}
