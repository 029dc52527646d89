//! The memory budget: what the hypervisor uses for a guest of a given size, taken
//! once at boot. Nothing is allocated later.

use crate::guest::UNIT_FRAMES;
use core::fmt;
use hv_core::dirty::DirtyLog;
use hv_core::{PAGE_SHIFT, PAGE_SIZE};
use strandline_rt::memory_map::{FreeMemory, OwnedRange};

const LARGE_PAGE: u64 = 2 << 20;

/// How much of what a guest of a given size needs. All in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sizes {
    guest: u64,
    nested_tables: u64,
    iommu_tables: u64,
    dirty_log: u64,
    pin_tracker: u64,
    vcpu: u64,
}

impl Sizes {
    const fn for_guest(bytes: u64) -> Self {
        let pages = bytes >> PAGE_SHIFT;
        // Tables that map all of the guest by 4 KiB pages.
        let leaf_tables = bytes.div_ceil(LARGE_PAGE);
        Self {
            guest: bytes,
            // And the levels above, and the windows of devices.
            nested_tables: (leaf_tables + 32) * PAGE_SIZE,
            // One identity domain, as much again for the guest's own domains,
            // whose mappings may lie far apart, and the unit's own.
            iommu_tables: (2 * leaf_tables + 512 + UNIT_FRAMES) * PAGE_SIZE,
            dirty_log: DirtyLog::words_needed(pages) * 8,
            pin_tracker: pages * 4,
            // Control blocks, permission maps, save areas, a buffer for devices.
            vcpu: 32 * PAGE_SIZE,
        }
    }

    const fn total(&self) -> u64 {
        self.guest
            + self.nested_tables
            + self.iommu_tables
            + self.dirty_log
            + self.pin_tracker
            + self.vcpu
    }
}

/// The memory of one guest and of everything kept about it.
#[derive(Debug)]
pub struct Budget {
    /// The guest's RAM, contiguous and aligned to 2 MiB.
    pub guest: OwnedRange,
    /// For the guest's nested page tables.
    pub nested_tables: OwnedRange,
    /// For the remapping unit's tables and queue.
    pub iommu_tables: OwnedRange,
    /// For the dirty log's words.
    pub dirty_log: OwnedRange,
    /// For the pinned-page tracker: 4 bytes a guest page.
    pub pin_tracker: OwnedRange,
    /// For virtual CPU control structures and device buffers.
    pub vcpu: OwnedRange,
}

/// The machine has too little memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "too little memory: a guest of {} KiB needs {} KiB in all, of which \"{what}\" takes {} KiB in one piece; \
     {} KiB were free, and the largest piece left has {} KiB",
    .guest >> 10, .needed >> 10, .piece >> 10, .free >> 10, .largest >> 10
)]
pub struct TooLittleMemory {
    /// The guest's size.
    guest: u64,
    /// What it would take in all.
    needed: u64,
    /// What could not be had.
    what: &'static str,
    /// How much that is.
    piece: u64,
    /// What was free before anything was taken.
    free: u64,
    /// The largest piece there was for it.
    largest: u64,
}

impl Budget {
    /// Takes everything for a guest of `guest_bytes`, whole 2 MiB.
    pub fn carve(free: &mut FreeMemory, guest_bytes: u64) -> Result<Self, TooLittleMemory> {
        let sizes = Sizes::for_guest(guest_bytes);
        let free_before = free.bytes();
        let mut carve = |what, bytes, align| {
            let largest = free.largest(align);
            free.carve(bytes, align).ok_or(TooLittleMemory {
                guest: guest_bytes,
                needed: sizes.total(),
                what,
                piece: bytes,
                free: free_before,
                largest,
            })
        };
        Ok(Self {
            guest: carve(GUEST, sizes.guest, LARGE_PAGE)?,
            nested_tables: carve(NESTED_TABLES, sizes.nested_tables, PAGE_SIZE)?,
            iommu_tables: carve(IOMMU_TABLES, sizes.iommu_tables, PAGE_SIZE)?,
            dirty_log: carve(DIRTY_LOG, sizes.dirty_log, PAGE_SIZE)?,
            pin_tracker: carve(PIN_TRACKER, sizes.pin_tracker, PAGE_SIZE)?,
            vcpu: carve(VCPU, sizes.vcpu, PAGE_SIZE)?,
        })
    }

    fn rows(&self) -> [(&'static str, &OwnedRange); 6] {
        [
            (GUEST, &self.guest),
            (NESTED_TABLES, &self.nested_tables),
            (IOMMU_TABLES, &self.iommu_tables),
            (DIRTY_LOG, &self.dirty_log),
            (PIN_TRACKER, &self.pin_tracker),
            (VCPU, &self.vcpu),
        ]
    }
}

const GUEST: &str = "guest memory";
const NESTED_TABLES: &str = "nested page tables";
const IOMMU_TABLES: &str = "IOMMU tables";
const DIRTY_LOG: &str = "dirty log";
const PIN_TRACKER: &str = "pinned-page tracker";
const VCPU: &str = "virtual CPU, buffers";

/// The table shown at boot.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory budget:")?;
        let mut total = 0;
        for (name, owned) in self.rows() {
            let range = owned.range();
            total += range.bytes;
            write!(
                f,
                "\n  {name:<22}{:>9} KiB at {:#x}",
                range.bytes >> 10,
                range.start
            )?;
        }
        write!(f, "\n  {:<22}{:>9} KiB", "total", total >> 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strandline_rt::boot_info::{Region, RegionKind};
    use strandline_rt::physical::PhysRange;

    #[allow(unsafe_code)]
    fn machine(bytes: u64) -> FreeMemory {
        let range = PhysRange::new(1 << 20, bytes).unwrap();
        let kind = RegionKind::Usable;
        // SAFETY: what these tests carve is never given a use.
        unsafe { FreeMemory::new(&[Region { range, kind }], &[]) }
    }

    #[test]
    fn every_part_is_as_large_as_promised_and_none_overlap() {
        let budget = Budget::carve(&mut machine(256 << 20), 64 << 20).unwrap();
        assert!(budget.guest.range().start.is_multiple_of(LARGE_PAGE));
        assert_eq!(budget.guest.range().bytes, 64 << 20);
        assert_eq!(budget.pin_tracker.range().bytes, (64 << 20 >> 12) * 4);
        let rows = budget.rows();
        for (i, (_, one)) in rows.iter().enumerate() {
            for (_, other) in &rows[i + 1..] {
                assert!(!one.range().overlaps(&other.range()));
            }
        }
    }

    #[test]
    fn too_little_memory_says_what_is_needed_and_what_is_there() {
        let error = Budget::carve(&mut machine(32 << 20), 64 << 20).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("guest of 65536 KiB"), "{text}");
        assert!(text.contains("\"guest memory\""), "{text}");
        assert!(text.contains("32768 KiB were free"), "{text}");
    }

    #[test]
    fn the_table_names_every_part_and_the_total() {
        let text = Budget::carve(&mut machine(256 << 20), 64 << 20)
            .unwrap()
            .to_string();
        for name in [
            GUEST,
            NESTED_TABLES,
            IOMMU_TABLES,
            DIRTY_LOG,
            PIN_TRACKER,
            VCPU,
            "total",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }
}
