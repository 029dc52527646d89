//! Reading the fault records.
//!
//! The unit fills its records in turn. While a record is in use it drops further
//! faults of the same source, so what is read here says that a device misbehaves,
//! not how often.

use super::registers::Registers;
use crate::unit::{DmaFault, Fault, FaultCause, InterruptFault};
use crate::vtd::interrupt_fault::index_of;
use crate::vtd::registers::{EVENT_MASK, FECTL};
use crate::vtd::{Capabilities, FaultRecord, FaultStatus, InterruptFaultReason, RequestKind};
use hv_core::mmio::Mmio;

/// Where the records are, and which one is to be read next.
pub(super) struct FaultReader {
    offset: usize,
    records: usize,
    next: usize,
}

impl FaultReader {
    /// Turns the fault interrupt off, since faults are polled for, and forgets the
    /// faults of earlier owners.
    pub(super) fn start<R: Mmio>(registers: &Registers<R>, capabilities: &Capabilities) -> Self {
        registers.window.write32(FECTL, EVENT_MASK);
        let mut reader = Self {
            offset: usize::from(capabilities.fault_offset),
            records: usize::from(capabilities.fault_records),
            next: 0,
        };
        for _ in 0..reader.records {
            if reader.take(registers).is_none() {
                break;
            }
        }
        registers.clear_fault_status(FaultStatus::OVERFLOW | FaultStatus::QUEUE_FAILURES);
        reader
    }

    /// The oldest fault, whose record is freed.
    pub(super) fn take<R: Mmio>(&mut self, registers: &Registers<R>) -> Option<Fault> {
        let status = registers.fault_status();
        if !status.contains(FaultStatus::PENDING) {
            // Every record is free again: let the unit go on recording.
            if status.contains(FaultStatus::OVERFLOW) {
                log::warn!("VT-d: faults were lost, all records were in use");
                registers.clear_fault_status(FaultStatus::OVERFLOW);
            }
            return None;
        }
        let (index, record) = (0..self.records)
            .map(|ahead| (self.next + ahead) % self.records)
            .find_map(|index| Some((index, self.read(registers, index)?)))?;
        let in_use = self.offset + index * FaultRecord::SIZE + FaultRecord::IN_USE_OFFSET;
        registers.window.write32(in_use, FaultRecord::IN_USE);
        self.next = (index + 1) % self.records;
        let (source, cause) = (record.source, FaultCause::Vtd(record.reason));
        Some(match InterruptFaultReason::from_code(record.reason) {
            Some(_) => Fault::Interrupt(InterruptFault {
                source,
                index: index_of(record.page.raw()),
                cause,
            }),
            None => Fault::Dma(DmaFault {
                source,
                iova: record.page,
                write: record.kind == RequestKind::Write,
                cause,
            }),
        })
    }

    /// The high half, which has F, comes first: the unit fills the low one before
    /// it sets F.
    fn read<R: Mmio>(&self, registers: &Registers<R>, index: usize) -> Option<FaultRecord> {
        let record = self.offset + index * FaultRecord::SIZE;
        let high = registers.window.read64(record + 8);
        let low = registers.window.read64(record);
        FaultRecord::decode(u128::from(low) | u128::from(high) << 64)
    }
}
