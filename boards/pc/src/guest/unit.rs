//! The remapping unit of the passthrough device. The one place that knows which
//! kinds of unit there are.

use super::build::{BuildError, window};
use super::confine;
use crate::events;
use crate::host::Host;
use hv_core::memory::FramePool;
use iommu::amdvi;
use iommu::dirty_mode::DirtyDecision;
use iommu::dmar::{Dmar, DmarFlags};
use iommu::host::amdvi::{AmdUnit, Facts};
use iommu::host::any::AnyUnit;
use iommu::host::vtd::{Implementation, VtdUnit};
use iommu::ivrs::Ivrs;
use iommu::unit::{HostUnit as _, SourceId};
use log::{info, warn};
use raw_cpuid::cpuid;
use strandline_rt::acpi;
use strandline_rt::pci;
use strandline_rt::physical::{IdentityMemory, MmioWindow, PhysRange};

/// The host's unit, as the guest uses it.
pub(super) type HostUnit<'m> = AnyUnit<'m, MmioWindow, IdentityMemory>;

/// The size of a VT-d unit's register window.
const VTD_WINDOW: u64 = 4096;

/// Of the frames for remapping, those for the unit's own structures; the rest is
/// for the domains' tables. AMD-Vi takes the most, for its device table; VT-d a
/// context table for each bus that is used, and a few more.
pub const UNIT_FRAMES: u64 = AmdUnit::<MmioWindow, IdentityMemory>::FRAMES;

/// A running unit.
pub(super) struct Remapper<'m> {
    pub(super) unit: HostUnit<'m>,
    /// The requester id under which it sees the device.
    pub(super) source_id: SourceId,
}

/// Starts the unit that translates for the passthrough device, with every device
/// blocked.
pub(super) fn start<'m>(
    host: &Host,
    frames: &'m IdentityMemory,
    pool: FramePool,
) -> Result<Remapper<'m>, BuildError> {
    let device = SourceId::new(host.device.function.requester_id());
    let remapper = match host.units.signature {
        acpi::IVRS => start_amd_vi(host, device, frames, pool)?,
        _ => start_vtd(host, device, frames, pool)?,
    };
    report(&remapper.unit);
    Ok(remapper)
}

/// Tells the operator what there is, and how far reports of writes can be exact.
fn report(unit: &HostUnit<'_>) {
    let DirtyDecision { mode, reason, .. } =
        DirtyDecision::new(unit.format(), unit.dirty_hardware());
    info!("iommu: {unit}, {} table levels", unit.levels());
    info!("iommu: evidence of a device's write is {mode}: {reason}");
    if !unit.reports_faults() {
        info!("iommu: this unit refuses DMA without telling");
    }
    if !unit.remaps_interrupts() {
        warn!("iommu: interrupts are not remapped: the device could raise any vector here");
    }
    events::emit(
        "iommu",
        &[
            ("unit", unit.into()),
            ("reports_faults", unit.reports_faults().into()),
            ("remaps_interrupts", unit.remaps_interrupts().into()),
            ("dirty_mode", (&mode).into()),
            ("dirty_reason", (&reason).into()),
        ],
    );
}

fn start_vtd<'m>(
    host: &Host,
    device: SourceId,
    frames: &'m IdentityMemory,
    pool: FramePool,
) -> Result<Remapper<'m>, BuildError> {
    let dmar = Dmar::parse(host.units.bytes())?;
    let unit = confine::vtd_for(&dmar, device)?;
    let registers = registers(unit.registers.raw(), VTD_WINDOW)?;
    let mut unit = VtdUnit::start(registers, frames, pool, implementation())?;
    if dmar.flags().contains(DmarFlags::INTERRUPT_REMAPPING) {
        unit.remap_interrupts()?;
    }
    Ok(Remapper {
        unit: AnyUnit::Vtd(unit),
        source_id: device,
    })
}

fn start_amd_vi<'m>(
    host: &Host,
    device: SourceId,
    frames: &'m IdentityMemory,
    pool: FramePool,
) -> Result<Remapper<'m>, BuildError> {
    let ivrs = Ivrs::parse(host.units.bytes())?;
    let (unit, source_id) = confine::amd_vi_for(&ivrs, device)?;
    let facts = Facts {
        flags: unit.flags,
        capability: pci::read_config(&host.config, unit.function.raw(), unit.capability),
        remaps_interrupts: ivrs.names_io_apics(),
    };
    let registers = registers(unit.registers.raw(), amdvi::registers::WINDOW)?;
    let unit = AmdUnit::start(registers, frames, pool, facts)?;
    Ok(Remapper {
        unit: AnyUnit::AmdVi(unit),
        source_id,
    })
}

fn registers(base: u64, bytes: u64) -> Result<MmioWindow, BuildError> {
    window(PhysRange::new(base, bytes).ok_or(BuildError::NoUnit)?)
}

/// Whose unit it is: an emulated machine shows itself by CPUID's hypervisor bit.
fn implementation() -> Implementation {
    if cpuid!(1).ecx >> 31 & 1 == 1 {
        Implementation::Emulated
    } else {
        Implementation::Hardware
    }
}
