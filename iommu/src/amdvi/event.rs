//! Events that a unit logs (AMD IOMMU 3.0, 2.5 "Event Logging").
//!
//! ```text
//!  first word                                                      second word
//!  63  60 59          48 47              32 31   20 19 16 15     0
//! | code |    flags     | domain or PASID  |  rsvd | PASID| device |  address  |
//! ```

use super::bits::{get, halves, join, put};
use crate::unit::SourceId;
use bitflags::bitflags;
use core::fmt;

/// EventCode, bits 63:60 of the first word (2.5, table "IOMMU Event Codes").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventCode {
    /// A reserved bit is set in a device table entry.
    IllegalDeviceEntry = 1,
    /// A DMA was refused by the tables.
    PageFault = 2,
    /// The device table could not be read.
    DeviceTableError = 3,
    /// A page table could not be read.
    PageTableError = 4,
    /// A command is malformed; the unit stopped fetching.
    IllegalCommand = 5,
    /// The command buffer could not be read.
    CommandError = 6,
    /// A device did not answer an invalidation of its TLB.
    IotlbTimeout = 7,
    /// A request of a kind the device may not send.
    InvalidRequest = 8,
}

impl EventCode {
    const ALL: [Self; 8] = [
        Self::IllegalDeviceEntry,
        Self::PageFault,
        Self::DeviceTableError,
        Self::PageTableError,
        Self::IllegalCommand,
        Self::CommandError,
        Self::IotlbTimeout,
        Self::InvalidRequest,
    ];

    /// The event of that code; `None` for one that this project does not switch
    /// on, or for an entry not yet written (0).
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == code)
    }

    /// Whether it tells of a DMA that was refused, rather than of the unit.
    pub const fn is_about_dma(self) -> bool {
        !matches!(
            self,
            Self::IllegalCommand | Self::CommandError | Self::IotlbTimeout
        )
    }
}

bitflags! {
    /// The flags of [`EventCode::PageFault`], from bit 48 of the first word on
    /// (2.5.3 "IO_PAGE_FAULT Event").
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct EventFlags: u16 {
        /// I: it was an interrupt request.
        const INTERRUPT = 1 << 3;
        /// PR: the entry that refused was present, or for an interrupt remaps.
        const PRESENT = 1 << 4;
        /// RW: it was a write; valid for other events about DMA as well.
        const WRITE = 1 << 5;
        /// PE: the device lacks the permission; 0 with PR clear.
        const PERMISSION = 1 << 6;
        /// RZ: a reserved bit is set in a table entry.
        const RESERVED = 1 << 7;
        /// TR: it was a translation request, not an access.
        const TRANSLATION = 1 << 8;
    }
}

/// An event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// What happened; the number itself if it is not known here.
    pub code: Result<EventCode, u8>,
    /// DeviceID, bits 15:0: who sent the DMA.
    pub device: SourceId,
    /// Bits 59:48.
    pub flags: EventFlags,
    /// The second word: the IOVA, or the address of the command.
    pub address: u64,
}

impl Event {
    /// Reads an entry of the log.
    pub fn decode(raw: u128) -> Self {
        let (first, address) = halves(raw);
        let code = get(first, 60, 4) as u8;
        Self {
            code: EventCode::from_code(code).ok_or(code),
            device: SourceId::new(get(first, 0, 16) as u16),
            flags: EventFlags::from_bits_truncate(get(first, 48, 12) as u16),
            address,
        }
    }

    /// The entry in the log.
    pub fn encode(self) -> u128 {
        let code = self.code.map_or_else(|code| code, |code| code as u8);
        let first = put(self.device.raw().into(), 0, 16)
            | put(self.flags.bits().into(), 48, 12)
            | put(code.into(), 60, 4);
        join(first, self.address)
    }

    /// The entry of the device's interrupt remapping table that a refused interrupt
    /// request named: the 11 bits of its data, from the address's bit 2 on.
    pub fn interrupt_index(&self) -> u16 {
        get(self.address, 2, 11) as u16
    }

    /// Why a DMA was refused; `None` if the event tells of something else.
    pub fn refusal(&self) -> Option<Refusal> {
        let code = self.code.ok().filter(|code| code.is_about_dma())?;
        let flags = self.flags;
        Some(Refusal { code, flags })
    }
}

/// Why a DMA was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Refusal {
    /// What happened.
    pub code: EventCode,
    /// Its details.
    pub flags: EventFlags,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.code {
            EventCode::PageFault if self.flags.contains(EventFlags::RESERVED) => {
                "a reserved bit is set in a table entry"
            }
            EventCode::PageFault if self.flags.contains(EventFlags::PERMISSION) => {
                "the device may not do that"
            }
            EventCode::PageFault if self.flags.contains(EventFlags::INTERRUPT) => {
                "the device was granted no such interrupt"
            }
            EventCode::PageFault => "the page is not mapped",
            EventCode::IllegalDeviceEntry => "the device table entry is malformed",
            EventCode::DeviceTableError => "the device table cannot be read",
            EventCode::PageTableError => "a page table cannot be read",
            EventCode::InvalidRequest => "the device may not send such a request",
            EventCode::IllegalCommand => "a command is malformed",
            EventCode::CommandError => "the command buffer cannot be read",
            EventCode::IotlbTimeout => "the device did not invalidate its TLB",
        };
        f.write_str(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const WRITE_FAULT: Event = Event {
        code: Ok(EventCode::PageFault),
        device: SourceId::new(0x0018),
        flags: EventFlags::WRITE
            .union(EventFlags::PRESENT)
            .union(EventFlags::PERMISSION),
        address: 0xdead_b000,
    };

    #[test]
    fn an_event_reads_back_and_other_fields_do_not_disturb() {
        let raw = WRITE_FAULT.encode();
        assert_eq!(raw, 0xdead_b000 << 64 | 0x2070_0000_0000_0018);
        let domain_and_pasid = 0xffff_000f_0000;
        assert_eq!(Event::decode(raw | domain_and_pasid), WRITE_FAULT);
        assert_eq!(Event::decode(0).code, Err(0));
    }

    #[test]
    fn only_events_about_dma_are_refusals_and_each_has_its_words() {
        let mut words = std::collections::BTreeSet::new();
        for code in 0..16 {
            let event = Event::decode(u128::from(code as u64) << 60);
            let about_dma = matches!(code, 1..=4 | 8);
            assert_eq!(event.refusal().is_some(), about_dma, "{code}");
            words.extend(event.refusal().map(|it| it.to_string()));
        }
        assert_eq!(words.len(), 5);
        let refusal = WRITE_FAULT.refusal().unwrap();
        assert_eq!(refusal.to_string(), "the device may not do that");
    }
}
