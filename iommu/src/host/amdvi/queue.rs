//! The command buffer.
//!
//! One command at a time, each followed by a COMPLETION_WAIT that has the unit
//! store a number. When [`Queue::execute`] returns the buffer is empty, so there
//! is always room and never a question which wait was answered.

use super::registers::Registers;
use super::start::StartError;
use crate::amdvi::registers::{COMMAND_BUFFER, COMMAND_HEAD, COMMAND_TAIL};
use crate::amdvi::{Buffer, Command, Control, Status};
use crate::host::poll::poll;
use crate::unit::UnitError;
use core::sync::atomic::{Ordering, fence};
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// The buffer and the word that waits are answered in, one frame each.
pub(super) struct Queue {
    ring: Buffer,
    answer: Hpa,
    /// Where the next command goes, a byte offset.
    tail: u64,
    /// What the last COMPLETION_WAIT had the unit store.
    sequence: u64,
    /// Set for good once the unit failed to answer: which commands it has carried
    /// out is not known any more.
    lost: bool,
}

impl Queue {
    /// Sets the buffer up. It is off, and stays so until [`Queue::turn_on`].
    pub(super) fn new(mem: &impl PhysMemory, pool: &mut FramePool) -> Result<Self, StartError> {
        let base = pool.take(mem).ok_or(StartError::OutOfMemory)?;
        let answer = pool.take(mem).ok_or(StartError::OutOfMemory)?;
        Ok(Self {
            ring: Buffer {
                base: base.raw(),
                length: Buffer::ONE_PAGE,
            },
            answer,
            tail: 0,
            sequence: 0,
            lost: false,
        })
    }

    /// Starts over with an empty buffer, which is off before. The unit fetches
    /// only while it is enabled.
    pub(super) fn turn_on<R: Mmio>(&mut self, registers: &Registers<R>) {
        self.tail = 0;
        registers.window.write64(COMMAND_BUFFER, self.ring.encode());
        registers.window.write64(COMMAND_HEAD, 0);
        registers.window.write64(COMMAND_TAIL, 0);
        registers.turn(Control::COMMANDS, true);
    }

    /// Turns the buffer off; waits until the unit fetches nothing.
    pub(super) fn turn_off<R: Mmio>(registers: &Registers<R>) -> Result<(), UnitError> {
        registers.turn(Control::COMMANDS, false);
        registers.wait_stopped(Status::COMMANDS_RUN)
    }

    /// Gives the unit a command that it must refuse, waits until it has looked at
    /// it, and turns the buffer on anew.
    pub(super) fn provoke_event<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
    ) -> Result<(), UnitError> {
        self.push(mem, Command::ILLEGAL)?;
        self.ring_doorbell(registers);
        // A unit either stops at the command, as specified, or skips it.
        poll(|| {
            let stopped = !registers.status().contains(Status::COMMANDS_RUN);
            let head = registers.window.read64(COMMAND_HEAD) & Buffer::OFFSET;
            Ok(stopped || head == self.tail)
        })?;
        Self::turn_off(registers)?;
        self.turn_on(registers);
        Ok(())
    }

    /// Whether the unit has answered everything so far.
    pub(super) fn health(&self) -> Result<(), UnitError> {
        if self.lost {
            Err(UnitError::NoAnswer)
        } else {
            Ok(())
        }
    }

    /// Has the unit carry out `command` and waits for it. Stores to tables made
    /// before the call are what the unit reads from then on.
    pub(super) fn execute<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
        command: Command,
    ) -> Result<(), UnitError> {
        self.health()?;
        let result = self.post_and_wait(registers, mem, command);
        self.lost = result.is_err();
        result
    }

    fn post_and_wait<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        mem: &impl PhysMemory,
        command: Command,
    ) -> Result<(), UnitError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.push(mem, command.encode())?;
        let wait = Command::CompletionWait {
            address: self.answer.raw(),
            data: self.sequence,
        };
        self.push(mem, wait.encode())?;
        self.ring_doorbell(registers);

        let answer = mem.frame(self.answer).ok_or(UnitError::NoAnswer)?;
        poll(|| {
            // Acquire: whatever the drained DMA wrote is read only after this.
            if answer.words()[0].load(Ordering::Acquire) == self.sequence {
                return Ok(true);
            }
            if registers.status().contains(Status::COMMANDS_RUN) {
                return Ok(false);
            }
            log::error!("AMD-Vi: the unit stopped at {command:?}");
            Err(UnitError::NoAnswer)
        })
    }

    /// Shows the unit what was pushed. Release: it may fetch at once, commands and
    /// the tables they are about.
    fn ring_doorbell<R: Mmio>(&self, registers: &Registers<R>) {
        fence(Ordering::Release);
        registers.window.write64(COMMAND_TAIL, self.tail);
    }

    /// Writes a command into the next slot. The unit does not see it yet.
    fn push(&mut self, mem: &impl PhysMemory, raw: u128) -> Result<(), UnitError> {
        let frame = mem
            .frame(Hpa::new(self.ring.base))
            .ok_or(UnitError::NoAnswer)?;
        let slot = self.tail as usize / 8;
        for (word, half) in frame.words()[slot..].iter().zip([raw, raw >> 64]) {
            word.store(half as u64, Ordering::Relaxed);
        }
        self.tail = self.ring.next(self.tail);
        Ok(())
    }
}
