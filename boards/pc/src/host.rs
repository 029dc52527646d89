//! What the hypervisor found: the PC's parts that it needs, each ready for use.

use crate::clock::{ClockError, Rates, TscClock};
use crate::wall_clock;
use hv_core::svm::{self, SvmError};
use strandline_rt::acpi::{self, AcpiError, Signature, Tables};
use strandline_rt::apic::{LocalApic, Mode, NoX2Apic};
use strandline_rt::pci::{self, ConfigPorts, Function, PciError};
use strandline_rt::physical::{PhysRange, ReadPhys};
use strandline_rt::processors;

/// The longest table of remapping units that is read.
const MAX_UNIT_TABLE: usize = 4096;

/// The machine lacks something that the hypervisor cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The CPU.
    #[error(transparent)]
    Cpu(#[from] SvmError),
    /// A table.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// No table of remapping units, so no unit of a kind that is supported.
    #[error(
        "the machine has no DMA remapping unit (no ACPI table DMAR for VT-d, none IVRS for AMD-Vi): a device could not be confined"
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

/// The passthrough devices that there is a driver for: one that can hand their
/// state over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// QEMU's `edu`.
    Edu,
    /// An NVMe controller. Taken in preference to the other.
    Nvme,
}

/// The ACPI table that names the machine's remapping units, its checksum verified.
#[derive(Debug)]
pub struct UnitTable {
    /// [`acpi::DMAR`] or [`acpi::IVRS`].
    pub signature: Signature,
    bytes: [u8; MAX_UNIT_TABLE],
    length: usize,
}

impl UnitTable {
    /// The first there is. No machine has units of both vendors.
    fn find(tables: &Tables<'_, impl ReadPhys>) -> Result<Self, DiscoveryError> {
        let mut bytes = [0; MAX_UNIT_TABLE];
        for signature in [acpi::DMAR, acpi::IVRS] {
            match tables.copy(signature, &mut bytes) {
                Ok(table) => {
                    let length = table.len();
                    return Ok(Self {
                        signature,
                        bytes,
                        length,
                    });
                }
                Err(AcpiError::Missing(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(DiscoveryError::NoIommu)
    }

    /// The table.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
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
    /// When that was, in seconds since 1970 UTC; 0 if nothing tells.
    pub started: i64,
    /// Access to configuration space.
    pub config: ConfigPorts,
    /// The passthrough device: answers memory accesses, does no DMA yet.
    pub device: Device,
    /// What it is.
    pub kind: DeviceKind,
    /// The memory shared with the other machine: answers memory accesses.
    pub link: Device,
    /// Where the remapping units are.
    pub units: UnitTable,
    /// The APIC ids of the machine's CPUs, this one's included.
    pub cpus: heapless::Vec<u32, 16>,
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
        let units = UnitTable::find(&tables)?;
        let timer = tables.pm_timer()?;
        let apic = LocalApic::enable(Mode::XApic)?;
        let rates = Rates::measure(timer, &apic)?;
        let (device, kind) = match Function::of_class(&config, pci::NVME) {
            Some(function) => (open(&config, function, 0)?, DeviceKind::Nvme),
            None => (find(&config, pci::EDU, 0)?, DeviceKind::Edu),
        };
        let link = find(&config, pci::IVSHMEM, 2)?;
        Ok(Self {
            apic,
            rates,
            clock: TscClock::new(rates),
            started: wall_clock::read().unwrap_or(0),
            config,
            device,
            kind,
            link,
            units,
            cpus: processors::apic_ids(&tables)?,
        })
    }
}

fn find(config: &ConfigPorts, id: pci::DeviceId, bar: u8) -> Result<Device, PciError> {
    open(config, Function::find(config, id)?, bar)
}

fn open(config: &ConfigPorts, function: Function, bar: u8) -> Result<Device, PciError> {
    let window = function.bar(config, bar)?;
    function.enable(config, false);
    Ok(Device { function, window })
}
