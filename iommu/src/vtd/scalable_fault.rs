//! The reasons that only scalable mode knows (VT-d 4.1, 7.1.3 "Fault conditions and
//! Remapping hardware behavior for various request", codes SRT.* to SGN.*). They
//! share the field of a record with [`FaultReason`](super::FaultReason).

/// Why a unit refuses a DMA in scalable mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum ScalableFaultReason {
    /// RTADDR asks for a mode that the unit does not have.
    #[error("root table address of an unknown mode")]
    RootMode = 0x31,
    /// The root entry cannot be read.
    #[error("root entry unreadable")]
    RootUnreadable = 0x38,
    /// The bus's half of its root entry has P = 0.
    #[error("root entry not present")]
    RootNotPresent = 0x39,
    /// A reserved bit is set in a present root entry.
    #[error("reserved bit set in root entry")]
    RootReserved = 0x3a,
    /// The context entry cannot be read.
    #[error("context entry unreadable")]
    ContextUnreadable = 0x40,
    /// The function's context entry has P = 0.
    #[error("context entry not present")]
    ContextNotPresent = 0x41,
    /// A reserved bit is set in a present context entry.
    #[error("reserved bit set in context entry")]
    ContextReserved = 0x42,
    /// The context entry asks for what the unit does not have.
    #[error("context entry invalid")]
    ContextInvalid = 0x43,
    /// A translation request or a translated one while DTE is clear.
    #[error("translation requests blocked")]
    TranslatedBlocked = 0x44,
    /// A request with a PASID while PASIDE is clear.
    #[error("requests with a PASID blocked")]
    PasidBlocked = 0x45,
    /// The PASID is beyond the directory.
    #[error("PASID beyond the directory")]
    PasidTooLarge = 0x46,
    /// The PASID directory entry cannot be read.
    #[error("PASID directory entry unreadable")]
    DirectoryUnreadable = 0x50,
    /// The PASID directory entry has P = 0.
    #[error("PASID directory entry not present")]
    DirectoryNotPresent = 0x51,
    /// A reserved bit is set in a present PASID directory entry.
    #[error("reserved bit set in PASID directory entry")]
    DirectoryReserved = 0x52,
    /// The PASID table entry cannot be read.
    #[error("PASID table entry unreadable")]
    PasidUnreadable = 0x58,
    /// The PASID table entry has P = 0.
    #[error("PASID table entry not present")]
    PasidNotPresent = 0x59,
    /// A reserved bit is set in a present PASID table entry.
    #[error("reserved bit set in PASID table entry")]
    PasidReserved = 0x5a,
    /// The PASID table entry asks for what the unit does not have.
    #[error("PASID table entry invalid")]
    PasidInvalid = 0x5b,
    /// A first-stage entry cannot be read.
    #[error("first-stage paging table unreadable")]
    FirstStageUnreadable = 0x70,
    /// A first-stage entry has P = 0.
    #[error("page not mapped")]
    NotMapped = 0x71,
    /// A reserved bit is set in a present first-stage entry.
    #[error("reserved bit set in first-stage paging entry")]
    FirstStageReserved = 0x72,
    /// The first-stage root cannot be read.
    #[error("first-stage root table unreadable")]
    FirstStageRoot = 0x73,
    /// A second-stage entry cannot be read.
    #[error("second-stage paging table unreadable")]
    SecondStageUnreadable = 0x78,
    /// A second-stage entry lacks a permission.
    #[error("page not mapped, or not for this access")]
    SecondStagePermission = 0x79,
    /// A reserved bit is set in a second-stage entry.
    #[error("reserved bit set in second-stage paging entry")]
    SecondStageReserved = 0x7a,
    /// The upper bits of the address are not copies of the table's highest one.
    #[error("address not canonical")]
    NotCanonical = 0x80,
    /// A first-stage entry has U/S = 0.
    #[error("page reserved to supervisor requests")]
    Supervisor = 0x81,
    /// The address lies above the unit's width.
    #[error("address beyond the unit's width")]
    BeyondWidth = 0x83,
    /// The address lies above the second-stage table's width.
    #[error("address beyond the domain's width")]
    BeyondTable = 0x84,
    /// A write met an entry without write permission.
    #[error("page not writable")]
    NotWritable = 0x85,
    /// A read met an entry without read permission.
    #[error("page not readable")]
    NotReadable = 0x86,
    /// The address is in the range of interrupt messages, or leads there.
    #[error("address of interrupt messages")]
    InterruptRange = 0x87,
    /// An accessed or dirty bit is to be set through walks that do not snoop.
    #[error("accessed or dirty bit to be set without snooping")]
    BitWithoutSnoop = 0x90,
    /// An accessed or dirty bit could not be set.
    #[error("accessed or dirty bit could not be set")]
    BitNotSet = 0x91,
}

impl ScalableFaultReason {
    /// Every reason.
    const ALL: [Self; 34] = [
        Self::RootMode,
        Self::RootUnreadable,
        Self::RootNotPresent,
        Self::RootReserved,
        Self::ContextUnreadable,
        Self::ContextNotPresent,
        Self::ContextReserved,
        Self::ContextInvalid,
        Self::TranslatedBlocked,
        Self::PasidBlocked,
        Self::PasidTooLarge,
        Self::DirectoryUnreadable,
        Self::DirectoryNotPresent,
        Self::DirectoryReserved,
        Self::PasidUnreadable,
        Self::PasidNotPresent,
        Self::PasidReserved,
        Self::PasidInvalid,
        Self::FirstStageUnreadable,
        Self::NotMapped,
        Self::FirstStageReserved,
        Self::FirstStageRoot,
        Self::SecondStageUnreadable,
        Self::SecondStagePermission,
        Self::SecondStageReserved,
        Self::NotCanonical,
        Self::Supervisor,
        Self::BeyondWidth,
        Self::BeyondTable,
        Self::NotWritable,
        Self::NotReadable,
        Self::InterruptRange,
        Self::BitWithoutSnoop,
        Self::BitNotSet,
    ];

    /// The reason of that code; `None` for one that is not here.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vtd::FaultReason;
    use std::string::ToString;

    #[test]
    fn the_codes_of_the_two_modes_do_not_meet_and_each_has_words() {
        for reason in ScalableFaultReason::ALL {
            let code = reason as u8;
            assert_eq!(ScalableFaultReason::from_code(code), Some(reason));
            assert_eq!(FaultReason::from_code(code), None);
            assert!(!reason.to_string().is_empty());
        }
        assert_eq!(ScalableFaultReason::from_code(5), None);
    }
}
