//! The time since the machine was reset, as its CPU counts it: with what the kernel
//! needed before it had a clock, such as for unpacking itself.

use core::arch::x86_64::_rdtsc;

/// The time stamp counter, which is 0 when a CPU is reset (AMD64 Architecture
/// Programmer's Manual volume 2, section 14.1.3).
#[allow(unsafe_code)]
pub(crate) fn since_reset() -> u64 {
    // SAFETY: RDTSC touches nothing but the registers it returns its result in; every
    // 64-bit CPU has it, and Linux lets programs use it.
    unsafe { _rdtsc() }
}
