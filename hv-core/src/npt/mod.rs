//! Nested paging in the AMD64 format, and dirty tracking of guest CPUs with it.
//!
//! # What a harvest may and may not lose
//! Hardware sets D in a leaf when a CPU first writes through it, and may then keep
//! "D is set" in its TLB and write on without looking at the entry again. So the
//! order of one harvest is fixed:
//!
//! ```text
//!   guest stopped ->  clear D, mark the frame  ->  request a TLB flush
//!                                                        |
//!   guest runs   <-  world switch with that flush  <-----+
//!                                                        |
//!   engine drains the log and copies the page  <---------+  any time after the mark
//! ```
//!
//! * A write before the guest stopped has D set, so its frame is marked, and the
//!   page is copied after the mark: the copy has it.
//! * A write after the guest resumed misses the TLB, finds D clear and sets it
//!   again. The copy may or may not have it, or have half of it; the next harvest
//!   marks the frame again either way. The last harvest is made with the guest
//!   stopped for good, so there is no next write.
//! * Between the two there is no write, because no CPU runs the guest before its
//!   flush: that is what [`Stopped`] proves.
//!
//! Large leaves are split when tracking starts, because one D bit for 2 MiB would
//! make 512 pages dirty for one byte written.

mod entry;
mod shootdown;
#[cfg(test)]
mod tests;
mod walk;

pub use shootdown::{GuestTlb, Stopped};

use crate::dirty::{DirtyLog, DirtySource};
use crate::memory::{FramePool, PhysMemory, Slot};
use crate::sabotage::{Sabotage, is_active};
use crate::{Gfn, Gpa, Hpa, PAGE_SHIFT, PAGE_SIZE};
use core::sync::atomic::AtomicU64;
use entry::{Entry, take_dirty};
use walk::{Leaf, fill, for_each_directory, for_each_leaf, index, is_large_memory, leaves};

/// Bytes mapped by a leaf at level 2.
pub const LARGE_PAGE_SIZE: u64 = 512 * PAGE_SIZE;
/// Guest physical addresses that four levels translate.
const ADDRESS_LIMIT: u64 = 1 << 48;

/// Why nested tables could not be changed. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NptError {
    /// The pool has fewer frames than the operation may need.
    #[error("nested paging needs up to {needed} more table frames, {available} are left")]
    OutOfFrames {
        /// Frames the operation may need.
        needed: u64,
        /// Frames the pool has.
        available: u64,
    },
    /// The range is empty, misaligned, or past the 48-bit address space.
    #[error("the range is empty, not page aligned, or past the guest address space")]
    Malformed,
    /// Something is mapped at this address already.
    #[error("{0} is mapped already")]
    Mapped(Gpa),
    /// Mappings do not change while dirty tracking is on.
    #[error("mappings cannot change while dirty tracking is on")]
    Tracking,
}

/// What a run of leaves refers to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Memory,
    Device,
}

/// The nested page tables of one guest.
///
/// One CPU changes them, with the guest stopped; hardware sets A and D in them
/// while the guest runs.
pub struct NestedTables<'m, M> {
    mem: &'m M,
    pool: FramePool,
    root: Hpa,
    tracking: bool,
    /// How often an entry was downgraded: the number that flushes follow.
    downgrades: u64,
}

impl<'m, M: PhysMemory> NestedTables<'m, M> {
    /// Empty tables, whose frames come from `pool` now and later. One frame maps
    /// 2 MiB in small pages or 1 GiB in large ones; tracking a guest of n GiB
    /// needs 512 n frames.
    pub fn new(mem: &'m M, mut pool: FramePool) -> Result<Self, NptError> {
        let root = pool.take(mem).ok_or(NptError::OutOfFrames {
            needed: 1,
            available: 0,
        })?;
        Ok(Self {
            mem,
            pool,
            root,
            tracking: false,
            // A CPU may hold anything of who used its identifier before.
            downgrades: 1,
        })
    }

    /// The top table, for the world switch.
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// A CPU is about to enter the guest. Says whether it must flush with that entry.
    #[must_use = "the guest must not run before its TLB is flushed"]
    pub fn enter(&self, tlb: &mut GuestTlb) -> bool {
        tlb.enter(self.downgrades)
    }

    /// Maps a slot of guest memory, readable, writable and executable, with 2 MiB
    /// leaves where both addresses allow it.
    pub fn map_ram(&mut self, slot: &Slot) -> Result<(), NptError> {
        let bytes = slot.frames.checked_mul(PAGE_SIZE);
        let bytes = bytes.ok_or(NptError::Malformed)?;
        let gfn = slot.gfn.number();
        if gfn >= ADDRESS_LIMIT >> PAGE_SHIFT {
            return Err(NptError::Malformed);
        }
        self.map(slot.gfn.gpa(), slot.hpa, bytes, Backing::Memory)
    }

    /// Maps device registers, such as a BAR that is passed through: uncached,
    /// never executed, never counted as dirty.
    pub fn map_device(&mut self, gpa: Gpa, hpa: Hpa, bytes: u64) -> Result<(), NptError> {
        self.map(gpa, hpa, bytes, Backing::Device)
    }

    /// Whether something is mapped at `gpa`.
    pub fn is_mapped(&self, gpa: Gpa) -> bool {
        self.leaf(gpa).is_some()
    }

    /// Starts tracking writes of guest CPUs: splits every 2 MiB leaf of guest
    /// memory, clears every D bit and has every CPU flush. The frames that takes are
    /// counted first; without them nothing changes. Doing it twice is harmless.
    pub fn start_tracking(&mut self, _: &Stopped<'_>) -> Result<(), NptError> {
        let needed = self.large_leaves();
        let available = self.pool.available();
        if needed > available {
            return Err(NptError::OutOfFrames { needed, available });
        }
        let Self { mem, pool, .. } = self;
        for_each_directory(*mem, self.root, |_, directory| {
            for slot in directory.words() {
                let entry = Entry::load(slot);
                if !is_large_memory(entry) {
                    continue;
                }
                // Counted above, so there is one.
                if let Some(table) = pool.take(*mem) {
                    fill(*mem, table, |index| entry.part(index));
                    Entry::split(table).store(slot);
                }
            }
        });
        for_each_leaf(*mem, self.root, &mut |_, _, slot| {
            take_dirty(slot);
        });
        self.tracking = true;
        self.note_downgrade();
        Ok(())
    }

    /// Marks in `log` every frame a guest CPU wrote since the last harvest (or
    /// since tracking started), and returns how many there were. Every CPU flushes
    /// before it enters again.
    pub fn harvest(&mut self, log: &DirtyLog<'_>, _: &Stopped<'_>) -> u64 {
        if is_active(Sabotage::CpuDirty) {
            return 0;
        }
        let mut found = 0;
        for_each_leaf(self.mem, self.root, &mut |gpa, frames, slot| {
            if !take_dirty(slot) {
                return;
            }
            let first = Gfn::containing(gpa).number();
            for gfn in first..first + frames {
                log.mark(Gfn::new(gfn), DirtySource::Cpu);
            }
            found += frames;
        });
        if found > 0 {
            self.note_downgrade();
        }
        found
    }

    /// Ends tracking: every 2 MiB leaf that was split is one again, and its table
    /// goes back to the pool. No CPU uses it any more, and none that holds an entry of
    /// it enters before it flushed.
    pub fn stop_tracking(&mut self, _: &Stopped<'_>) {
        let Self { mem, pool, .. } = self;
        for_each_directory(*mem, self.root, |_, directory| {
            for slot in directory.words() {
                let entry = Entry::load(slot);
                if !entry.is_split() {
                    continue;
                }
                let Some(table) = mem.frame(entry.hpa()) else {
                    continue;
                };
                Entry::load(&table.words()[0]).whole().store(slot);
                pool.give_back(*mem, entry.hpa());
            }
        });
        self.tracking = false;
        self.note_downgrade();
    }

    fn note_downgrade(&mut self) {
        self.downgrades += 1;
    }

    fn map(&mut self, gpa: Gpa, hpa: Hpa, bytes: u64, backing: Backing) -> Result<(), NptError> {
        let end = gpa.raw().checked_add(bytes).ok_or(NptError::Malformed)?;
        let aligned = gpa.is_page_aligned() && hpa.is_page_aligned();
        let whole = bytes != 0 && bytes.is_multiple_of(PAGE_SIZE);
        if !aligned || !whole || end > ADDRESS_LIMIT || hpa.checked_add(bytes).is_none() {
            return Err(NptError::Malformed);
        }
        if self.tracking {
            return Err(NptError::Tracking);
        }
        let mut needed = 0;
        for leaf in leaves(gpa, hpa, bytes) {
            self.check_free(leaf)?;
            // At most three tables where a leaf is the first in its table, else
            // none; shared upper tables make this an upper bound.
            needed += leaf.tables_at_most(leaf.gpa == gpa);
        }
        let available = self.pool.available();
        if needed > available {
            return Err(NptError::OutOfFrames { needed, available });
        }
        for leaf in leaves(gpa, hpa, bytes) {
            if let Some(slot) = self.slot_for(leaf) {
                let entry = match backing {
                    Backing::Memory => Entry::memory(leaf.hpa, leaf.level == 2),
                    Backing::Device => Entry::device(leaf.hpa, leaf.level == 2),
                };
                entry.store(slot);
            }
        }
        self.note_downgrade();
        Ok(())
    }

    /// Refuses a leaf where an entry is in the way, at its level or above, or
    /// where smaller ones are below.
    fn check_free(&self, leaf: Leaf) -> Result<(), NptError> {
        let mut table = self.root;
        for level in (leaf.level..=4).rev() {
            let Some(frame) = self.mem.frame(table) else {
                return Ok(());
            };
            let entry = Entry::load(&frame.words()[index(leaf.gpa, level)]);
            if !entry.is_present() {
                return Ok(());
            }
            if level == leaf.level || entry.is_large() {
                return Err(NptError::Mapped(leaf.gpa));
            }
            table = entry.hpa();
        }
        Ok(())
    }

    /// The entry of `leaf`, with the tables above it made where missing.
    fn slot_for(&mut self, leaf: Leaf) -> Option<&'m AtomicU64> {
        let mut table = self.root;
        for level in (leaf.level + 1..=4).rev() {
            let slot = &self.mem.frame(table)?.words()[index(leaf.gpa, level)];
            let entry = Entry::load(slot);
            table = if entry.is_present() {
                entry.hpa()
            } else {
                let fresh = self.pool.take(self.mem)?;
                Entry::table(fresh).store(slot);
                fresh
            };
        }
        Some(&self.mem.frame(table)?.words()[index(leaf.gpa, leaf.level)])
    }

    /// The entry that maps `gpa`.
    fn leaf(&self, gpa: Gpa) -> Option<&'m AtomicU64> {
        if gpa.raw() >= ADDRESS_LIMIT {
            return None;
        }
        let mut table = self.root;
        for level in (1..=4).rev() {
            let slot = &self.mem.frame(table)?.words()[index(gpa, level)];
            let entry = Entry::load(slot);
            if !entry.is_present() {
                return None;
            }
            if level == 1 || entry.is_large() {
                return Some(slot);
            }
            table = entry.hpa();
        }
        None
    }

    /// How many 2 MiB leaves of guest memory there are.
    fn large_leaves(&self) -> u64 {
        let mut count = 0;
        for_each_directory(self.mem, self.root, |_, directory| {
            let entries = directory.words().iter().map(Entry::load);
            count += entries.filter(|entry| is_large_memory(*entry)).count() as u64;
        });
        count
    }
}
