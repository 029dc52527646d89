//! Walks: over the tables there are, and over the leaves that a range will need.

use super::LARGE_PAGE_SIZE;
use super::entry::Entry;
use crate::memory::{Frame, PhysMemory};
use crate::{Gpa, Hpa, PAGE_SIZE};
use core::sync::atomic::AtomicU64;

/// One leaf to be made.
#[derive(Clone, Copy)]
pub(super) struct Leaf {
    pub(super) gpa: Gpa,
    pub(super) hpa: Hpa,
    /// 1 or 2.
    pub(super) level: u32,
}

impl Leaf {
    /// How many tables making this leaf may take: one for each level above it in
    /// whose table it is the first entry, or three for the `first` of a range.
    pub(super) fn tables_at_most(self, first: bool) -> u64 {
        let starts = |level: u32| first || index(self.gpa, level) == 0;
        let mut tables = 0;
        for level in self.level..4 {
            if !starts(level) {
                break;
            }
            tables += 1;
        }
        tables
    }
}

/// The largest possible leaves that make up a range, in order.
pub(super) fn leaves(gpa: Gpa, hpa: Hpa, bytes: u64) -> impl Iterator<Item = Leaf> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done >= bytes {
            return None;
        }
        let (at, to) = (gpa.raw() + done, hpa.raw() + done);
        let aligned = (at | to).is_multiple_of(LARGE_PAGE_SIZE);
        let level = if aligned && bytes - done >= LARGE_PAGE_SIZE {
            2
        } else {
            1
        };
        done += level_size(level);
        Some(Leaf {
            gpa: Gpa::new(at),
            hpa: Hpa::new(to),
            level,
        })
    })
}

/// Bytes that one entry at `level` spans.
const fn level_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// The entry of `gpa` in its table at `level`.
pub(super) fn index(gpa: Gpa, level: u32) -> usize {
    (gpa.raw() / level_size(level) % 512) as usize
}

pub(super) fn is_large_memory(entry: Entry) -> bool {
    entry.is_present() && entry.is_large() && entry.is_memory()
}

/// Fills the table at `table` with an entry for each index.
pub(super) fn fill<M: PhysMemory>(mem: &M, table: Hpa, entry: impl Fn(usize) -> Entry) {
    if let Some(frame) = mem.frame(table) {
        for (index, slot) in frame.words().iter().enumerate() {
            entry(index).store(slot);
        }
    }
}

/// Calls `visit` with each table at level 2 and the first address it translates.
pub(super) fn for_each_directory<M: PhysMemory>(
    mem: &M,
    root: Hpa,
    mut visit: impl FnMut(Gpa, &Frame),
) {
    let entries = |table: Hpa| {
        let words = mem.frame(table).map(|frame| frame.words().iter());
        let entries = words.into_iter().flatten().map(Entry::load).enumerate();
        entries.filter(|(_, entry)| entry.is_present())
    };
    for (top, entry) in entries(root) {
        for (middle, entry) in entries(entry.hpa()) {
            let gpa = top as u64 * level_size(4) + middle as u64 * level_size(3);
            if let Some(directory) = mem.frame(entry.hpa()) {
                visit(Gpa::new(gpa), directory);
            }
        }
    }
}

/// Calls `visit` with each leaf of guest memory: its address, the number of frames
/// it maps, and the entry.
pub(super) fn for_each_leaf<M: PhysMemory>(
    mem: &M,
    root: Hpa,
    visit: &mut impl FnMut(Gpa, u64, &AtomicU64),
) {
    for_each_directory(mem, root, |base, directory| {
        for (at, slot) in directory.words().iter().enumerate() {
            let entry = Entry::load(slot);
            let gpa = base.raw() + at as u64 * LARGE_PAGE_SIZE;
            if is_large_memory(entry) {
                visit(Gpa::new(gpa), 512, slot);
            } else if entry.is_present() && !entry.is_large() {
                let Some(table) = mem.frame(entry.hpa()) else {
                    continue;
                };
                for (at, slot) in table.words().iter().enumerate() {
                    if Entry::load(slot).is_memory() {
                        visit(Gpa::new(gpa + at as u64 * PAGE_SIZE), 1, slot);
                    }
                }
            }
        }
    });
}
