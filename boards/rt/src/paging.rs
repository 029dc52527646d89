//! The identity map: 512 GiB by pages of 1 GiB, made by the entry code, and the
//! guard pages cut out of it here.
//!
//! Nothing else changes the map, so a physical address is a pointer for as long
//! as the program runs (below [`MAPPED_BYTES`], and not in a guard page).
#![allow(unsafe_code)]

use crate::processors::MAX_CPUS;
use crate::stacks;
use core::cell::UnsafeCell;

/// Physical addresses below this one are mapped at themselves.
pub(crate) const MAPPED_BYTES: u64 = 512 << 30;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// A table of 512 entries.
#[repr(C, align(4096))]
pub(crate) struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: written by the entry code and by `guard_stacks` only, both of which run
// once, before there is anything else.
unsafe impl Sync for Table {}

impl Table {
    const fn empty() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Fills the table: entry `i` becomes `entry(i)`.
    fn fill(&self, entry: impl Fn(u64) -> u64) {
        for i in 0..512 {
            self.set(i, entry(i as u64));
        }
    }

    fn set(&self, index: usize, value: u64) {
        // SAFETY: the index is below 512 (masked), and the walker of this CPU is
        // the only other reader, which sees each aligned store as a whole.
        unsafe {
            self.0
                .get()
                .cast::<u64>()
                .add(index & 511)
                .write_volatile(value);
        }
    }
}

/// Level 4, filled by the entry code.
pub(crate) static LEVEL4: Table = Table::empty();
/// Level 3: 512 pages of 1 GiB, filled by the entry code.
pub(crate) static LEVEL3: Table = Table::empty();
/// Level 2 for the GiB that the stacks are in.
static LEVEL2: Table = Table::empty();
/// Level 1 for the 2 MiB that the stacks are in.
static LEVEL1: Table = Table::empty();

/// Takes the guard page below each stack out of the map. Called once, before another
/// CPU uses the map.
pub(crate) fn guard_stacks() {
    let stacks_start = stacks::address(0, 0);
    let index = |shift: u32| (stacks_start >> shift & 511) as usize;
    let giant = stacks_start & !((1 << 30) - 1);
    let large = stacks_start & !((1 << 21) - 1);

    // From the bottom up, so that the map is whole at every moment.
    LEVEL1.fill(|i| (large + (i << 12)) | PRESENT_WRITABLE);
    for cpu in 0..MAX_CPUS {
        for stack in stacks::ALL {
            let guard = stacks::address(cpu, stack.guard);
            LEVEL1.set((guard >> 12 & 511) as usize, 0);
        }
    }
    LEVEL2.fill(|i| (giant + (i << 21)) | PRESENT_WRITABLE | LARGE);
    LEVEL2.set(index(21), LEVEL1.address() | PRESENT_WRITABLE);
    LEVEL3.set(index(30), LEVEL2.address() | PRESENT_WRITABLE);
    x86_64::instructions::tlb::flush_all();
}
