//! Register accesses that take more than one step.

use crate::amdvi::registers::{CONTROL, STATUS};
use crate::amdvi::{Control, Status};
use crate::host::poll::poll;
use crate::unit::UnitError;
use hv_core::mmio::Mmio;

/// The unit's register window.
pub(super) struct Registers<R> {
    pub(super) window: R,
}

impl<R: Mmio> Registers<R> {
    pub(super) fn control(&self) -> Control {
        // Bits without a name here belong to features that are not used, and are
        // written back as they were.
        Control::from_bits_retain(self.window.read64(CONTROL))
    }

    /// Turns functions of the unit on or off.
    pub(super) fn turn(&self, what: Control, on: bool) {
        let mut control = self.control();
        control.set(what, on);
        self.window.write64(CONTROL, control.bits());
    }

    pub(super) fn status(&self) -> Status {
        Status::from_bits_truncate(self.window.read64(STATUS))
    }

    /// Clears flags of the status that are cleared by writing 1.
    pub(super) fn clear_status(&self, flags: Status) {
        self.window.write64(STATUS, flags.bits());
    }

    /// Waits until the unit has stopped what was turned off.
    pub(super) fn wait_stopped(&self, what: Status) -> Result<(), UnitError> {
        poll(|| Ok(!self.status().intersects(what)))
    }
}
