//! How a machine is turned off or reset.
//!
//! ACPI Specification 6.5, sections 4.8.3.6 (reset register) and 4.8.3.7 (sleep
//! control and status registers); Intel 82801IB (ICH9) datasheet, section 13.7.5
//! (reset control register). The machine cannot be reset in place: its image is gone
//! by then, so a reset ends the guest as turning it off does.

/// Sleep control register, 8 bits.
pub const SLEEP_CONTROL_PORT: u16 = 0x604;
/// Sleep status register, 8 bits: never woken.
pub const SLEEP_STATUS_PORT: u16 = 0x605;
/// Reset control register, 8 bits.
pub const RESET_PORT: u16 = 0xcf9;
/// What ACPI says to write there.
pub const RESET_VALUE: u8 = 0b110;
/// The sleep type of S5, soft off.
pub const SOFT_OFF: u8 = 5;

/// The keyboard controller's command port. There is none, but this is how systems
/// without ACPI reset.
const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// Keyboard controller: pulse the reset line.
const PULSE_RESET: u8 = 0xfe;
/// Sleep control: enter the sleep type of bits 4:2.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Reset control: reset.
const RESET_CPU: u8 = 1 << 2;

/// How a guest ended by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestExit {
    /// It wrote this to the debug exit port.
    Status(u32),
    /// It turned its machine off.
    PowerOff,
    /// It reset its machine.
    Reset,
}

/// Whether a byte written to a port ends the guest.
pub(super) fn write(port: u16, value: u8) -> Option<GuestExit> {
    match port {
        SLEEP_CONTROL_PORT if value & SLEEP_ENABLE != 0 => {
            (value >> 2 & 7 == SOFT_OFF).then_some(GuestExit::PowerOff)
        }
        RESET_PORT if value & RESET_CPU != 0 => Some(GuestExit::Reset),
        KEYBOARD_COMMAND_PORT if value == PULSE_RESET => Some(GuestExit::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_that_is_enabled_turns_the_machine_off() {
        let off = SLEEP_ENABLE | SOFT_OFF << 2;
        assert_eq!(write(SLEEP_CONTROL_PORT, off), Some(GuestExit::PowerOff));
        for value in [0, SLEEP_ENABLE, SOFT_OFF << 2, SLEEP_ENABLE | 3 << 2] {
            assert_eq!(write(SLEEP_CONTROL_PORT, value), None, "{value:#x}");
        }
    }

    #[test]
    fn every_customary_way_resets() {
        for (port, value) in [(RESET_PORT, RESET_VALUE), (RESET_PORT, 0xe), (0x64, 0xfe)] {
            assert_eq!(write(port, value), Some(GuestExit::Reset), "{port:#x}");
        }
        for (port, value) in [(RESET_PORT, 2), (0x64, 0xd1), (0x60, 0xfe)] {
            assert_eq!(write(port, value), None, "{port:#x}");
        }
    }
}
