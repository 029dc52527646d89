//! Fault records (VT-d 4.1, 11.4.14 "Fault Recording Registers") and the reasons
//! in them (appendix A "Non-Recoverable Fault Reason Encodings").
//!
//! ```text
//! 127 126 125 124 123  104 103   96 95       80 79     64 63       12 11      0
//! | F | T1 | AT   | PASID  | reason | PASID.. T2 | source  | address   | reserved |
//! ```

use super::bits::{flag, get, halves, join, put};
use crate::Iova;
use crate::unit::SourceId;

/// Why a unit refuses a DMA, as far as legacy mode knows reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum FaultReason {
    /// The bus's root entry has P = 0.
    #[error("root entry not present")]
    RootNotPresent = 0x1,
    /// The function's context entry has P = 0.
    #[error("context entry not present")]
    ContextNotPresent = 0x2,
    /// The context entry asks for a width, a translation type or a domain that
    /// the unit does not have.
    #[error("context entry invalid")]
    ContextInvalid = 0x3,
    /// The address lies above the table's width or the unit's.
    #[error("address beyond the domain's width")]
    BeyondWidth = 0x4,
    /// A write met an entry without write permission.
    #[error("page not writable")]
    NotWritable = 0x5,
    /// A read met an entry without read permission.
    #[error("page not readable")]
    NotReadable = 0x6,
    /// A paging entry points to where no table can be read.
    #[error("paging table unreadable")]
    TableUnreadable = 0x7,
    /// The root table cannot be read.
    #[error("root table unreadable")]
    RootUnreadable = 0x8,
    /// A root entry points to where no table can be read.
    #[error("context table unreadable")]
    ContextUnreadable = 0x9,
    /// A reserved bit is set in a present root entry.
    #[error("reserved bit set in root entry")]
    RootReserved = 0xa,
    /// A reserved bit is set in a present context entry.
    #[error("reserved bit set in context entry")]
    ContextReserved = 0xb,
    /// A reserved bit is set in a paging entry with a permission.
    #[error("reserved bit set in paging entry")]
    PagingReserved = 0xc,
    /// A translated or translation request of a function whose context entry
    /// allows none.
    #[error("translation requests blocked")]
    TranslatedBlocked = 0xd,
}

impl FaultReason {
    /// The reason of that code; `None` for those of other modes.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x1 => Self::RootNotPresent,
            0x2 => Self::ContextNotPresent,
            0x3 => Self::ContextInvalid,
            0x4 => Self::BeyondWidth,
            0x5 => Self::NotWritable,
            0x6 => Self::NotReadable,
            0x7 => Self::TableUnreadable,
            0x8 => Self::RootUnreadable,
            0x9 => Self::ContextUnreadable,
            0xa => Self::RootReserved,
            0xb => Self::ContextReserved,
            0xc => Self::PagingReserved,
            0xd => Self::TranslatedBlocked,
            _ => return None,
        })
    }

    /// The code in a fault record.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether FPD in the context entry silences it. The others are about the
    /// root entry or keep the context entry from being read.
    pub const fn is_qualified(self) -> bool {
        !matches!(
            self,
            Self::RootNotPresent
                | Self::RootUnreadable
                | Self::ContextUnreadable
                | Self::RootReserved
        )
    }
}

/// What the refused request was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestKind {
    /// A write.
    Write,
    /// A read.
    Read,
}

/// A recorded fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRecord {
    /// FI, bits 63:12: the page it went to.
    pub page: Iova,
    /// SID, bits 79:64: who sent it.
    pub source: SourceId,
    /// FR, bits 103:96: the code of a [`FaultReason`], or another one.
    pub reason: u8,
    /// T1, bit 126: set for a read.
    pub kind: RequestKind,
}

impl FaultRecord {
    /// A record's size in bytes.
    pub const SIZE: usize = 16;
    /// F as a bit of the record's last 32-bit word: the record is in use; written
    /// 1 to free it.
    pub const IN_USE: u32 = 1 << 31;
    /// The offset of that word in the record.
    pub const IN_USE_OFFSET: usize = 12;

    /// Reads a record; `None` if it is free (F = 0). The PASID fields mean
    /// nothing in legacy mode and are ignored, since some units fill them with
    /// noise.
    pub const fn decode(raw: u128) -> Option<Self> {
        let (low, high) = halves(raw);
        if !flag(high, 63) {
            return None;
        }
        Some(Self {
            page: Iova::new(low & !0xfff),
            source: SourceId::new(get(high, 0, 16) as u16),
            reason: get(high, 32, 8) as u8,
            kind: if flag(high, 62) {
                RequestKind::Read
            } else {
                RequestKind::Write
            },
        })
    }

    /// The record as registers show it, in use.
    pub const fn encode(self) -> u128 {
        let read = matches!(self.kind, RequestKind::Read);
        let high = put(self.source.raw() as u64, 0, 16)
            | put(self.reason as u64, 32, 8)
            | put(read as u64, 62, 1)
            | 1 << 63;
        join(self.page.page_base().raw(), high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_record_reads_back_whatever_its_pasid_bits_say() {
        let record = FaultRecord {
            page: Iova::new(0xdead_b000),
            source: SourceId::new(0x0018),
            reason: FaultReason::NotWritable.code(),
            kind: RequestKind::Write,
        };
        let raw = record.encode();
        assert_eq!(raw, 0x8000_0005_0000_0018_0000_0000_dead_b000);
        let noise = 0xf_ffff << 104 | 1 << 95;
        assert_eq!(FaultRecord::decode(raw | noise), Some(record));
        assert_eq!(FaultRecord::decode(raw & !(1 << 127)), None);
    }

    #[test]
    fn every_known_code_names_one_reason_in_words() {
        for code in 0..=u8::MAX {
            match FaultReason::from_code(code) {
                Some(reason) => {
                    assert_eq!(reason.code(), code);
                    assert!(!reason.to_string().is_empty());
                }
                None => assert!(code == 0 || code > 0xd),
            }
        }
    }
}
