//! The DSDT's definition block, in AML.
//!
//! ACPI Specification 6.5, chapter 20 (encoding) and section 6.4 (resources):
//!
//! ```text
//! Scope (\_SB) {
//!   Device (PCI0) { _HID PNP0A03, _CRS: bus 0, memory E000_0000h to FEBF_FFFFh }
//!   Device (COM1) { _HID PNP0501, _CRS: ports 3F8h to 3FFh, interrupt 4 }
//! }
//! ```

use super::BootError;
use crate::platform::{UART_PIN, uart};
use heapless::Vec;

/// The longest block.
const MAX: usize = 192;

/// Bytes of AML.
type Aml = Vec<u8, MAX>;

/// A host bridge.
const PNP0A03: [u8; 4] = [0x41, 0xd0, 0x0a, 0x03];
/// A 16550.
const PNP0501: [u8; 4] = [0x41, 0xd0, 0x05, 0x01];
/// The end of a list of resources.
const END_TAG: [u8; 2] = [0x79, 0];
/// Bus numbers 0 to 0.
const BUS: [u8; 16] = [
    0x88, 13, 0, 2, 0x0c, 0, // word, bus numbers, both ends fixed
    0, 0, 0, 0, 0, 0, 0, 0, 1, 0, // granularity, first, last, translation, length
];

/// The block's bytes.
pub(super) fn definition_block() -> Result<Aml, BootError> {
    let bridge = device(*b"PCI0", PNP0A03, &[&BUS, &memory_window()])?;
    let serial = device(*b"COM1", PNP0501, &[&serial_ports(), &serial_interrupt()])?;
    package(&[0x10], &[b"\\_SB_", &bridge, &serial])
}

/// Where BARs may lie: a 32-bit range that is writable and not cached.
fn memory_window() -> [u8; 26] {
    const FIRST: u32 = 0xe000_0000;
    const LAST: u32 = 0xfebf_ffff;
    let mut window = [0; 26];
    window[..6].copy_from_slice(&[0x87, 23, 0, 0, 0x0c, 1]);
    window[10..14].copy_from_slice(&FIRST.to_le_bytes());
    window[14..18].copy_from_slice(&LAST.to_le_bytes());
    window[22..26].copy_from_slice(&(LAST - FIRST + 1).to_le_bytes());
    window
}

/// Eight ports, all address bits decoded.
fn serial_ports() -> [u8; 8] {
    let [low, high] = uart::FIRST_PORT.to_le_bytes();
    [0x47, 1, low, high, low, high, 1, 8]
}

/// An ISA interrupt: edge triggered, active high.
fn serial_interrupt() -> [u8; 3] {
    let [low, high] = (1u16 << UART_PIN).to_le_bytes();
    [0x22, low, high]
}

/// `Device (name) { Name (_HID, id) Name (_CRS, Buffer { resources }) }`.
fn device(name: [u8; 4], id: [u8; 4], resources: &[&[u8]]) -> Result<Aml, BootError> {
    let list = concat(resources)?;
    let bytes = [0x0a, (list.len() + END_TAG.len()) as u8];
    let buffer = package(&[0x11], &[&bytes, &list, &END_TAG])?;
    let hid: [&[u8]; 3] = [b"\x08_HID", &[0x0c], &id];
    package(
        &[0x5b, 0x82],
        &[&name, &concat(&hid)?, b"\x08_CRS", &buffer],
    )
}

/// An opcode with its package length, in the form of two bytes that reaches 4095.
fn package(opcode: &[u8], parts: &[&[u8]]) -> Result<Aml, BootError> {
    let body = concat(parts)?;
    let length = body.len() + 2;
    let encoded = [0x40 | (length & 0xf) as u8, (length >> 4) as u8];
    concat(&[opcode, &encoded, &body])
}

fn concat(parts: &[&[u8]]) -> Result<Aml, BootError> {
    let mut all = Aml::new();
    for part in parts {
        all.extend_from_slice(part)
            .map_err(|_| BootError::AcpiTables)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_lengths_add_up() {
        let block = definition_block().unwrap();
        let length = |at: usize| usize::from(block[at] & 0xf) | usize::from(block[at + 1]) << 4;
        assert_eq!((block[0], length(1)), (0x10, block.len() - 1));
        let first = 8;
        assert_eq!(block[first..first + 2], [0x5b, 0x82]);
        let second = first + 2 + length(first + 2);
        assert_eq!(block[second..second + 2], [0x5b, 0x82]);
        assert_eq!(second + 2 + length(second + 2), block.len());
        assert_eq!(&block[second + 4..second + 8], b"COM1");
    }
}
