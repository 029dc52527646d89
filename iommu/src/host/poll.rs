//! Waiting for a unit.

use crate::unit::UnitError;

/// How often a register or status word is looked at before the unit counts as
/// dead. One look takes a microsecond at the most on hardware, an invalidation a
/// few of them, so this is ample; and it is no wall-clock time.
const MAX_POLLS: u32 = 1_000_000;

/// Waits until `done` says so.
#[inline]
pub(super) fn poll(mut done: impl FnMut() -> Result<bool, UnitError>) -> Result<(), UnitError> {
    for _ in 0..MAX_POLLS {
        if done()? {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(UnitError::NoAnswer)
}
