//! Reading the event log.
//!
//! A ring in memory that the unit appends to. When it is full the unit drops
//! events and says so once; a device that misbehaves thus costs one page of
//! memory and the time its reader is willing to spend.

use super::registers::Registers;
use super::start::StartError;
use crate::Iova;
use crate::amdvi::event::{EventCode, EventFlags};
use crate::amdvi::registers::{EVENT_HEAD, EVENT_LOG, EVENT_TAIL};
use crate::amdvi::{Buffer, Control, Event, Status};
use crate::unit::{DmaFault, Fault, FaultCause, InterruptFault, UnitError};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// How often an entry is looked at that the tail says is there: some units move
/// the tail before the entry arrives in memory.
const MAX_LOOKS: u32 = 1000;

/// The log.
pub(super) struct EventLog {
    ring: Buffer,
    /// Where the next event is read, a byte offset.
    head: u64,
    /// Whether the unit was seen to write events.
    works: bool,
}

impl EventLog {
    /// Turns the log on, empty. It is off before.
    pub(super) fn start<R: Mmio>(
        registers: &Registers<R>,
        mem: &impl PhysMemory,
        pool: &mut FramePool,
    ) -> Result<Self, StartError> {
        let base = pool.take(mem).ok_or(StartError::OutOfMemory)?;
        let ring = Buffer {
            base: base.raw(),
            length: Buffer::ONE_PAGE,
        };
        registers.window.write64(EVENT_LOG, ring.encode());
        registers.window.write64(EVENT_HEAD, 0);
        registers.window.write64(EVENT_TAIL, 0);
        registers.clear_status(Status::EVENT_OVERFLOW);
        registers.turn(Control::EVENT_LOG, true);
        Ok(Self {
            ring,
            head: 0,
            works: false,
        })
    }

    /// Turns the log off; waits until the unit writes nothing.
    pub(super) fn turn_off<R: Mmio>(registers: &Registers<R>) -> Result<(), UnitError> {
        registers.turn(Control::EVENT_LOG, false);
        registers.wait_stopped(Status::EVENTS_RUN)
    }

    /// Whether the unit writes events.
    pub(super) fn works(&self) -> bool {
        self.works
    }

    /// To be called when an event is due: notes whether there is one, and forgets
    /// all there are.
    pub(super) fn expect_event<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
    ) {
        while self.next(registers, mem).is_some() {
            self.works = true;
        }
    }

    /// Whether some device may not have answered an invalidation of its TLB: the log
    /// says so, or events were lost. Takes no event out.
    pub(super) fn may_have_timeout<R: Mmio>(
        &self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
    ) -> bool {
        let tail = registers.window.read64(EVENT_TAIL) & Buffer::OFFSET;
        let Some(frame) = mem.frame(Hpa::new(self.ring.base)) else {
            return true;
        };
        let mut at = self.head;
        while at != tail && tail < self.ring.bytes() {
            let slot = at as usize / 8;
            let code = frame.words().get(slot).and_then(|first| {
                let low = filled(first);
                Event::decode(low.into()).code.ok()
            });
            // An entry that is not known, or still not there, may be one.
            if code.is_none_or(|code| code == EventCode::IotlbTimeout) {
                return true;
            }
            at = self.ring.next(at);
        }
        registers.status().contains(Status::EVENT_OVERFLOW)
    }

    /// The oldest event about something that was refused. What the unit says about itself goes
    /// to the operator.
    pub(super) fn take<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
    ) -> Option<Fault> {
        while let Some(event) = self.next(registers, mem) {
            let Some(refusal) = event.refusal() else {
                log::error!("AMD-Vi: {:?} at {:#x}", event.code, event.address);
                continue;
            };
            let (source, cause) = (event.device, FaultCause::AmdVi(refusal));
            if event.flags.contains(EventFlags::INTERRUPT) {
                let index = event.interrupt_index();
                return Some(Fault::Interrupt(InterruptFault {
                    source,
                    index,
                    cause,
                }));
            }
            return Some(Fault::Dma(DmaFault {
                source,
                iova: Iova::new(event.address).page_base(),
                write: event.flags.contains(EventFlags::WRITE),
                cause,
            }));
        }
        // All is read: let the unit go on logging.
        if registers.status().contains(Status::EVENT_OVERFLOW) {
            log::warn!("AMD-Vi: events were lost, the log was full");
            self.restart(registers);
        }
        None
    }

    /// The oldest event, whose entry is freed.
    fn next<R: Mmio>(&mut self, registers: &Registers<R>, mem: &impl PhysMemory) -> Option<Event> {
        let tail = registers.window.read64(EVENT_TAIL) & Buffer::OFFSET;
        if tail == self.head || tail >= self.ring.bytes() {
            return None;
        }
        let frame = mem.frame(Hpa::new(self.ring.base))?;
        let slot = self.head as usize / 8;
        let [first, second] = frame.words().get(slot..)?.first_chunk()?;
        filled(first);
        // Zeroed, so that what is found here the next time round is new.
        let low = first.swap(0, Ordering::AcqRel);
        let high = second.swap(0, Ordering::AcqRel);
        self.head = self.ring.next(self.head);
        registers.window.write64(EVENT_HEAD, self.head);
        Some(Event::decode(u128::from(low) | u128::from(high) << 64))
    }

    /// After an overflow the log stands still until it is turned off and on.
    fn restart<R: Mmio>(&self, registers: &Registers<R>) {
        if Self::turn_off(registers).is_err() {
            log::error!("AMD-Vi: the event log does not stop");
        }
        registers.clear_status(Status::EVENT_OVERFLOW);
        registers.turn(Control::EVENT_LOG, true);
    }
}

/// An entry's first word, once it is there. The code is in it. Acquire: the second one
/// came with it.
fn filled(first: &AtomicU64) -> u64 {
    for _ in 0..MAX_LOOKS {
        let word = first.load(Ordering::Acquire);
        if word != 0 {
            return word;
        }
        core::hint::spin_loop();
    }
    0
}
