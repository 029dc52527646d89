//! The context entry: one PCI function (VT-d 4.1, 9.3 "Context Entry").
//!
//! ```text
//! 127      88 87     72 71 70  67 66  64 63          12 11   4 3  2  1   0
//! | reserved | domain  |r | ignd | AW   | SLPTPTR      | rsvd | TT |FPD| P |
//! ```

use super::bits::{beyond_width, flag, get, halves, join, put};
use super::capability::{Capabilities, ExtendedCapabilities};
use super::fault::FaultReason;

/// AW: how many address bits a second-stage table translates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AddressWidth {
    /// 39 bits, three levels; AW = 001.
    Bits39,
    /// 48 bits, four levels; AW = 010.
    Bits48,
}

impl AddressWidth {
    /// The number of table levels.
    pub const fn levels(self) -> u8 {
        match self {
            Self::Bits39 => 3,
            Self::Bits48 => 4,
        }
    }

    /// The number of address bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits39 => 39,
            Self::Bits48 => 48,
        }
    }

    /// The field AW.
    pub(super) const fn field(self) -> u64 {
        match self {
            Self::Bits39 => 1,
            Self::Bits48 => 2,
        }
    }

    /// The width that the field AW means, if it is one of these.
    pub(super) const fn of_field(field: u64) -> Option<Self> {
        match field {
            1 => Some(Self::Bits39),
            2 => Some(Self::Bits48),
            _ => None,
        }
    }
}

/// TT: what becomes of a function's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslationType {
    /// 00: untranslated requests go through the table, others are refused.
    Untranslated,
    /// 01: the function may have a TLB of its own as well (needs ECAP.DT).
    DeviceTlb,
    /// 10: requests pass untranslated (needs ECAP.PT); the table is not used.
    PassThrough,
}

impl TranslationType {
    const fn field(self) -> u64 {
        match self {
            Self::Untranslated => 0,
            Self::DeviceTlb => 1,
            Self::PassThrough => 2,
        }
    }
}

/// A present context entry, out of 256 in a context table of one page, at the
/// index [`SourceId::devfn`](crate::unit::SourceId::devfn).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextEntry {
    /// FPD, bit 1: faults of this function are not recorded.
    pub silent: bool,
    /// TT, bits 3:2.
    pub translation: TranslationType,
    /// SLPTPTR, bits 63:12: the second-stage table's root, page aligned.
    pub table: u64,
    /// AW, bits 66:64: the table's width.
    pub width: AddressWidth,
    /// DID, bits 87:72: the tag of cached translations.
    pub domain: u16,
}

impl ContextEntry {
    /// The entry's size in bytes; entry `devfn` lies at `devfn * SIZE`.
    pub const SIZE: usize = 16;

    /// Reads the entry as a unit with these capabilities and `host_width` address
    /// bits does. The error is the reason under which it refuses the DMA.
    pub const fn decode(
        raw: u128,
        capabilities: &Capabilities,
        extended: &ExtendedCapabilities,
        host_width: u8,
    ) -> Result<Self, FaultReason> {
        let (low, high) = halves(raw);
        if !flag(low, 0) {
            return Err(FaultReason::ContextNotPresent);
        }
        let reserved_low = 0xff0 | beyond_width(host_width);
        let reserved_high = 1 << 7 | u64::MAX << 24;
        if low & reserved_low != 0 || high & reserved_high != 0 {
            return Err(FaultReason::ContextReserved);
        }
        let translation = match get(low, 2, 2) {
            0 => TranslationType::Untranslated,
            1 if extended.device_tlb => TranslationType::DeviceTlb,
            2 if extended.pass_through => TranslationType::PassThrough,
            _ => return Err(FaultReason::ContextInvalid),
        };
        let Some(width) = AddressWidth::of_field(get(high, 0, 3)) else {
            return Err(FaultReason::ContextInvalid);
        };
        let domain = get(high, 8, 16) as u16;
        if !capabilities.supports(width) || domain as u32 >= capabilities.domain_count() {
            return Err(FaultReason::ContextInvalid);
        }
        Ok(Self {
            silent: Self::is_silent(raw),
            translation,
            table: low & !0xfff,
            width,
            domain,
        })
    }

    /// Whether a fault met at or below this entry goes unrecorded (FPD). Holds for
    /// absent and for malformed entries too.
    pub const fn is_silent(raw: u128) -> bool {
        flag(raw as u64, 1)
    }

    /// The domain an entry belongs to if it is present, without any check: for
    /// entries of one's own making.
    pub const fn domain_of(raw: u128) -> Option<u16> {
        let (low, high) = halves(raw);
        if flag(low, 0) {
            Some(get(high, 8, 16) as u16)
        } else {
            None
        }
    }

    /// The entry in memory. The low twelve bits of the address are dropped.
    pub const fn encode(self) -> u128 {
        let low = 1
            | put(self.silent as u64, 1, 1)
            | put(self.translation.field(), 2, 2)
            | self.table & !0xfff;
        let high = put(self.width.field(), 0, 3) | put(self.domain as u64, 8, 16);
        join(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> (Capabilities, ExtendedCapabilities) {
        let capabilities = Capabilities {
            domains: 2,
            width_39: true,
            ..Capabilities::default()
        };
        (capabilities, ExtendedCapabilities::default())
    }

    fn decode(raw: u128) -> Result<ContextEntry, FaultReason> {
        let (capabilities, extended) = unit();
        ContextEntry::decode(raw, &capabilities, &extended, 39)
    }

    const ENTRY: ContextEntry = ContextEntry {
        silent: false,
        translation: TranslationType::Untranslated,
        table: 0x7_6543_2000,
        width: AddressWidth::Bits39,
        domain: 0x7f,
    };

    #[test]
    fn an_entry_reads_back_and_an_empty_one_is_absent() {
        assert_eq!(ENTRY.encode(), 0x7f01_0000_0007_6543_2001);
        assert_eq!(decode(ENTRY.encode()), Ok(ENTRY));
        assert_eq!(decode(0), Err(FaultReason::ContextNotPresent));
        let silent = ContextEntry {
            silent: true,
            ..ENTRY
        };
        assert_eq!(decode(silent.encode()), Ok(silent));
        assert!(ContextEntry::is_silent(2));
    }

    #[test]
    fn any_reserved_bit_of_a_present_entry_is_refused_and_ignored_ones_are_not() {
        for bit in (4..12).chain(39..64).chain([71]).chain(88..128) {
            let raw = ENTRY.encode() | 1 << bit;
            assert_eq!(decode(raw), Err(FaultReason::ContextReserved), "bit {bit}");
        }
        for bit in 67..71 {
            assert_eq!(decode(ENTRY.encode() | 1 << bit), Ok(ENTRY));
        }
    }

    #[test]
    fn what_the_unit_does_not_offer_is_invalid() {
        let wide = ContextEntry {
            width: AddressWidth::Bits48,
            ..ENTRY
        };
        let passes = ContextEntry {
            translation: TranslationType::PassThrough,
            ..ENTRY
        };
        let beyond = ContextEntry {
            domain: 256,
            ..ENTRY
        };
        for entry in [wide, passes, beyond] {
            assert_eq!(decode(entry.encode()), Err(FaultReason::ContextInvalid));
        }
        assert_eq!(
            decode(ENTRY.encode() | 3 << 2),
            Err(FaultReason::ContextInvalid)
        );
        let (capabilities, mut extended) = unit();
        extended.pass_through = true;
        assert_eq!(
            ContextEntry::decode(passes.encode(), &capabilities, &extended, 39),
            Ok(passes)
        );
    }
}
