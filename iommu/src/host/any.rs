//! Whatever unit the machine has.

use super::amdvi::AmdUnit;
use super::vtd::VtdUnit;
use crate::device_tlb::{DeviceTlb, NoDeviceTlb};
use crate::dirty_mode::DirtyHardware;
use crate::tables::AnyFormat;
use crate::unit::{DomainId, Fault, HostUnit, InterruptTarget, Scope, SourceId, UnitError};
use core::fmt;
use hv_core::Hpa;
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;

/// A running unit of either vendor, chosen when the machine is known.
pub enum AnyUnit<'m, R, M> {
    /// Intel VT-d.
    Vtd(VtdUnit<'m, R, M>),
    /// AMD-Vi.
    AmdVi(AmdUnit<'m, R, M>),
}

impl<R, M> AnyUnit<'_, R, M> {
    /// The format of the tables that it walks.
    pub fn format(&self) -> AnyFormat {
        match self {
            Self::Vtd(unit) => unit.format(),
            Self::AmdVi(_) => AnyFormat::AmdV1,
        }
    }
}

/// Its kind and the way it is used, in words.
impl<R: Mmio, M: PhysMemory> fmt::Display for AnyUnit<'_, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vtd(unit) => unit.description().fmt(f),
            Self::AmdVi(_) => f.write_str("AMD-Vi"),
        }
    }
}

/// Evaluates an expression with `$unit` as the unit there is.
macro_rules! with {
    ($any:expr, $unit:ident => $what:expr) => {
        match $any {
            AnyUnit::Vtd($unit) => $what,
            AnyUnit::AmdVi($unit) => $what,
        }
    };
}

impl<R: Mmio, M: PhysMemory> HostUnit for AnyUnit<'_, R, M> {
    fn levels(&self) -> u8 {
        with!(self, unit => unit.levels())
    }

    fn has_large_leaves(&self) -> bool {
        with!(self, unit => unit.has_large_leaves())
    }

    fn caches_absent(&self) -> bool {
        with!(self, unit => unit.caches_absent())
    }

    fn dirty_hardware(&self) -> DirtyHardware {
        with!(self, unit => unit.dirty_hardware())
    }

    fn attach(&mut self, device: SourceId, domain: DomainId, root: Hpa) -> Result<(), UnitError> {
        with!(self, unit => unit.attach(device, domain, root))
    }

    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        with!(self, unit => unit.block(device))
    }

    fn allow_device_tlb(&mut self, device: SourceId, tlb: DeviceTlb) -> Result<(), NoDeviceTlb> {
        with!(self, unit => unit.allow_device_tlb(device, tlb))
    }

    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        with!(self, unit => unit.invalidate(domain, scope))
    }

    fn remaps_interrupts(&self) -> bool {
        with!(self, unit => unit.remaps_interrupts())
    }

    fn grant_interrupt(&mut self, device: SourceId, to: InterruptTarget) -> Result<Msi, UnitError> {
        with!(self, unit => unit.grant_interrupt(device, to))
    }

    fn revoke_interrupts(&mut self, device: SourceId) -> Result<(), UnitError> {
        with!(self, unit => unit.revoke_interrupts(device))
    }

    fn reports_faults(&self) -> bool {
        with!(self, unit => unit.reports_faults())
    }

    fn take_fault(&mut self) -> Option<Fault> {
        with!(self, unit => unit.take_fault())
    }
}
