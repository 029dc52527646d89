//! The command buffer.

use super::registers::Registers;
use super::start::StartError;
use crate::amdvi::registers::{COMMAND_BUFFER, COMMAND_HEAD, COMMAND_TAIL};
use crate::amdvi::{Buffer, Command, Control, Status};
use crate::host::poll::poll;
use crate::host::ring::{Port, Ring};
use crate::unit::UnitError;
use core::fmt::Debug;
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// The buffer and the word that waits are answered in, one frame each.
pub(super) struct Queue<'m> {
    ring: Ring<'m>,
}

impl<'m> Queue<'m> {
    /// Sets the buffer up. It is off, and stays so until [`Queue::turn_on`].
    pub(super) fn new(mem: &'m impl PhysMemory, pool: &mut FramePool) -> Result<Self, StartError> {
        let ring = Ring::new(mem, pool, Buffer::ENTRY).ok_or(StartError::OutOfMemory)?;
        Ok(Self { ring })
    }

    /// Starts over with an empty buffer, which is off before. The unit fetches
    /// only while it is enabled.
    pub(super) fn turn_on<R: Mmio>(&mut self, registers: &Registers<R>) {
        self.ring.restart();
        let place = Buffer {
            base: self.ring.base().raw(),
            length: Buffer::ONE_PAGE,
        };
        registers.window.write64(COMMAND_BUFFER, place.encode());
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
    ) -> Result<(), UnitError> {
        self.ring.push(Command::ILLEGAL);
        self.ring.show(registers);
        // A unit either stops at the command, as specified, or skips it.
        poll(|| {
            let stopped = !registers.status().contains(Status::COMMANDS_RUN);
            let head = registers.window.read64(COMMAND_HEAD) & Buffer::OFFSET;
            Ok(stopped || head == self.ring.tail())
        })?;
        Self::turn_off(registers)?;
        self.turn_on(registers);
        Ok(())
    }

    /// Whether the unit has answered everything so far.
    pub(super) fn health(&self) -> Result<(), UnitError> {
        self.ring.health()
    }

    /// Takes the unit for one that does not answer any more.
    pub(super) fn give_up(&mut self) {
        self.ring.give_up();
    }

    /// Has the unit carry out `commands` in this order, and waits for it.
    pub(super) fn execute<R: Mmio>(
        &mut self,
        registers: &Registers<R>,
        commands: &[u128],
    ) -> Result<(), UnitError> {
        self.ring.execute(registers, commands)
    }
}

impl<R: Mmio> Port for Registers<R> {
    fn wait_command(&self, address: Hpa, number: u32) -> u128 {
        Command::CompletionWait {
            address: address.raw(),
            data: u64::from(number),
        }
        .encode()
    }

    fn ring_doorbell(&self, tail: u64) {
        self.window.write64(COMMAND_TAIL, tail);
    }

    fn failure(&self) -> Option<impl Debug> {
        let status = self.status();
        (!status.contains(Status::COMMANDS_RUN)).then_some(status)
    }
}
