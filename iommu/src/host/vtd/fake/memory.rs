//! What the unit reads in memory.

use super::{Context, State};
use crate::host::testing::{read64, read128};
use crate::unit::SourceId;
use crate::vtd::{
    ContextEntry, PasidDirectoryEntry, PasidEntry, PasidTable, RootEntry, ScalableContextEntry,
    ScalableRootEntry,
};
use hv_core::testing::Arena;

impl State {
    pub(super) fn context_in(&self, arena: &Arena, device: SourceId) -> Option<Context> {
        if self.is_scalable() {
            let entry = scalable_entry_in(arena, self.root & !0xfff, device)?;
            return Some((0, entry.pasid_directory));
        }
        let entry = self.legacy_entry_in(arena, device)?;
        Some((entry.domain, entry.table))
    }

    pub(super) fn legacy_entry_in(&self, arena: &Arena, device: SourceId) -> Option<ContextEntry> {
        let root = self.root + u64::from(device.bus()) * RootEntry::SIZE as u64;
        let root = RootEntry::decode(read128(arena, root), 48).ok()?;
        let entry = root.context_table + u64::from(device.devfn()) * ContextEntry::SIZE as u64;
        let entry = read128(arena, entry);
        ContextEntry::decode(entry, &self.capabilities, &self.extended, 48).ok()
    }
}

/// The entry of a device, if it is present.
pub(super) fn scalable_entry_in(
    arena: &Arena,
    root: u64,
    device: SourceId,
) -> Option<ScalableContextEntry> {
    let half = read64(arena, root + ScalableRootEntry::word_of(device) as u64 * 8);
    let table = ScalableRootEntry::decode_half(half)?;
    let entry = read64(
        arena,
        table + ScalableContextEntry::word_of(device) as u64 * 8,
    );
    let entry = ScalableContextEntry::decode(entry);
    entry.present.then_some(entry)
}

/// The entry of PASID 0.
pub(super) fn pasid_in(arena: &Arena, directory: u64) -> Option<Context> {
    let table = PasidDirectoryEntry::decode(read64(arena, directory))?.table;
    let words = [0, 8, 16].map(|offset| read64(arena, table + offset));
    let entry = PasidEntry::decode(words)?;
    let (PasidTable::FirstStage { root } | PasidTable::SecondStage { root, .. }) = entry.table;
    Some((entry.domain, root))
}
