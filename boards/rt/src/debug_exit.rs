//! The way out of an emulator: QEMU's `isa-debug-exit` device at port 0xF4.
#![allow(unsafe_code)]

use crate::cpu;
use x86_64::instructions::port::PortWriteOnly;

const PORT: u16 = 0xf4;

/// How the program ended. A value `v` makes QEMU exit with status `2 v + 1`; the
/// two in use cannot be mistaken for QEMU's own 0 and 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Exit {
    /// All is well: QEMU's status is 33.
    Success = 0x10,
    /// Something failed and the log says what: QEMU's status is 35.
    Failure = 0x11,
}

/// Ends the program. Where there is no such device the CPU halts for good.
pub fn exit(how: Exit) -> ! {
    // SAFETY: the port belongs to the exit device or to nothing.
    unsafe { PortWriteOnly::<u32>::new(PORT).write(how as u32) };
    cpu::halt_forever()
}
