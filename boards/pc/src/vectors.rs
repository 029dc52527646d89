//! Which interrupt vector is whose.

/// The periodic tick of the local APIC's timer.
pub const TICK: u8 = 0x40;
/// The passthrough device's message-signalled interrupt.
pub const DEVICE: u8 = 0x41;
/// Another CPU has left the guest, or is to.
pub const PROCESSOR: u8 = 0x42;
