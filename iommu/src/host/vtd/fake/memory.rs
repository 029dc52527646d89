//! What the unit reads in memory.

use super::Context;
use crate::host::testing::read64;
use crate::unit::SourceId;
use crate::vtd::{
    PasidDirectoryEntry, PasidEntry, PasidTable, ScalableContextEntry, ScalableRootEntry,
};
use hv_core::testing::Arena;

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
