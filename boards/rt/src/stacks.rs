//! The stacks of each CPU, each above an unmapped guard page.
//!
//! Every vector switches to a stack of its own class, because the precompiled
//! standard library uses the red zone below the interrupted stack pointer, and
//! because an overflow of the main stack must still be reportable.

use crate::processors::MAX_CPUS;
use core::cell::UnsafeCell;

/// Bytes of a guard page.
pub(crate) const GUARD: usize = 4096;

/// The stack the program runs on.
#[allow(dead_code)]
pub(crate) const MAIN: Stack = Stack::above(0, 128 * 1024);
/// Interrupts from devices and timers.
pub(crate) const INTERRUPT: Stack = Stack::above(MAIN.top, 8 * 1024);
/// Exceptions other than those below.
pub(crate) const EXCEPTION: Stack = Stack::above(INTERRUPT.top, 16 * 1024);
/// Non-maskable interrupts.
pub(crate) const NMI: Stack = Stack::above(EXCEPTION.top, 16 * 1024);
/// Double faults.
pub(crate) const DOUBLE_FAULT: Stack = Stack::above(NMI.top, 16 * 1024);
/// Machine checks.
pub(crate) const MACHINE_CHECK: Stack = Stack::above(DOUBLE_FAULT.top, 16 * 1024);

/// Every stack.
pub(crate) const ALL: [Stack; 6] = [MAIN, INTERRUPT, EXCEPTION, NMI, DOUBLE_FAULT, MACHINE_CHECK];

/// Where a stack lies among its CPU's; its guard page is the one at `guard`.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    /// Offset of the guard page.
    pub(crate) guard: usize,
    /// Offset of the first byte above the stack.
    pub(crate) top: usize,
}

impl Stack {
    const fn above(below: usize, bytes: usize) -> Self {
        Self {
            guard: below,
            top: below + GUARD + bytes,
        }
    }
}

/// Bytes from the stacks of one CPU to those of the next.
pub(crate) const STRIDE: usize = 256 * 1024;
const _: () = assert!(MACHINE_CHECK.top <= STRIDE);

const ALL_BYTES: usize = STRIDE * MAX_CPUS;

/// All stacks. Aligned to its size, so that it lies within one 2 MiB page and one
/// table suffices to unmap the guards.
#[repr(C, align(0x8_0000))]
pub(crate) struct Stacks(UnsafeCell<[u8; ALL_BYTES]>);

const _: () = assert!(align_of::<Stacks>() == ALL_BYTES);

// Each CPU is the only user of its part; no reference to it is ever made.
#[allow(unsafe_code)]
// SAFETY: nothing in Rust reads or writes through it; see above.
unsafe impl Sync for Stacks {}

/// The memory. In a section of its own; see the linker script.
#[allow(unsafe_code)]
// SAFETY: a section of zero-initialised data, which this is.
#[unsafe(link_section = ".bss.stacks")]
pub(crate) static STACKS: Stacks = Stacks(UnsafeCell::new([0; ALL_BYTES]));

/// The address of the byte at `offset` of the stacks of CPU `cpu`, 0 for the boot CPU.
pub(crate) fn address(cpu: usize, offset: usize) -> u64 {
    STACKS.0.get() as u64 + (cpu * STRIDE + offset) as u64
}
