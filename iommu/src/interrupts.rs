//! The interrupts that devices may raise.

use crate::layer::Iommu;
use crate::tables::EntryFormat;
use crate::unit::{HostUnit, InterruptTarget, SourceId, UnitError};
use hv_core::memory::PhysMemory;
use hv_core::platform::apic::Msi;

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// See [`HostUnit::remaps_interrupts`].
    pub fn remaps_interrupts(&self) -> bool {
        self.unit.remaps_interrupts()
    }

    /// See [`HostUnit::grant_interrupt`].
    pub fn grant_interrupt(
        &mut self,
        device: SourceId,
        to: InterruptTarget,
    ) -> Result<Msi, UnitError> {
        self.check_unit()?;
        let granted = self.unit.grant_interrupt(device, to);
        self.note_loss(granted)
    }

    /// See [`HostUnit::revoke_interrupts`].
    pub fn revoke_interrupts(&mut self, device: SourceId) -> Result<(), UnitError> {
        self.check_unit()?;
        let revoked = self.unit.revoke_interrupts(device);
        self.note_loss(revoked)
    }

    fn note_loss<T>(&mut self, result: Result<T, UnitError>) -> Result<T, UnitError> {
        self.unit_is_lost |= matches!(result, Err(UnitError::NoAnswer));
        result
    }
}
