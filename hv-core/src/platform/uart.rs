//! A 16550 serial port.
//!
//! National Semiconductor PC16550D data sheet, section 8. The transmitter is
//! always ready; a byte written is on the line at once.

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
/// Interrupt enable: a byte was received.
const ENABLE_RECEIVED: u8 = 1;
/// Interrupt enable: the transmit register is empty.
const ENABLE_EMPTY: u8 = 1 << 1;
/// Interrupt identification: none pending.
const NO_INTERRUPT: u8 = 1;
/// Interrupt identification: a byte was received.
const RECEIVED: u8 = 0x04;
/// Interrupt identification: the transmit register is empty.
const EMPTY: u8 = 0x02;
/// Modem control: OUT2, which connects the interrupt on a PC.
const INTERRUPT_CONNECTED: u8 = 1 << 3;
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
    /// 1 from the moment the transmit register is empty until the driver saw it.
    empty_pending: u8,
    reserved: [u8; 7],
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
            2 => self.identify_interrupt(),
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
            0 => {
                self.0.empty_pending = 1;
                return Some(value);
            }
            1 => {
                if value & !self.0.interrupt_enable & ENABLE_EMPTY != 0 {
                    self.0.empty_pending = 1;
                }
                self.0.interrupt_enable = value & 0xf;
            }
            2 => self.0.fifo_control = value,
            3 => self.0.line_control = value,
            4 => self.0.modem_control = value & 0x1f,
            7 => self.0.scratch = value,
            _ => {}
        }
        None
    }

    /// Whether a byte that arrives has room.
    pub fn can_receive(&self) -> bool {
        usize::from(self.0.received_count) < self.0.received.len()
    }

    /// A byte arrives for the guest. Refused while 16 bytes wait.
    pub fn receive(&mut self, byte: u8) -> Result<(), Refused> {
        let place = usize::from(self.0.received_count);
        *self.0.received.get_mut(place).ok_or(Refused)? = byte;
        self.0.received_count += 1;
        Ok(())
    }

    /// Whether the port requests an interrupt.
    pub fn requests_interrupt(&self) -> bool {
        self.0.modem_control & INTERRUPT_CONNECTED != 0 && self.pending() != NO_INTERRUPT
    }

    /// The pending interrupt of the highest priority.
    fn pending(&self) -> u8 {
        let enabled = |source| self.0.interrupt_enable & source != 0;
        if enabled(ENABLE_RECEIVED) && self.0.received_count > 0 {
            RECEIVED
        } else if enabled(ENABLE_EMPTY) && self.0.empty_pending != 0 {
            EMPTY
        } else {
            NO_INTERRUPT
        }
    }

    /// Reading that the transmit register is empty ends that interrupt.
    fn identify_interrupt(&mut self) -> u8 {
        let pending = self.pending();
        if pending == EMPTY {
            self.0.empty_pending = 0;
        }
        match self.0.fifo_control & 1 {
            0 => pending,
            _ => pending | FIFO_ON,
        }
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
        let valid =
            state.received_count <= 16 && state.empty_pending < 2 && state.reserved == [0; 7];
        valid.then_some(Self(*state))
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
        assert!(!uart.can_receive());
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

    #[test]
    fn the_interrupt_says_why_and_ends_when_that_is_over() {
        let mut uart = Uart::default();
        uart.write(4, INTERRUPT_CONNECTED);
        uart.write(1, ENABLE_RECEIVED | ENABLE_EMPTY);
        assert_eq!(uart.read(2), EMPTY, "enabling it asks at once");
        assert!(!uart.requests_interrupt());
        uart.write(0, b'x');
        uart.receive(b'y').unwrap();
        assert_eq!(uart.read(2), RECEIVED, "the higher priority");
        assert_eq!(uart.read(0), b'y');
        assert!(uart.requests_interrupt());
        assert_eq!(uart.read(2), EMPTY);
        assert_eq!(uart.read(2), NO_INTERRUPT);
        uart.write(0, b'x');
        uart.write(4, 0);
        assert!(!uart.requests_interrupt(), "not connected");
    }
}
