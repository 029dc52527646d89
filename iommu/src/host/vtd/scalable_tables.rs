//! The root table, the context tables and the PASID tables of scalable mode.
//!
//! ```text
//! root table --bus--> context table --function--> PASID directory --0--> PASID table
//!                     (two a bus)                 (each device its own)     | 0
//!                                                                           v
//!                                                       domain, paging tables
//! ```
//!
//! Each device has a directory and a table of its own, since requests without a
//! PASID all count as PASID 0. A device that is withdrawn keeps them: what makes it
//! absent is the context entry's P bit alone.

use super::choice::Translation;
use super::tables::Target;
use crate::unit::SourceId;
use crate::vtd::registers::RTADDR_SCALABLE;
use crate::vtd::{
    PasidDirectoryEntry, PasidEntry, PasidTable, ScalableContextEntry, ScalableRootEntry,
};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

/// One frame for the root table, one for each half of a bus a device was attached
/// on, and two for each such device.
pub(super) struct ScalableTables {
    pub(super) root: Hpa,
    pub(super) translation: Translation,
    /// Whether the unit knows PWSNP.
    pub(super) walk_snoops: bool,
}

impl ScalableTables {
    /// RTADDR: TTM = 01.
    pub(super) fn root_register(&self) -> u64 {
        self.root.raw() | RTADDR_SCALABLE
    }

    /// Sees to a context table, a PASID directory and a PASID table for `device`;
    /// `None` if there is no memory.
    pub(super) fn reserve(
        &self,
        mem: &impl PhysMemory,
        pool: &mut FramePool,
        device: SourceId,
    ) -> Option<()> {
        let root = self.root_slot(mem, device)?;
        if ScalableRootEntry::decode_half(root.load(Ordering::Relaxed)).is_none() {
            let table = pool.take(mem)?.raw();
            root.store(ScalableRootEntry::encode_half(table), Ordering::Release);
        }
        let context = self.context_slot(mem, device)?;
        if context.load(Ordering::Relaxed) == 0 {
            let [directory, table] = [pool.take(mem)?, pool.take(mem)?].map(Hpa::raw);
            let words = mem.frame(Hpa::new(directory))?.words();
            words[0].store(PasidDirectoryEntry { table }.encode(), Ordering::Relaxed);
            let absent = ScalableContextEntry {
                present: false,
                device_tlb: false,
                pasid_directory: directory,
            };
            context.store(absent.encode(), Ordering::Release);
        }
        Some(())
    }

    /// Fills `device`'s PASID entry and makes its context entry present; `None` if
    /// it has none.
    ///
    /// The word with P last in either: hardware that sees P also sees all the rest.
    pub(super) fn publish(
        &self,
        mem: &impl PhysMemory,
        device: SourceId,
        target: Target,
    ) -> Option<()> {
        let entry = PasidEntry {
            table: self.table(target.root),
            domain: target.domain,
            walk_snoops: self.walk_snoops,
        };
        let words = self.pasid_words(mem, device)?;
        for (word, value) in words.iter().zip(entry.encode()).rev() {
            word.store(value, Ordering::Release);
        }
        let context = self.context_slot(mem, device)?;
        // A device that may have a TLB may for good.
        let device_tlb = match target.device_tlb {
            true => ScalableContextEntry::DEVICE_TLB,
            false => 0,
        };
        let bits = ScalableContextEntry::PRESENT | device_tlb;
        context.fetch_or(bits, Ordering::Release);
        Some(())
    }

    /// Makes `device`'s context entry and its PASID entry absent and returns the
    /// domain. Only the words with P change: the others stay for hardware that has
    /// read those already.
    pub(super) fn withdraw(&self, mem: &impl PhysMemory, device: SourceId) -> Option<u16> {
        let context = self.context_slot(mem, device)?;
        let before = context.fetch_and(!ScalableContextEntry::PRESENT, Ordering::AcqRel);
        if !ScalableContextEntry::decode(before).present {
            return None;
        }
        let [first, second, _] = self.pasid_words(mem, device)?;
        first.store(0, Ordering::Release);
        Some(PasidEntry::domain_of(second.load(Ordering::Relaxed)))
    }

    fn table(&self, root: Hpa) -> PasidTable {
        let root = root.raw();
        match self.translation {
            Translation::SecondStageDirty(width) => PasidTable::SecondStage {
                root,
                width,
                dirty: true,
            },
            // Legacy mode has no PASID entries.
            Translation::FirstStage | Translation::Legacy(_) => PasidTable::FirstStage { root },
        }
    }

    fn root_slot<'m>(&self, mem: &'m impl PhysMemory, device: SourceId) -> Option<&'m AtomicU64> {
        mem.frame(self.root)?
            .words()
            .get(ScalableRootEntry::word_of(device))
    }

    /// The first word of `device`'s context entry, which has all that is ever set.
    fn context_slot<'m>(
        &self,
        mem: &'m impl PhysMemory,
        device: SourceId,
    ) -> Option<&'m AtomicU64> {
        let root = self.root_slot(mem, device)?.load(Ordering::Relaxed);
        let table = Hpa::new(ScalableRootEntry::decode_half(root)?);
        mem.frame(table)?
            .words()
            .get(ScalableContextEntry::word_of(device))
    }

    /// The words of PASID 0 of `device`.
    fn pasid_words<'m>(
        &self,
        mem: &'m impl PhysMemory,
        device: SourceId,
    ) -> Option<&'m [AtomicU64; PasidEntry::WORDS]> {
        let context = self.context_slot(mem, device)?.load(Ordering::Relaxed);
        let directory = Hpa::new(ScalableContextEntry::decode(context).pasid_directory);
        let entry = mem.frame(directory)?.words()[0].load(Ordering::Relaxed);
        let table = Hpa::new(PasidDirectoryEntry::decode(entry)?.table);
        mem.frame(table)?.words().first_chunk()
    }
}
