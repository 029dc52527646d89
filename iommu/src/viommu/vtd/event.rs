//! The two event interrupts of the unit: fault event and invalidation completion.
//!
//! Intel VT-d specification, "Fault Event" and "Invalidation Completion Event"
//! registers: control, data, address and upper address, the same for both.
//!
//! ```text
//!            condition               unmasked
//!   quiet ------------> pending (IP) --------> message sent, IP clear
//!     ^                   |
//!     +-------------------+  software cleared all causes while it was masked
//! ```

use crate::viommu::Msi;
use crate::vtd::registers::{EVENT_MASK as MASK, EVENT_PENDING as PENDING};

/// The registers of one event, and the message it has sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    /// IM and IP; no other bit is ever set.
    pub(super) control: u32,
    /// The message's data word.
    pub(super) data: u32,
    /// Bits 31:2 of the message's address.
    pub(super) address: u32,
    /// Bits 63:32 of the message's address.
    pub(super) upper: u32,
    /// Sent, and not yet delivered by whoever owns the interrupt controller.
    pub(super) sent: Option<Msi>,
}

impl Event {
    /// As after reset: masked.
    pub(super) const RESET: Self = Self {
        control: MASK,
        data: 0,
        address: 0,
        upper: 0,
        sent: None,
    };

    /// Register `index` of the four, in the order of their offsets.
    pub(super) const fn read(&self, index: usize) -> u32 {
        match index {
            0 => self.control,
            1 => self.data,
            2 => self.address,
            _ => self.upper,
        }
    }

    /// Writes register `index` of the four.
    pub(super) fn write(&mut self, index: usize, value: u32) {
        match index {
            0 => {
                self.control = (self.control & PENDING) | (value & MASK);
                self.send_if_unmasked();
            }
            1 => self.data = value,
            2 => self.address = value & !3,
            _ => self.upper = value,
        }
    }

    /// The condition arose.
    pub(super) fn raise(&mut self) {
        self.control |= PENDING;
        self.send_if_unmasked();
    }

    /// Software cleared all causes: what was not sent yet is not sent any more.
    pub(super) fn withdraw(&mut self) {
        self.control &= !PENDING;
    }

    fn send_if_unmasked(&mut self) {
        if self.control & (MASK | PENDING) == PENDING {
            self.control &= !PENDING;
            self.sent = Some(Msi {
                address: u64::from(self.upper) << 32 | u64::from(self.address),
                data: self.data,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_event_is_sent_at_unmasking_once() {
        let mut event = Event::RESET;
        event.write(1, 0x41);
        event.write(2, 0xfee0_0003);
        event.write(3, 1);
        event.raise();
        assert_eq!(event.sent, None);
        assert_eq!(event.read(0), MASK | PENDING);
        event.write(0, 0);
        let message = Msi {
            address: 0x1_fee0_0000,
            data: 0x41,
        };
        assert_eq!(event.sent.take(), Some(message));
        event.write(0, MASK);
        event.write(0, 0);
        assert_eq!(event.sent, None);
    }

    #[test]
    fn an_event_withdrawn_while_masked_is_never_sent() {
        let mut event = Event::RESET;
        event.raise();
        event.withdraw();
        event.write(0, 0);
        assert_eq!(event.sent, None);
    }

    #[test]
    fn software_cannot_set_the_pending_bit() {
        let mut event = Event::RESET;
        event.write(0, PENDING);
        assert_eq!(event.read(0), 0);
        assert_eq!(event.sent, None);
    }
}
