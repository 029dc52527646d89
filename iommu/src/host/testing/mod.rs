//! What the tests of both vendors' drivers share.

pub(super) mod interrupts;

use core::sync::atomic::Ordering;
use hv_core::Hpa;
use hv_core::memory::PhysMemory;
use hv_core::testing::Arena;

/// The word at `at`, as a unit reads it.
pub(super) fn read64(arena: &Arena, at: u64) -> u64 {
    let words = arena.frame(Hpa::new(at & !0xfff)).unwrap().words();
    words[(at & 0xfff) as usize / 8].load(Ordering::Acquire)
}

/// The 16 bytes at `at`, as a unit reads them.
pub(super) fn read128(arena: &Arena, at: u64) -> u128 {
    let [low, high] = [at, at + 8].map(|at| u128::from(read64(arena, at)));
    low | high << 64
}
