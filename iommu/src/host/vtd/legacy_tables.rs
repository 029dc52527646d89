//! The root table and the context tables of legacy mode.

use super::tables::Target;
use crate::unit::SourceId;
use crate::vtd::{AddressWidth, ContextEntry, RootEntry, TranslationType};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};

/// The host's own entries have no reserved address bits to be checked for.
const ANY_WIDTH: u8 = 64;

/// One frame for the root table and one for each bus a device was attached on.
pub(super) struct LegacyTables {
    pub(super) root: Hpa,
    /// The width of the second-stage tables.
    pub(super) width: AddressWidth,
}

impl LegacyTables {
    /// RTADDR: TTM = 00.
    pub(super) fn root_register(&self) -> u64 {
        self.root.raw()
    }

    /// Sees to a context table for `device`'s bus; `None` if there is no memory.
    pub(super) fn reserve(
        &self,
        mem: &impl PhysMemory,
        pool: &mut FramePool,
        device: SourceId,
    ) -> Option<()> {
        let entry = EntrySlot::find(mem, self.root, device.bus())?;
        if RootEntry::decode(entry.read(), ANY_WIDTH).is_err() {
            let context_table = pool.take(mem)?.raw();
            entry.publish(RootEntry { context_table }.encode());
        }
        Some(())
    }

    /// Fills `device`'s entry; `None` if it has none.
    pub(super) fn publish(
        &self,
        mem: &impl PhysMemory,
        device: SourceId,
        target: Target,
    ) -> Option<()> {
        let entry = ContextEntry {
            silent: false,
            translation: match target.device_tlb {
                true => TranslationType::DeviceTlb,
                false => TranslationType::Untranslated,
            },
            table: target.root.raw(),
            width: self.width,
            domain: target.domain,
        };
        self.context(mem, device)?.publish(entry.encode());
        Some(())
    }

    /// Empties `device`'s entry and returns its domain.
    pub(super) fn withdraw(&self, mem: &impl PhysMemory, device: SourceId) -> Option<u16> {
        ContextEntry::domain_of(self.context(mem, device)?.withdraw())
    }

    fn context<'m>(&self, mem: &'m impl PhysMemory, device: SourceId) -> Option<EntrySlot<'m>> {
        let root = EntrySlot::find(mem, self.root, device.bus())?.read();
        let root = RootEntry::decode(root, ANY_WIDTH).ok()?;
        EntrySlot::find(mem, Hpa::new(root.context_table), device.devfn())
    }
}

/// The place of one root or context entry. P is bit 0 of the low half in both.
struct EntrySlot<'m> {
    low: &'m AtomicU64,
    high: &'m AtomicU64,
}

impl<'m> EntrySlot<'m> {
    /// Entry `index` of the table in the frame at `table`.
    fn find(mem: &'m impl PhysMemory, table: Hpa, index: u8) -> Option<Self> {
        let words = mem.frame(table)?.words();
        let low = usize::from(index) * 2;
        Some(Self {
            low: words.get(low)?,
            high: words.get(low + 1)?,
        })
    }

    fn read(&self) -> u128 {
        let low = self.low.load(Ordering::Relaxed);
        let high = self.high.load(Ordering::Relaxed);
        u128::from(low) | u128::from(high) << 64
    }

    /// High half first: hardware that sees P also sees all the rest. Release, so
    /// that it sees the table pointed to as well.
    fn publish(&self, raw: u128) {
        self.high.store((raw >> 64) as u64, Ordering::Release);
        self.low.store(raw as u64, Ordering::Release);
    }

    /// Clears the half with P and returns the entry as it was. The high half stays
    /// for hardware that has read the low one already; without P it means nothing.
    fn withdraw(&self) -> u128 {
        let raw = self.read();
        self.low.store(0, Ordering::Release);
        raw
    }
}
