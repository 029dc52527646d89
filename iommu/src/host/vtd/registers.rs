//! Register accesses that take more than one step.

use crate::host::poll::poll;
use crate::unit::UnitError;
use crate::vtd::registers::{CAP, ECAP, FSTS, GCMD, GSTS, PMEN, PMEN_ENABLE, PMEN_STATUS, RTADDR};
use crate::vtd::{Capabilities, ExtendedCapabilities, FaultStatus, Global};
use hv_core::mmio::Mmio;

/// The unit's register window.
pub(super) struct Registers<R> {
    pub(super) window: R,
}

impl<R: Mmio> Registers<R> {
    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities::decode(self.window.read64(CAP))
    }

    pub(super) fn extended_capabilities(&self) -> ExtendedCapabilities {
        ExtendedCapabilities::decode(self.window.read64(ECAP))
    }

    /// Which of the lasting and the one-shot commands are in force.
    pub(super) fn state(&self) -> Global {
        Global::from_bits_truncate(self.window.read32(GSTS))
    }

    /// Turns a lasting state on or off and waits for it.
    pub(super) fn turn(&self, what: Global, on: bool) -> Result<(), UnitError> {
        self.command(what, on);
        poll(|| Ok(self.state().contains(what) == on))
    }

    /// Makes `root`, an address and a mode, the root table.
    pub(super) fn set_root_table(&self, root: u64) -> Result<(), UnitError> {
        self.window.write64(RTADDR, root);
        self.turn(Global::ROOT_TABLE, true)
    }

    /// Makes earlier stores to the unit's tables visible to it.
    pub(super) fn flush_write_buffer(&self) -> Result<(), UnitError> {
        self.command(Global::WRITE_BUFFER_FLUSH, true);
        poll(|| Ok(!self.state().contains(Global::WRITE_BUFFER_FLUSH)))
    }

    /// Turns the protected memory regions off; firmware may have left them on.
    pub(super) fn unprotect_memory(&self) -> Result<(), UnitError> {
        let pmen = self.window.read32(PMEN);
        self.window.write32(PMEN, pmen & !PMEN_ENABLE);
        poll(|| Ok(self.window.read32(PMEN) & PMEN_STATUS == 0))
    }

    pub(super) fn fault_status(&self) -> FaultStatus {
        FaultStatus::from_bits_truncate(self.window.read32(FSTS))
    }

    /// Clears those flags of the fault status that are cleared by writing 1.
    pub(super) fn clear_fault_status(&self, flags: FaultStatus) {
        self.window.write32(FSTS, flags.bits());
    }

    /// A command changes one bit; the lasting states are written as they are, or
    /// the same write would turn them off.
    fn command(&self, what: Global, on: bool) {
        let mut command = self.state().difference(Global::ONE_SHOT);
        command.set(what, on);
        self.window.write32(GCMD, command.bits());
    }
}
