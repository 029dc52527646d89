//! The invalidation queue.
//!
//! One descriptor at a time, each followed by a wait descriptor that has the unit
//! write a status word. When [`Queue::execute`] returns the queue is empty, so
//! there is always room and never a question which wait was answered.

use super::registers::Registers;
use super::start::StartError;
use crate::host::poll::poll;
use crate::unit::UnitError;
use crate::vtd::registers::{IQA, IQH, IQT, QUEUE_OFFSET};
use crate::vtd::{Descriptor, FaultStatus, Global, QueueAddress, StatusWrite};
use core::sync::atomic::{Ordering, fence};
use hv_core::Hpa;
use hv_core::memory::{Frame, FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// The queue and the status word, one frame each.
pub(super) struct Queue {
    address: QueueAddress,
    status: Hpa,
    /// Where the next descriptor goes, a byte offset.
    tail: u64,
    /// What the last wait descriptor had the unit write.
    sequence: u32,
    /// Whether the write buffer is flushed before each descriptor.
    flush_first: bool,
    /// Set for good once the unit failed to answer: which descriptors it has
    /// carried out is not known any more.
    lost: bool,
}

impl Queue {
    /// Sets the queue up and turns it on. It is off before.
    pub(super) fn start<R: Mmio>(
        registers: &Registers<R>,
        mem: &impl PhysMemory,
        pool: &mut FramePool,
        flush_first: bool,
    ) -> Result<Self, StartError> {
        let base = pool.take(mem).ok_or(StartError::OutOfMemory)?;
        let status = pool.take(mem).ok_or(StartError::OutOfMemory)?;
        let address = QueueAddress {
            base: base.raw(),
            order: 0,
        };
        registers.window.write64(IQT, 0);
        registers.window.write64(IQA, address.encode());
        registers.turn(Global::QUEUED_INVALIDATION, true)?;
        Ok(Self {
            address,
            status,
            tail: 0,
            sequence: 0,
            flush_first,
            lost: false,
        })
    }

    /// Turns off a queue that an earlier owner left on, once it is empty.
    pub(super) fn stop_leftover<R: Mmio>(registers: &Registers<R>) -> Result<(), UnitError> {
        if !registers.state().contains(Global::QUEUED_INVALIDATION) {
            return Ok(());
        }
        poll(|| {
            let [head, tail] = [IQH, IQT].map(|at| registers.window.read64(at) & QUEUE_OFFSET);
            Ok(head == tail)
        })?;
        registers.turn(Global::QUEUED_INVALIDATION, false)
    }

    /// Whether the unit has answered everything so far.
    pub(super) fn health(&self) -> Result<(), UnitError> {
        if self.lost {
            Err(UnitError::NoAnswer)
        } else {
            Ok(())
        }
    }

    /// Has the unit carry out `descriptor` and waits for it. Stores to tables
    /// made before the call are what the unit reads from then on.
    pub(super) fn execute<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
        descriptor: Descriptor,
    ) -> Result<(), UnitError> {
        self.health()?;
        let result = self.post_and_wait(registers, mem, descriptor);
        self.lost = result.is_err();
        result
    }

    fn post_and_wait<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
        descriptor: Descriptor,
    ) -> Result<(), UnitError> {
        if self.flush_first {
            registers.flush_write_buffer()?;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let wait = Descriptor::Wait {
            status: Some(StatusWrite {
                address: self.status.raw(),
                data: self.sequence,
            }),
            interrupt: false,
            fence: false,
        };
        let base = Hpa::new(self.address.base);
        let queue = mem.frame(base).ok_or(UnitError::NoAnswer)?;
        self.push(queue, descriptor);
        self.push(queue, wait);
        // Table entries and descriptors before the doorbell: the unit may fetch as
        // soon as it sees the new tail.
        fence(Ordering::Release);
        registers.window.write64(IQT, self.tail);

        let status = mem.frame(self.status).ok_or(UnitError::NoAnswer)?;
        poll(|| {
            // Acquire: whatever the drained DMA wrote is read only after this.
            if status.words()[0].load(Ordering::Acquire) as u32 == self.sequence {
                return Ok(true);
            }
            let failed = registers.fault_status() & FaultStatus::QUEUE_FAILURES;
            if failed.is_empty() {
                Ok(false)
            } else {
                log::error!("VT-d: invalidation failed: {failed:?} at {descriptor:?}");
                Err(UnitError::NoAnswer)
            }
        })
    }

    /// Writes a descriptor into the next slot. The unit does not see it yet.
    #[inline]
    fn push(&mut self, queue: &Frame, descriptor: Descriptor) {
        let slot = self.tail as usize / 8;
        let raw = descriptor.encode();
        if let [low, high, ..] = &queue.words()[slot..] {
            low.store(raw as u64, Ordering::Relaxed);
            high.store((raw >> 64) as u64, Ordering::Relaxed);
        }
        self.tail = self.address.next(self.tail);
    }
}
