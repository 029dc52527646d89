//! The tables that say which domain a device is in, of either mode.

use super::choice::Translation;
use super::legacy_tables::LegacyTables;
use super::scalable_tables::ScalableTables;
use crate::unit::{SourceId, UnitError};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

/// A domain as the unit sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    /// The number that tags what is cached.
    pub(super) domain: u16,
    /// The root of its paging tables.
    pub(super) root: Hpa,
    /// Whether the device may have a TLB of its own.
    pub(super) device_tlb: bool,
}

/// Root table and all that hangs from it, but for the paging tables.
pub(super) enum Tables {
    Legacy(LegacyTables),
    Scalable(ScalableTables),
}

/// Evaluates an expression with `$tables` as the tables there are.
macro_rules! with {
    ($any:expr, $tables:ident => $what:expr) => {
        match $any {
            Tables::Legacy($tables) => $what,
            Tables::Scalable($tables) => $what,
        }
    };
}

impl Tables {
    /// Tables in which every device is blocked. `walk_snoops` is ECAP.SMPWC.
    pub(super) fn new(
        mem: &impl PhysMemory,
        pool: &mut FramePool,
        translation: Translation,
        walk_snoops: bool,
    ) -> Option<Self> {
        let root = pool.take(mem)?;
        Some(match translation {
            Translation::Legacy(width) => Self::Legacy(LegacyTables { root, width }),
            Translation::FirstStage | Translation::SecondStageDirty(_) => {
                Self::Scalable(ScalableTables {
                    root,
                    translation,
                    walk_snoops,
                })
            }
        })
    }

    /// What the register of the root table is to hold.
    pub(super) fn root_register(&self) -> u64 {
        with!(self, tables => tables.root_register())
    }

    /// Makes sure there is an entry for `device`. Devices that had none stay
    /// blocked, as before.
    pub(super) fn reserve(
        &self,
        mem: &impl PhysMemory,
        pool: &mut FramePool,
        device: SourceId,
    ) -> Result<(), UnitError> {
        with!(self, tables => tables.reserve(mem, pool, device)).ok_or(UnitError::OutOfMemory)
    }

    /// Fills `device`'s entry, which is absent and not cached as present.
    pub(super) fn publish(
        &self,
        mem: &impl PhysMemory,
        device: SourceId,
        target: Target,
    ) -> Result<(), UnitError> {
        with!(self, tables => tables.publish(mem, device, target)).ok_or(UnitError::OutOfMemory)
    }

    /// Empties `device`'s entry and returns the domain it was in; `None` if it was
    /// empty. The unit may go on using the old entry until it has invalidated it.
    pub(super) fn withdraw(&self, mem: &impl PhysMemory, device: SourceId) -> Option<u16> {
        with!(self, tables => tables.withdraw(mem, device))
    }
}
