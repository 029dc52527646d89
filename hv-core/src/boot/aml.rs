//! The DSDT's definition block, in AML.
//!
//! ACPI Specification 6.5, chapter 20 (encoding) and section 6.4 (resources):
//!
//! ```text
//! Name (\_S5, Package { 5, 0, 0, 0 })
//! Scope (\_SB) {
//!   Device (PCI0) { _HID PNP0A03, _CRS: bus 0, memory E000_0000h to FEBF_FFFFh }
//!   Device (MBRD) { _HID PNP0C02, _CRS: memory of configuration space }
//!   Device (RTC_) { _HID PNP0B00, _CRS: ports 70h and 71h }
//!   Device (COM1) { _HID PNP0501, _CRS: ports 3F8h to 3FFh, interrupt 4 }
//! }
//! ```

use super::BootError;
use crate::platform::{UART_PIN, pci, power, rtc, uart};
use heapless::Vec;

/// The longest block.
const MAX: usize = 256;

/// Bytes of AML.
type Aml = Vec<u8, MAX>;

/// A host bridge.
const PNP0A03: [u8; 4] = [0x41, 0xd0, 0x0a, 0x03];
/// Resources of the main board.
const PNP0C02: [u8; 4] = [0x41, 0xd0, 0x0c, 0x02];
/// A real-time clock.
const PNP0B00: [u8; 4] = [0x41, 0xd0, 0x0b, 0x00];
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
    let board = device(*b"MBRD", PNP0C02, &[&configuration_space()])?;
    let clock = device(*b"RTC_", PNP0B00, &[&ports(rtc::INDEX_PORT, 2)])?;
    let serial = [&ports(uart::FIRST_PORT, 8)[..], &serial_interrupt()];
    let serial = device(*b"COM1", PNP0501, &serial)?;
    let scope = package(&[0x10], &[b"\\_SB_", &bridge, &board, &clock, &serial])?;
    concat(&[&soft_off()?, &scope])
}

/// `Name (\_S5, Package { type, 0, 0, 0 })`: the sleep type that turns the machine off.
fn soft_off() -> Result<Aml, BootError> {
    let elements = [4, 0x0a, power::SOFT_OFF, 0, 0, 0];
    concat(&[b"\x08_S5_", &package(&[0x12], &[&elements])?])
}

/// A fixed range of memory, writable.
fn configuration_space() -> [u8; 12] {
    let mut range = [0; 12];
    range[..4].copy_from_slice(&[0x86, 9, 0, 1]);
    range[4..8].copy_from_slice(&(pci::WINDOW.raw() as u32).to_le_bytes());
    range[8..].copy_from_slice(&(pci::WINDOW_BYTES as u32).to_le_bytes());
    range
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

/// So many ports from `first` on, all address bits decoded.
fn ports(first: u16, count: u8) -> [u8; 8] {
    let [low, high] = first.to_le_bytes();
    [0x47, 1, low, high, low, high, 1, count]
}

/// An interrupt of the I/O APIC: edge triggered, active high.
fn serial_interrupt() -> [u8; 9] {
    [0x89, 6, 0, 3, 1, UART_PIN as u8, 0, 0, 0]
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

/// An opcode with its package length, which counts itself: one byte up to 63, two up
/// to 4095.
fn package(opcode: &[u8], parts: &[&[u8]]) -> Result<Aml, BootError> {
    let body = concat(parts)?;
    let length = body.len() + 1;
    if length < 0x40 {
        return concat(&[opcode, &[length as u8], &body]);
    }
    let length = length + 1;
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
    use acpi_tables::Aml as _;
    use acpi_tables::aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
        PackageBuilder, ResourceTemplate, Scope,
    };
    use std::vec;
    use std::vec::Vec;

    fn device(name: &str, id: &str, resources: Vec<&dyn acpi_tables::Aml>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let id = EISAName::new(id);
        let resources = ResourceTemplate::new(resources);
        let hid = Name::new("_HID".into(), &id);
        let crs = Name::new("_CRS".into(), &resources);
        Device::new(name.into(), vec![&hid, &crs]).to_aml_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn the_block_is_what_acpi_tables_makes_of_its_description() {
        let mut package = PackageBuilder::new();
        for element in [5u8, 0, 0, 0] {
            package.add_element(&element);
        }
        let mut expected = Vec::new();
        Name::new("_S5_".into(), &package).to_aml_bytes(&mut expected);
        let buses = AddressSpace::new_bus_number(0u16, 0);
        let kind = AddressSpaceCacheable::NotCacheable;
        let window = AddressSpace::new_memory(kind, true, 0xe000_0000u32, 0xfebf_ffff, None);
        let space = Memory32Fixed::new(true, 0xc000_0000, 0x10_0000);
        let clock = IO::new(0x70, 0x70, 1, 2);
        let serial = IO::new(0x3f8, 0x3f8, 1, 8);
        let interrupt = Interrupt::new(true, true, false, false, 4);
        let devices = [
            device("PCI0", "PNP0A03", vec![&buses, &window]),
            device("MBRD", "PNP0C02", vec![&space]),
            device("RTC_", "PNP0B00", vec![&clock]),
            device("COM1", "PNP0501", vec![&serial, &interrupt]),
        ];
        expected.extend(Scope::raw("\\_SB_".into(), devices.concat()));
        assert_eq!(&definition_block().unwrap()[..], &expected[..]);
    }
}
