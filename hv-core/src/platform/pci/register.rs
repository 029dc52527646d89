//! Which register a configuration access names.

use crate::Gpa;

/// Where the configuration space of bus 0 lies in memory (PCI Express Base
/// Specification 5.0, section 7.2.2: enhanced configuration access mechanism).
pub const WINDOW: Gpa = Gpa::new(0xc000_0000);
/// Its size: 4096 bytes for each of 32 devices with 8 functions.
pub const WINDOW_BYTES: u64 = 1 << 20;

/// 32 bits of the configuration space of a function on bus 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Register {
    /// The device's number, 0 to 31.
    pub(super) device: u8,
    /// The function's number, 0 to 7.
    pub(super) function: u8,
    /// The offset, a multiple of 4. From 100h on it is in the extended space, which
    /// only [`WINDOW`] reaches.
    pub(super) offset: u16,
}

impl Register {
    /// What the address port names (PCI Local Bus Specification 3.0, section
    /// 3.2.2.3.2), if that can be on bus 0.
    pub(super) fn by_address_port(address: u32) -> Option<Self> {
        const ENABLE: u32 = 1 << 31;
        // Bits 30:24 are reserved, bits 23:16 are the bus.
        (address >> 16 == ENABLE >> 16).then_some(Self {
            device: (address >> 11 & 0x1f) as u8,
            function: (address >> 8 & 7) as u8,
            offset: (address & 0xfc) as u16,
        })
    }

    /// What lies at this offset into [`WINDOW`].
    pub(super) fn by_window(offset: u64) -> Option<Self> {
        (offset < WINDOW_BYTES).then_some(Self {
            device: (offset >> 15 & 0x1f) as u8,
            function: (offset >> 12 & 7) as u8,
            offset: (offset & 0xffc) as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_name_the_same_register() {
        let register = Register {
            device: 3,
            function: 1,
            offset: 0x40,
        };
        let by_port = Register::by_address_port(1 << 31 | 3 << 11 | 1 << 8 | 0x43);
        assert_eq!(by_port, Some(register));
        assert_eq!(
            Register::by_window(3 << 15 | 1 << 12 | 0x43),
            Some(register)
        );
    }

    #[test]
    fn other_buses_and_reserved_bits_name_nothing() {
        for address in [3 << 11, 1 << 31 | 1 << 16, 1 << 31 | 1 << 24] {
            assert_eq!(Register::by_address_port(address), None, "{address:#x}");
        }
        assert_eq!(Register::by_window(WINDOW_BYTES), None);
    }
}
