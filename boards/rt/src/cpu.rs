//! Waiting.

use x86_64::instructions::{hlt, interrupts, nop};

/// Lets interrupts in, waits for one, and shuts them out again.
///
/// Call it with interrupts disabled, after seeing that there is nothing to do:
/// the CPU takes an interrupt that has come meanwhile only once it halts (STI
/// holds interrupts back for one instruction), so none is slept through.
pub fn halt_until_interrupt() {
    interrupts::enable_and_hlt();
    interrupts::disable();
}

/// Lets interrupts in that are waiting, and shuts them out again. To be called
/// with interrupts disabled.
pub fn accept_interrupts() {
    interrupts::enable();
    // STI holds interrupts back for one instruction.
    nop();
    interrupts::disable();
}

/// Tells the CPU that this is a spin loop.
pub fn pause() {
    core::hint::spin_loop();
}

/// Stops this CPU.
pub fn halt_forever() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}
