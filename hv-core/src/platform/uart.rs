//! A 16550 serial port without interrupts.
//!
//! National Semiconductor PC16550D data sheet, section 8. The transmitter is
//! always ready; a byte written is on the line at once. Drivers that wait for the
//! transmit interrupt do not work, those that poll do.

use super::msr::Refused;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first port of COM1.
pub const FIRST_PORT: u16 = 0x3f8;
/// The last port of COM1.
pub const LAST_PORT: u16 = 0x3ff;

/// Line control: registers 0 and 1 are the divisor.
const DIVISOR_ACCESS: u8 = 1 << 7;
/// Modem control: what is sent is received.
const LOOPBACK: u8 = 1 << 4;
/// Line status: both transmit registers are empty.
const TRANSMIT_EMPTY: u8 = 0x60;
/// Line status: a byte was received.
const DATA_READY: u8 = 1;
/// Interrupt identification: none pending.
const NO_INTERRUPT: u8 = 1;
/// Interrupt identification: the FIFOs are on.
const FIFO_ON: u8 = 0xc0;

/// The state of the port. The layout is fixed: these bytes migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct UartState {
    received: [u8; 16],
    received_count: u8,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
}

/// The port.
#[derive(Default)]
pub struct Uart(UartState);

impl Uart {
    /// Reads register 0 to 7.
    pub fn read(&mut self, register: u16) -> u8 {
        let divisor = self.0.line_control & DIVISOR_ACCESS != 0;
        match register {
            0 | 1 if divisor => self.0.divisor[usize::from(register)],
            0 => self.take_received(),
            1 => self.0.interrupt_enable,
            2 if self.0.fifo_control & 1 != 0 => NO_INTERRUPT | FIFO_ON,
            2 => NO_INTERRUPT,
            3 => self.0.line_control,
            4 => self.0.modem_control,
            5 if self.0.received_count > 0 => TRANSMIT_EMPTY | DATA_READY,
            5 => TRANSMIT_EMPTY,
            // Carrier, ready and clear to send, as a line that is connected.
            6 => 0xb0,
            7 => self.0.scratch,
            _ => 0xff,
        }
    }

    /// Writes register 0 to 7 and returns the byte that goes out on the line.
    pub fn write(&mut self, register: u16, value: u8) -> Option<u8> {
        let divisor = self.0.line_control & DIVISOR_ACCESS != 0;
        match register {
            0 | 1 if divisor => self.0.divisor[usize::from(register)] = value,
            0 if self.0.modem_control & LOOPBACK != 0 => {
                // A full queue is an overrun: the byte is lost.
                let _ = self.receive(value);
            }
            0 => return Some(value),
            1 => self.0.interrupt_enable = value & 0xf,
            2 => self.0.fifo_control = value,
            3 => self.0.line_control = value,
            4 => self.0.modem_control = value & 0x1f,
            7 => self.0.scratch = value,
            _ => {}
        }
        None
    }

    /// A byte arrives for the guest. Refused while 16 bytes wait.
    pub fn receive(&mut self, byte: u8) -> Result<(), Refused> {
        let place = usize::from(self.0.received_count);
        *self.0.received.get_mut(place).ok_or(Refused)? = byte;
        self.0.received_count += 1;
        Ok(())
    }

    fn take_received(&mut self) -> u8 {
        if self.0.received_count == 0 {
            return 0;
        }
        let byte = self.0.received[0];
        self.0.received.copy_within(1.., 0);
        self.0.received_count -= 1;
        byte
    }

    /// The state of the port.
    pub fn save(&self) -> UartState {
        self.0
    }

    /// A port in a state from outside, unless it is impossible.
    pub fn restored(state: &UartState) -> Option<Self> {
        (state.received_count <= 16).then_some(Self(*state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_out_unless_the_divisor_or_loopback_takes_them() {
        let mut uart = Uart::default();
        assert_eq!(uart.write(0, b'a'), Some(b'a'));
        uart.write(3, DIVISOR_ACCESS | 3);
        assert_eq!(uart.write(0, 1), None);
        uart.write(3, 3);
        uart.write(4, LOOPBACK);
        assert_eq!(uart.write(0, 0xae), None);
        assert_eq!(uart.read(5), TRANSMIT_EMPTY | DATA_READY);
        assert_eq!(uart.read(0), 0xae);
        assert_eq!(uart.read(5), TRANSMIT_EMPTY);
    }

    #[test]
    fn received_bytes_keep_their_order_and_the_queue_has_an_end() {
        let mut uart = Uart::default();
        for byte in 0..16 {
            uart.receive(byte).unwrap();
        }
        assert_eq!(uart.receive(16), Err(Refused));
        let restored = UartState {
            received_count: 17,
            ..uart.save()
        };
        assert!(Uart::restored(&restored).is_none());
        for byte in 0..16 {
            assert_eq!(uart.read(0), byte);
        }
    }
}
