//! Fault status, fault records and the fault event of the emulated unit.
//!
//! Intel VT-d specification, sections "Fault Logging" and "Fault Status
//! Register". Records fill in a circle; a record in use is never overwritten.

use super::event::Event;
use crate::vtd::{FaultRecord, FaultStatus};

/// How many records there are. A driver that reads them in its interrupt handler
/// sees the first faults of a burst with their addresses, which is what helps to
/// find the cause; how many followed is told by the overflow flag alone.
pub(super) const RECORDS: usize = 4;

/// In-use bit of a record: its highest one.
const IN_USE: u128 = (FaultRecord::IN_USE as u128) << (8 * FaultRecord::IN_USE_OFFSET);

/// The fault registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct FaultRegisters {
    /// The flags that stay until software clears them; PPF is computed.
    pub(super) sticky: FaultStatus,
    /// FRI: the record that made PPF set.
    pub(super) oldest: u8,
    /// The record that the next fault goes to.
    pub(super) next: u8,
    /// The records as registers show them.
    pub(super) records: [u128; RECORDS],
    /// FECTL and its followers.
    pub(super) event: Event,
}

impl FaultRegisters {
    /// The flags this unit ever sets by itself.
    pub(super) const STICKY: FaultStatus = FaultStatus::OVERFLOW.union(FaultStatus::QUEUE_ERROR);

    /// As after reset.
    pub(super) const RESET: Self = Self {
        sticky: FaultStatus::empty(),
        oldest: 0,
        next: 0,
        records: [0; RECORDS],
        event: Event::RESET,
    };

    /// All flags of FSTS.
    pub(super) fn status(&self) -> FaultStatus {
        let pending = self.records.iter().any(|record| record & IN_USE != 0);
        let mut status = self.sticky;
        status.set(FaultStatus::PENDING, pending);
        status
    }

    /// FSTS.
    pub(super) fn read_status(&self) -> u32 {
        self.status().bits() | u32::from(self.oldest) << 8
    }

    /// Writes FSTS: flags written as one are cleared.
    pub(super) fn write_status(&mut self, value: u32) {
        self.sticky.remove(FaultStatus::from_bits_truncate(value));
        self.withdraw_if_quiet();
    }

    /// The 32-bit word at `offset` bytes into the records; past them it is zero.
    pub(super) fn read_record(&self, offset: usize) -> u32 {
        let record = self.records.get(offset / FaultRecord::SIZE).copied();
        (record.unwrap_or(0) >> (offset % FaultRecord::SIZE * 8)) as u32
    }

    /// Writes a word of the records: a one in F frees the record, all else is
    /// read only.
    pub(super) fn write_record(&mut self, offset: usize, value: u32) {
        let frees = offset % FaultRecord::SIZE == FaultRecord::IN_USE_OFFSET
            && value & FaultRecord::IN_USE != 0;
        if let Some(record) = self.records.get_mut(offset / FaultRecord::SIZE)
            && frees
        {
            *record &= !IN_USE;
            self.withdraw_if_quiet();
        }
    }

    /// Records a fault. Without a free record it is lost, and the overflow flag
    /// set; until that is cleared all others are lost too, as the specification
    /// wants it.
    pub(super) fn record(&mut self, fault: FaultRecord) {
        let before = self.status();
        if before.contains(FaultStatus::OVERFLOW) {
            return;
        }
        let index = self.next;
        match self.records.get_mut(usize::from(index)) {
            Some(record) if *record & IN_USE == 0 => {
                *record = fault.encode();
                self.next = (index + 1) % RECORDS as u8;
                if !before.contains(FaultStatus::PENDING) {
                    self.oldest = index;
                }
            }
            _ => self.sticky.insert(FaultStatus::OVERFLOW),
        }
        self.raise_if_first(before);
    }

    /// The queue has met something malformed, and stands still.
    pub(super) fn queue_error(&mut self) {
        let before = self.status();
        self.sticky.insert(FaultStatus::QUEUE_ERROR);
        self.raise_if_first(before);
    }

    /// A status that comes on top of others is no new event.
    fn raise_if_first(&mut self, before: FaultStatus) {
        if before.is_empty() {
            self.event.raise();
        }
    }

    fn withdraw_if_quiet(&mut self) {
        if self.status().is_empty() {
            self.event.withdraw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Iova;
    use crate::unit::SourceId;
    use crate::vtd::{FaultReason, RequestKind};

    fn fault(page: u64) -> FaultRecord {
        FaultRecord {
            page: Iova::new(page << 12),
            source: SourceId::new(0x18),
            reason: FaultReason::NotWritable.code(),
            kind: RequestKind::Write,
        }
    }

    fn unmasked() -> FaultRegisters {
        let mut faults = FaultRegisters::RESET;
        faults.event.write(0, 0);
        faults
    }

    fn free(faults: &mut FaultRegisters, index: usize) {
        faults.write_record(index * 16 + 12, FaultRecord::IN_USE);
    }

    #[test]
    fn records_fill_in_a_circle_and_the_first_one_is_named() {
        let mut faults = unmasked();
        faults.record(fault(1));
        free(&mut faults, 0);
        assert!(faults.status().is_empty());
        faults.record(fault(2));
        assert_eq!(FaultStatus::oldest_record(faults.read_status()), 1);
        assert_eq!(FaultRecord::decode(faults.records[1]), Some(fault(2)));
        assert_eq!(faults.read_record(16), 2 << 12);
        assert_eq!(faults.read_record(16 + 8), 0x18);
    }

    #[test]
    fn a_fault_without_a_free_record_is_lost_until_overflow_is_cleared() {
        let mut faults = unmasked();
        for page in 0..5 {
            faults.record(fault(page));
        }
        assert!(faults.status().contains(FaultStatus::OVERFLOW));
        let full = faults.records;
        free(&mut faults, 0);
        faults.record(fault(6));
        assert_eq!(faults.records[1..], full[1..]);
        assert_eq!(FaultRecord::decode(faults.records[0]), None);
        faults.write_status(FaultStatus::OVERFLOW.bits());
        faults.record(fault(7));
        assert_eq!(FaultRecord::decode(faults.records[0]), Some(fault(7)));
    }

    #[test]
    fn only_the_first_status_raises_the_event() {
        let mut faults = unmasked();
        faults.record(fault(1));
        assert!(faults.event.sent.take().is_some());
        faults.record(fault(2));
        faults.queue_error();
        assert_eq!(faults.event.sent, None);
        free(&mut faults, 0);
        free(&mut faults, 1);
        faults.write_status(FaultStatus::QUEUE_ERROR.bits());
        faults.queue_error();
        assert!(faults.event.sent.is_some());
    }

    #[test]
    fn a_masked_event_goes_away_with_its_last_cause() {
        let mut faults = FaultRegisters::RESET;
        faults.record(fault(1));
        free(&mut faults, 0);
        faults.event.write(0, 0);
        assert_eq!(faults.event.sent, None);
    }

    #[test]
    fn software_cannot_write_a_record_or_set_a_flag() {
        let mut faults = FaultRegisters::RESET;
        for offset in (0..RECORDS * 16 + 32).step_by(4) {
            faults.write_record(offset, u32::MAX);
        }
        faults.write_status(u32::MAX);
        assert_eq!(faults.records, [0; RECORDS]);
        assert_eq!(faults.read_status(), 0);
    }
}
