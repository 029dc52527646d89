//! The interrupt remapping table entry, in the format for remapped interrupts (VT-d
//! 4.1, 9.10 "Interrupt Remapping Table Entry (IRTE) for Remapped Interrupts").
//!
//! ```text
//! 127   84 83 82 81 80 79     64 63         32 31  24 23  16 15 14  12 11   8 7 5 4  3  2  1   0
//! | rsvd  | SVT | SQ  |  SID   | destination | rsvd | vector |IM| rsvd | AVAIL|DLM|TM|RH|DM|FPD| P |
//! ```
//!
//! Entries of posted interrupts (IM = 1) are not made, and refused where the
//! emulated unit meets one: it does not offer them (CAP.PI).

use super::bits::{flag, get, halves, join, put};
use super::interrupt_fault::InterruptFaultReason;
use crate::unit::SourceId;

/// Who may use an entry (SVT, bits 83:82, with SQ and SID).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceCheck {
    /// SVT = 00: whoever sends a request with this index.
    Anybody,
    /// SVT = 01: the function with this id. SQ, bits 81:80, says which bits of the
    /// function number do not matter: none, bit 2, bits 2:1, or all three.
    Function(SourceId, u8),
    /// SVT = 10: functions on buses from the first to the last, in SID's two bytes.
    Buses {
        /// SID, bits 15:8.
        first: u8,
        /// SID, bits 7:0.
        last: u8,
    },
}

impl SourceCheck {
    /// Whether `source` may use the entry.
    pub const fn allows(self, source: SourceId) -> bool {
        match self {
            Self::Anybody => true,
            Self::Function(owner, ignored) => {
                let mask: u16 = match ignored & 3 {
                    0 => 0xffff,
                    1 => !0b100,
                    2 => !0b110,
                    _ => !0b111,
                };
                owner.raw() & mask == source.raw() & mask
            }
            Self::Buses { first, last } => first <= source.bus() && source.bus() <= last,
        }
    }
}

/// A present entry: what a request that names it becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptEntry {
    /// FPD, bit 1: faults of requests that name it are not recorded.
    pub silent: bool,
    /// DM, bit 2: the destination is logical.
    pub logical: bool,
    /// RH, bit 3: one CPU of several that are addressed is enough.
    pub redirection_hint: bool,
    /// TM, bit 4: level triggered.
    pub level: bool,
    /// DLM, bits 7:5: the delivery mode, 0 for fixed.
    pub delivery: u8,
    /// V, bits 23:16.
    pub vector: u8,
    /// DST, bits 63:32: all of them with extended interrupt mode (IRTA.EIME), or
    /// else an 8-bit APIC id in bits 47:40. See [`InterruptEntry::xapic`].
    pub destination: u32,
    /// SVT, SQ and SID.
    pub check: SourceCheck,
}

impl InterruptEntry {
    /// The entry's size in bytes.
    pub const SIZE: usize = 16;

    /// An entry by which `owner` alone raises `vector`, edge triggered, at the CPU
    /// whose APIC id has 8 bits.
    pub const fn xapic(owner: SourceId, apic_id: u8, vector: u8) -> Self {
        Self {
            silent: false,
            logical: false,
            redirection_hint: false,
            level: false,
            delivery: 0,
            vector,
            destination: (apic_id as u32) << 8,
            check: SourceCheck::Function(owner, 0),
        }
    }

    /// FPD of an entry that may be anything else than well formed.
    pub const fn is_silent(raw: u128) -> bool {
        raw & 1 << 1 != 0
    }

    /// Reads the entry for a request of `source`, as a unit without posted
    /// interrupts does.
    ///
    /// # Errors
    /// The reason for which the request is refused.
    pub const fn decode(raw: u128, source: SourceId) -> Result<Self, InterruptFaultReason> {
        let (low, high) = halves(raw);
        if !flag(low, 0) {
            return Err(InterruptFaultReason::NotPresent);
        }
        // Bits 31:24 and IM with 14:12; and all above SVT.
        if low & 0xff00_f000 != 0 || high >> 20 != 0 {
            return Err(InterruptFaultReason::EntryReserved);
        }
        let sid = get(high, 0, 16) as u16;
        let check = match get(high, 18, 2) {
            0 => SourceCheck::Anybody,
            1 => SourceCheck::Function(SourceId::new(sid), get(high, 16, 2) as u8),
            2 => SourceCheck::Buses {
                first: (sid >> 8) as u8,
                last: sid as u8,
            },
            _ => return Err(InterruptFaultReason::EntryReserved),
        };
        if !check.allows(source) {
            return Err(InterruptFaultReason::WrongSource);
        }
        Ok(Self {
            silent: flag(low, 1),
            logical: flag(low, 2),
            redirection_hint: flag(low, 3),
            level: flag(low, 4),
            delivery: get(low, 5, 3) as u8,
            vector: get(low, 16, 8) as u8,
            destination: get(low, 32, 32) as u32,
            check,
        })
    }

    /// The entry in memory.
    pub const fn encode(self) -> u128 {
        let low = 1
            | put(self.silent as u64, 1, 1)
            | put(self.logical as u64, 2, 1)
            | put(self.redirection_hint as u64, 3, 1)
            | put(self.level as u64, 4, 1)
            | put(self.delivery as u64, 5, 3)
            | put(self.vector as u64, 16, 8)
            | put(self.destination as u64, 32, 32);
        let high = match self.check {
            SourceCheck::Anybody => 0,
            SourceCheck::Function(source, ignored) => {
                source.raw() as u64 | put(ignored as u64, 16, 2) | 1 << 18
            }
            SourceCheck::Buses { first, last } => (first as u64) << 8 | last as u64 | 2 << 18,
        };
        join(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: SourceId = SourceId::new(0x0018);
    const OTHER: SourceId = SourceId::new(0x0019);

    #[test]
    fn an_entry_has_the_documented_bits_and_reads_back() {
        let entry = InterruptEntry::xapic(OWNER, 5, 0x41);
        assert_eq!(entry.encode(), 0x4_0018_0000_0500_0041_0001);
        assert_eq!(InterruptEntry::decode(entry.encode(), OWNER), Ok(entry));
        let everything = InterruptEntry {
            silent: true,
            logical: true,
            redirection_hint: true,
            level: true,
            delivery: 1,
            destination: u32::MAX,
            check: SourceCheck::Buses { first: 0, last: 3 },
            ..entry
        };
        let raw = everything.encode();
        assert_eq!(InterruptEntry::decode(raw, OWNER), Ok(everything));
        assert!(InterruptEntry::is_silent(raw));
    }

    #[test]
    fn an_entry_is_its_owners_alone() {
        let raw = InterruptEntry::xapic(OWNER, 0, 0x41).encode();
        let refused = Err(InterruptFaultReason::WrongSource);
        assert_eq!(InterruptEntry::decode(raw, OTHER), refused);
        let function = |ignored| SourceCheck::Function(OWNER, ignored);
        for (check, allowed) in [
            (SourceCheck::Anybody, true),
            (function(0), false),
            (function(1), false),
            (function(2), false),
            (function(3), true),
            (SourceCheck::Buses { first: 0, last: 0 }, true),
            (SourceCheck::Buses { first: 1, last: 9 }, false),
        ] {
            assert_eq!(check.allows(OTHER), allowed, "{check:?}");
        }
    }

    #[test]
    fn absent_and_malformed_entries_are_refused_each_for_its_reason() {
        use InterruptFaultReason::{EntryReserved, NotPresent};
        let raw = InterruptEntry::xapic(OWNER, 0, 0x41).encode();
        assert_eq!(InterruptEntry::decode(raw & !1, OWNER), Err(NotPresent));
        for bit in (12..16).chain(24..32).chain(84..128) {
            let refusal = InterruptEntry::decode(raw | 1 << bit, OWNER);
            assert_eq!(refusal, Err(EntryReserved), "bit {bit}");
        }
        let reserved_check = raw | 3 << 82;
        assert_eq!(
            InterruptEntry::decode(reserved_check, OWNER),
            Err(EntryReserved)
        );
    }
}
