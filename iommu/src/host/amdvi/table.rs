//! The device table: what becomes of each requester id's DMA and interrupts.

use crate::amdvi::{DeviceEntry, DeviceInterrupts};
use crate::unit::{SourceId, UnitError};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::{Hpa, PAGE_SIZE};

/// Frames of a table with an entry for every requester id. A shorter one would
/// leave it to the unit what becomes of the ids beyond.
pub(super) const FRAMES: u64 = DeviceEntry::TABLE as u64 / PAGE_SIZE;

/// The 64-bit words of an entry.
const WORDS: usize = DeviceEntry::SIZE / 8;

/// The table, contiguous.
pub(super) struct Table {
    base: Hpa,
}

impl Table {
    /// A table in which every device is blocked, with `interrupts` for the other half of
    /// each entry.
    pub(super) fn new(
        mem: &impl PhysMemory,
        pool: &mut FramePool,
        interrupts: DeviceInterrupts,
    ) -> Option<Self> {
        let base = pool.take_run(mem, FRAMES)?;
        let [first, _] = DeviceEntry::Blocked.encode();
        for index in 0..FRAMES {
            let frame = mem.frame(Hpa::new(base.raw() + index * PAGE_SIZE))?;
            let (entries, _) = frame.words().as_chunks::<WORDS>();
            for [low, _, third, _] in entries {
                low.store(first, Ordering::Relaxed);
                third.store(interrupts.encode(), Ordering::Relaxed);
            }
        }
        Some(Self { base })
    }

    /// The value of the table's base register.
    pub(super) fn register(&self) -> u64 {
        self.base.raw() | (FRAMES - 1)
    }

    /// Fills `device`'s entry, which is blocked and not cached otherwise.
    ///
    /// The second word first: the unit may read the entry in parts, and without
    /// the rights in the first word the second means nothing. Release, so that it
    /// finds the page tables filled as well.
    pub(super) fn publish(
        &self,
        mem: &impl PhysMemory,
        device: SourceId,
        entry: DeviceEntry,
    ) -> Result<(), UnitError> {
        let [first, second, ..] = self.slot(mem, device).ok_or(UnitError::OutOfRange)?;
        let [low, high] = entry.encode();
        second.store(high, Ordering::Release);
        first.store(low, Ordering::Release);
        Ok(())
    }

    /// Blocks `device` and returns the domain it was in; `None` if it was blocked.
    /// The unit may go on using the old entry until it has invalidated it.
    ///
    /// One store takes the rights and the table away together. The domain's number
    /// stays for a unit that has read the first word already.
    pub(super) fn withdraw(&self, mem: &impl PhysMemory, device: SourceId) -> Option<u16> {
        let [first, second, ..] = self.slot(mem, device)?;
        let [blocked, _] = DeviceEntry::Blocked.encode();
        let words = [
            first.swap(blocked, Ordering::AcqRel),
            second.load(Ordering::Relaxed),
        ];
        match DeviceEntry::decode(words)? {
            DeviceEntry::Translated { domain, .. } => Some(domain),
            DeviceEntry::Blocked => None,
        }
    }

    /// Says what becomes of `device`'s interrupt requests, by one store. Release, so that
    /// the unit finds the table filled that it is led to.
    pub(super) fn set_interrupts(
        &self,
        mem: &impl PhysMemory,
        device: SourceId,
        interrupts: DeviceInterrupts,
    ) -> Result<(), UnitError> {
        let [_, _, third, _] = self.slot(mem, device).ok_or(UnitError::OutOfRange)?;
        third.store(interrupts.encode(), Ordering::Release);
        Ok(())
    }

    /// The words of `device`'s entry.
    fn slot<'m>(
        &self,
        mem: &'m impl PhysMemory,
        device: SourceId,
    ) -> Option<&'m [AtomicU64; WORDS]> {
        let offset = usize::from(device.raw()) * DeviceEntry::SIZE;
        let page = offset as u64 & !(PAGE_SIZE - 1);
        let frame = mem.frame(Hpa::new(self.base.raw() + page))?;
        let (entries, _) = frame.words().as_chunks();
        entries.get((offset - page as usize) / DeviceEntry::SIZE)
    }
}
