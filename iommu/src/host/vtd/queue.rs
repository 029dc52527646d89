//! The invalidation queue.

use super::registers::Registers;
use super::start::StartError;
use crate::host::poll::poll;
use crate::host::ring::{Port, Ring};
use crate::unit::UnitError;
use crate::vtd::registers::{IQA, IQH, IQT, QUEUE_OFFSET};
use crate::vtd::{Descriptor, FaultStatus, Global, QueueAddress, StatusWrite};
use core::fmt::Debug;
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// How large a queue's descriptors are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DescriptorSize {
    /// 128 bits (IQA.DW = 0): all that legacy mode has.
    Bits128,
    /// 256 bits (IQA.DW = 1): what scalable mode's own descriptors need. Those of
    /// legacy mode are padded with zeros.
    Bits256,
}

/// The queue and the status word, one frame each.
pub(super) struct Queue<'m> {
    ring: Ring<'m>,
    /// Whether the write buffer is flushed before each use.
    flush_first: bool,
}

impl<'m> Queue<'m> {
    /// Sets the queue up and turns it on. It is off before.
    pub(super) fn start<R: Mmio>(
        registers: &Registers<R>,
        mem: &'m impl PhysMemory,
        pool: &mut FramePool,
        size: DescriptorSize,
        flush_first: bool,
    ) -> Result<Self, StartError> {
        let (slot, wide) = match size {
            DescriptorSize::Bits128 => (Descriptor::SIZE as u64, 0),
            DescriptorSize::Bits256 => (2 * Descriptor::SIZE as u64, QueueAddress::WIDE),
        };
        let ring = Ring::new(mem, pool, slot).ok_or(StartError::OutOfMemory)?;
        let place = QueueAddress {
            base: ring.base().raw(),
            order: 0,
        };
        // The size first: it says how the tail is read.
        registers.window.write64(IQA, place.encode() | wide);
        registers.window.write64(IQT, 0);
        registers.turn(Global::QUEUED_INVALIDATION, true)?;
        Ok(Self { ring, flush_first })
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
        self.ring.health()
    }

    /// Has the unit carry out `descriptors` in this order, and waits for it.
    #[inline(always)]
    pub(super) fn execute<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        descriptors: &[u128],
    ) -> Result<(), UnitError> {
        if self.flush_first {
            registers.flush_write_buffer()?;
        }
        self.ring.execute(registers, descriptors)
    }
}

impl<R: Mmio> Port for Registers<R> {
    fn wait_command(&self, address: Hpa, number: u32) -> u128 {
        Descriptor::Wait {
            status: Some(StatusWrite {
                address: address.raw(),
                data: number,
            }),
            interrupt: false,
            fence: false,
        }
        .encode()
    }

    fn ring_doorbell(&self, tail: u64) {
        self.window.write64(IQT, tail);
    }

    fn failure(&self) -> Option<impl Debug> {
        let failed = self.fault_status() & FaultStatus::QUEUE_FAILURES;
        (!failed.is_empty()).then_some(failed)
    }
}
