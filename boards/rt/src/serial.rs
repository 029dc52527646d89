//! The serial ports.
#![allow(unsafe_code)]

use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

/// A serial port at its customary place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Port {
    /// The log.
    Com1 = 0x3f8,
    /// Machine-readable events.
    Com2 = 0x2f8,
    /// The guest's console.
    Com3 = 0x3e8,
}

/// A serial port that is used by polling.
pub struct Serial(Option<Uart16550<PioBackend>>);

impl Serial {
    /// Sets the port up for writing. What is written to a port that is not there
    /// is lost.
    pub fn open(port: Port) -> Self {
        // SAFETY: these are the registers of a 16550 or of nothing, and neither can
        // write to memory. An image owns its machine, so nobody else uses them.
        let mut uart = unsafe { Uart16550::new_port(port as u16) }.ok();
        if let Some(uart) = &mut uart {
            // A port that fails the presence test is written to all the same:
            // an emulated one may lack the scratch register.
            let _ = uart.init(Config::default());
        }
        Self(uart)
    }

    /// Takes a byte that has arrived.
    pub fn read_byte(&mut self) -> Option<u8> {
        self.0.as_mut()?.try_receive_byte().ok()
    }

    /// Writes bytes, waiting for room.
    pub fn write_bytes(&mut self, bytes: &[u8]) {
        if let Some(uart) = &mut self.0 {
            uart.send_bytes_exact(bytes);
        }
    }
}

impl core::fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}
