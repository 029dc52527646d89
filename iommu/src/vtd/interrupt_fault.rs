//! Why a unit refuses an interrupt request (VT-d 4.1, 5.1.4 "Interrupt-remapping
//! Fault Conditions" and appendix A "Non-Recoverable Fault Reason Encodings").
//!
//! Recorded like DMA faults (see [`super::fault`]), but for the address: bits 63:48
//! of the record are the index of the entry that the request named.

/// The reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum InterruptFaultReason {
    /// A reserved bit is set in a remappable request.
    #[error("reserved bit set in interrupt request")]
    RequestReserved = 0x20,
    /// The index lies beyond the table.
    #[error("interrupt index beyond the table")]
    BeyondTable = 0x21,
    /// The entry has P = 0.
    #[error("interrupt entry not present")]
    NotPresent = 0x22,
    /// The table cannot be read.
    #[error("interrupt table unreadable")]
    TableUnreadable = 0x23,
    /// A reserved bit is set in a present entry.
    #[error("reserved bit set in interrupt entry")]
    EntryReserved = 0x24,
    /// A request in compatibility format, while these are blocked.
    #[error("interrupt request in compatibility format")]
    CompatibilityFormat = 0x25,
    /// The entry belongs to another device.
    #[error("interrupt entry of another device")]
    WrongSource = 0x26,
}

impl InterruptFaultReason {
    const ALL: [Self; 7] = [
        Self::RequestReserved,
        Self::BeyondTable,
        Self::NotPresent,
        Self::TableUnreadable,
        Self::EntryReserved,
        Self::CompatibilityFormat,
        Self::WrongSource,
    ];

    /// The reason of that code; `None` if it is one of DMA.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The code in a fault record.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether FPD of the entry silences it: it is about an entry that was read.
    pub const fn is_qualified(self) -> bool {
        matches!(
            self,
            Self::NotPresent | Self::EntryReserved | Self::WrongSource
        )
    }
}

/// The index in a record's fault information.
pub(crate) const fn index_of(fault_information: u64) -> u16 {
    (fault_information >> 48) as u16
}

/// Fault information that has this index.
pub(crate) const fn information_of(index: u16) -> u64 {
    (index as u64) << 48
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn every_code_names_one_reason_in_words() {
        let mut words = std::collections::BTreeSet::new();
        for code in 0..=u8::MAX {
            let reason = InterruptFaultReason::from_code(code);
            assert_eq!(reason.is_some(), (0x20..=0x26).contains(&code));
            words.extend(reason.map(|it| it.to_string()));
        }
        assert_eq!(words.len(), 7);
        assert_eq!(index_of(information_of(0x1234)), 0x1234);
    }
}
