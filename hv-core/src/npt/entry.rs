//! One entry of a nested page table.
//!
//! AMD64 Architecture Programmer's Manual volume 2, sections 5.3 (page-translation
//! tables, long mode) and 15.25 (nested paging): nested tables have the format of
//! the host's own long-mode tables, and every access of the guest counts as a user
//! access, so U is set at every level.

use crate::Hpa;
use core::sync::atomic::{AtomicU64, Ordering};

/// The entry is used by hardware.
const PRESENT: u64 = 1 << 0;
/// Writes are allowed.
const WRITABLE: u64 = 1 << 1;
/// User accesses are allowed: needed at every level of a nested table.
const USER: u64 = 1 << 2;
/// Page write-through; with [`UNCACHED`] the memory type is uncacheable.
const WRITE_THROUGH: u64 = 1 << 3;
/// Page cache disable.
const UNCACHED: u64 = 1 << 4;
/// Set by hardware at the first access. Nothing here depends on it.
#[cfg(test)]
const ACCESSED: u64 = 1 << 5;
/// Set by hardware, in leaves only, at the first write.
const DIRTY: u64 = 1 << 6;
/// In a level-2 entry: it is a 2 MiB leaf.
const LARGE: u64 = 1 << 7;
/// Ignored by hardware: the leaf maps guest memory, not a device.
const MEMORY: u64 = 1 << 9;
/// Ignored by hardware: the table below was made by splitting one 2 MiB leaf, and
/// nothing but that leaf is in it.
const SPLIT: u64 = 1 << 10;
/// Instruction fetches are not allowed.
const NO_EXECUTE: u64 = 1 << 63;
/// The frame or table the entry refers to.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The value of an entry. Zero is an entry that is not present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct Entry(u64);

impl Entry {
    /// Reads an entry that hardware may change at any time.
    pub(super) fn load(slot: &AtomicU64) -> Self {
        Self(slot.load(Ordering::Acquire))
    }

    /// Publishes the entry: whatever it refers to was written before.
    pub(super) fn store(self, slot: &AtomicU64) {
        slot.store(self.0, Ordering::Release);
    }

    /// A reference to a lower table, with every right: leaves decide.
    pub(super) fn table(hpa: Hpa) -> Self {
        Self(hpa.raw() | PRESENT | WRITABLE | USER)
    }

    /// A leaf of guest memory. `large` is for level 2.
    pub(super) fn memory(hpa: Hpa, large: bool) -> Self {
        let size = if large { LARGE } else { 0 };
        Self(hpa.raw() | PRESENT | WRITABLE | USER | MEMORY | size)
    }

    /// A leaf of device registers: uncacheable and never executed.
    pub(super) fn device(hpa: Hpa, large: bool) -> Self {
        let size = if large { LARGE } else { 0 };
        let device = WRITE_THROUGH | UNCACHED | NO_EXECUTE;
        Self(hpa.raw() | PRESENT | WRITABLE | USER | device | size)
    }

    /// The entry that refers to `table`, made by splitting a 2 MiB leaf.
    pub(super) fn split(table: Hpa) -> Self {
        Self(Self::table(table).0 | SPLIT)
    }

    /// The 4 KiB leaf number `index` of the 2 MiB leaf `self`, clean.
    pub(super) fn part(self, index: usize) -> Self {
        Self((self.0 & !(LARGE | DIRTY)) + index as u64 * crate::PAGE_SIZE)
    }

    /// The 2 MiB leaf whose first part is `self`; the inverse of
    /// [`Entry::part`]. D is clear: whoever starts tracking again clears it anyway.
    pub(super) fn whole(self) -> Self {
        Self((self.0 | LARGE) & !DIRTY)
    }

    pub(super) fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    pub(super) fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    pub(super) fn is_memory(self) -> bool {
        self.0 & MEMORY != 0
    }

    pub(super) fn is_split(self) -> bool {
        self.0 & SPLIT != 0
    }

    pub(super) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    pub(super) fn hpa(self) -> Hpa {
        Hpa::new(self.0 & ADDRESS)
    }
}

/// Clears D in `slot` and says whether it was set. The plain load first keeps a
/// harvest of clean memory free of locked operations; a D bit that hardware sets
/// just after it is found by the next harvest. The locked operation cannot lose
/// an A or D bit that hardware sets in the same entry.
pub(super) fn take_dirty(slot: &AtomicU64) -> bool {
    Entry::load(slot).is_dirty() && slot.fetch_and(!DIRTY, Ordering::AcqRel) & DIRTY != 0
}

/// Sets A and D as hardware does at a write, for tests.
#[cfg(test)]
pub(super) fn hardware_write(slot: &AtomicU64) {
    slot.fetch_or(ACCESSED | DIRTY, Ordering::AcqRel);
}
