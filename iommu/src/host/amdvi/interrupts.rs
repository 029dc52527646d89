//! Interrupt remapping: a device raises those interrupts only that it was granted.
//!
//! An entry of a remapping table says nothing of who may use it. So each device has a
//! table of its own, which is made when it is first granted an interrupt and is its own
//! for good. The word of its device table entry that leads there refuses all requests
//! until then, as every other device's has done since before the unit was enabled, and
//! is written by one store.
//!
//! ```text
//! grant    entry filled -> word leads to the table -> caches dropped, waited for -> message given out
//! revoke   entries emptied -> cached entries dropped, waited for
//! ```
//!
//! A grant waits since the word that refused all may be cached, and an entry's absence
//! as well. The caches are dropped in the order in which a request uses them, each
//! waited for. After the wait of a revocation no cache has an entry's old content, and
//! no request is under way that found it; only then is it filled anew.

use super::AmdUnit;
use crate::amdvi::{Command, DeviceInterrupts, InterruptEntry, InterruptRequest};
use crate::unit::{InterruptTarget, SourceId, UnitError};
use core::sync::atomic::Ordering;
use heapless::LinearMap;
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;

/// How many devices can be granted interrupts. Each takes a frame, of which its table
/// is the first half.
pub(super) const MAX_TABLES: usize = 8;

/// The tables of the devices that have any.
pub(super) struct InterruptTables {
    pool: FramePool,
    tables: LinearMap<SourceId, InterruptTable, MAX_TABLES>,
}

/// A device's table. The entries behind those that are granted are zero.
struct InterruptTable {
    base: Hpa,
    granted: u16,
}

impl InterruptTables {
    /// No tables as yet. `pool` has [`MAX_TABLES`] frames for them.
    pub(super) fn new(pool: FramePool) -> Self {
        Self {
            pool,
            tables: LinearMap::new(),
        }
    }

    /// The table of `device`, which gets one if it has none.
    fn of(
        &mut self,
        mem: &impl PhysMemory,
        device: SourceId,
    ) -> Result<&mut InterruptTable, UnitError> {
        if !self.tables.contains_key(&device) {
            let base = self.pool.take(mem).ok_or(UnitError::OutOfMemory)?;
            let table = InterruptTable { base, granted: 0 };
            let added = self.tables.insert(device, table);
            added.map_err(|_| UnitError::OutOfMemory)?;
        }
        self.tables.get_mut(&device).ok_or(UnitError::OutOfMemory)
    }
}

impl InterruptTable {
    /// Fills the first free entry; its index.
    fn publish(&mut self, mem: &impl PhysMemory, entry: InterruptEntry) -> Result<u16, UnitError> {
        let index = self.granted;
        if index == DeviceInterrupts::ENTRIES {
            return Err(UnitError::OutOfMemory);
        }
        let words = mem.frame(self.base).ok_or(UnitError::NoAnswer)?.words();
        // Two entries share a word. This one's half is zero; the unit may use the other.
        let (word, half) = (usize::from(index / 2), u32::from(index % 2));
        let slot = words.get(word).ok_or(UnitError::NoAnswer)?;
        slot.fetch_or(u64::from(entry.encode()) << (32 * half), Ordering::Release);
        self.granted += 1;
        Ok(index)
    }

    /// Empties it.
    fn clear(&mut self, mem: &impl PhysMemory) -> Result<(), UnitError> {
        mem.frame(self.base).ok_or(UnitError::NoAnswer)?.clear();
        self.granted = 0;
        Ok(())
    }
}

impl<R: Mmio, M: PhysMemory> AmdUnit<'_, R, M> {
    /// See [`crate::unit::HostUnit::grant_interrupt`].
    pub(super) fn grant(
        &mut self,
        device: SourceId,
        to: InterruptTarget,
    ) -> Result<Msi, UnitError> {
        let Some(tables) = &mut self.interrupts else {
            return to.unremapped();
        };
        let entry = InterruptEntry {
            destination: to.xapic_id()?,
            vector: to.vector,
        };
        let table = tables.of(self.mem, device)?;
        let index = table.publish(self.mem, entry)?;
        let lead = DeviceInterrupts::Remapped {
            table: table.base.raw(),
        };
        self.table.set_interrupts(self.mem, device, lead)?;
        self.execute(Command::DeviceEntry { device })?;
        self.execute(Command::InterruptTable { device })?;
        Ok(InterruptRequest::message(index))
    }

    /// See [`crate::unit::HostUnit::revoke_interrupts`].
    pub(super) fn revoke(&mut self, device: SourceId) -> Result<(), UnitError> {
        let tables = self.interrupts.as_mut();
        let table = tables.and_then(|it| it.tables.get_mut(&device));
        let Some(table) = table.filter(|table| table.granted > 0) else {
            return self.queue.health();
        };
        table.clear(self.mem)?;
        self.execute(Command::InterruptTable { device })
    }
}
