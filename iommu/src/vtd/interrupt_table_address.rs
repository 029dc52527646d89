//! The interrupt remapping table's place (VT-d 4.1, 11.4.10 "Interrupt Remapping
//! Table Address Register").

use super::bits::{flag, get, put};

/// IRTA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptTableAddress {
    /// IRTA, bits 63:12: the table's first page.
    pub base: u64,
    /// EIME, bit 11: destinations have 32 bits, and requests in compatibility format
    /// are blocked whatever CFI says.
    pub extended: bool,
    /// S, bits 3:0: the table has 2^(S + 1) entries.
    pub order: u8,
}

impl InterruptTableAddress {
    /// The order of a table of one page: 256 entries.
    pub const ONE_PAGE: u8 = 7;
    /// The register's fields; the rest is reserved.
    pub const WRITABLE: u64 = !0xfff | 1 << 11 | 0xf;

    /// Reads the register's value.
    pub const fn decode(raw: u64) -> Self {
        Self {
            base: raw & !0xfff,
            extended: flag(raw, 11),
            order: get(raw, 0, 4) as u8,
        }
    }

    /// The register's value.
    pub const fn encode(self) -> u64 {
        self.base & !0xfff | put(self.extended as u64, 11, 1) | put(self.order as u64, 0, 4)
    }

    /// How many entries the table has, from 2 to 65536.
    pub const fn entries(self) -> u32 {
        2 << (self.order & 0xf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_one_page_has_256_entries() {
        let table = InterruptTableAddress {
            base: 0x5000,
            extended: true,
            order: InterruptTableAddress::ONE_PAGE,
        };
        assert_eq!(table.encode(), 0x5807);
        assert_eq!(InterruptTableAddress::decode(0x5807), table);
        assert_eq!(table.entries(), 256);
        assert_eq!(InterruptTableAddress::decode(0xf).entries(), 1 << 16);
    }
}
