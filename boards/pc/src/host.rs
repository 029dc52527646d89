//! What the hypervisor found: the PC's parts that it needs, each ready for use.

use crate::clock::{ClockError, Rates, TscClock};
use hv_core::svm::{self, SvmError};
use strandline_rt::acpi::{self, AcpiError, Tables};
use strandline_rt::apic::{LocalApic, Mode, NoX2Apic};
use strandline_rt::pci::{self, ConfigPorts, Function, PciError};
use strandline_rt::physical::{PhysRange, ReadPhys};

/// The longest DMAR table that is read.
pub const MAX_DMAR: usize = 4096;

/// The machine lacks something that the hypervisor cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The CPU.
    #[error(transparent)]
    Cpu(#[from] SvmError),
    /// A table.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// No DMAR table, so no remapping unit of the kind that is supported.
    #[error(
        "the machine has no VT-d DMA remapping unit (no ACPI table DMAR): a device could not be confined"
    )]
    NoIommu,
    /// A device.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The interrupt controller.
    #[error(transparent)]
    Apic(#[from] NoX2Apic),
}

/// A PCI function and the memory behind the base address register that is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// The function.
    pub function: Function,
    /// The registers, or the shared memory.
    pub window: PhysRange,
}

/// The machine.
#[derive(Debug)]
pub struct Host {
    /// The interrupt controller of this CPU, on.
    pub apic: LocalApic,
    /// The clocks' rates.
    pub rates: Rates,
    /// The time since discovery.
    pub clock: TscClock,
    /// Access to configuration space.
    pub config: ConfigPorts,
    /// The passthrough device: answers memory accesses, does no DMA yet.
    pub edu: Device,
    /// The memory shared with the other machine: answers memory accesses.
    pub link: Device,
    dmar: ([u8; MAX_DMAR], usize),
}

impl Host {
    /// Finds the parts. `rsdp` is where the boot loader says ACPI begins.
    pub fn discover(
        memory: &impl ReadPhys,
        config: ConfigPorts,
        rsdp: Option<u64>,
    ) -> Result<Self, DiscoveryError> {
        svm::check_support()?;
        let tables = Tables::new(memory, rsdp)?;
        let dmar = copy_dmar(&tables)?;
        let timer = tables.pm_timer()?;
        let apic = LocalApic::enable(Mode::XApic)?;
        let rates = Rates::measure(timer, &apic)?;
        let edu = find(&config, pci::EDU, 0)?;
        let link = find(&config, pci::IVSHMEM, 2)?;
        Ok(Self {
            apic,
            rates,
            clock: TscClock::new(rates),
            config,
            edu,
            link,
            dmar,
        })
    }

    /// The DMAR table, its checksum verified.
    pub fn dmar(&self) -> &[u8] {
        let (bytes, length) = &self.dmar;
        bytes.get(..*length).unwrap_or_default()
    }
}

fn copy_dmar(
    tables: &Tables<'_, impl ReadPhys>,
) -> Result<([u8; MAX_DMAR], usize), DiscoveryError> {
    let mut bytes = [0; MAX_DMAR];
    match tables.copy(acpi::DMAR, &mut bytes) {
        Ok(table) => {
            let length = table.len();
            Ok((bytes, length))
        }
        Err(AcpiError::Missing(acpi::DMAR)) => Err(DiscoveryError::NoIommu),
        Err(error) => Err(error.into()),
    }
}

fn find(config: &ConfigPorts, id: pci::DeviceId, bar: u8) -> Result<Device, PciError> {
    let function = Function::find(config, id)?;
    let window = function.bar(config, bar)?;
    function.enable(config, false);
    Ok(Device { function, window })
}
