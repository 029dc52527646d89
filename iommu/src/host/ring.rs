//! A ring of commands in memory, and the word in which the unit answers.
//!
//! The queues of both vendors are the same but for the commands' bits and the
//! doorbell's register, which are a [`Port`]. Each call posts its commands, with a
//! wait behind them that has the unit store a number, and returns when the number
//! is there. So the ring is empty between calls: there is always room, and never a
//! question which wait was answered.

use super::poll::poll;
use crate::unit::UnitError;
use core::fmt::Debug;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use hv_core::memory::{Frame, FramePool, PhysMemory};
use hv_core::{Hpa, PAGE_SIZE};

/// A unit's registers, as far as its ring needs them.
pub(super) trait Port {
    /// The command that has the unit store `number` at `address` once every command
    /// before it is complete.
    fn wait_command(&self, address: Hpa, number: u32) -> u128;

    /// Shows the unit the commands before the byte offset `tail`.
    fn ring_doorbell(&self, tail: u64);

    /// Why the unit will not go on, if that is so.
    fn failure(&self) -> Option<impl Debug>;
}

/// The ring and the word, one frame each.
pub(super) struct Ring<'m> {
    base: Hpa,
    commands: &'m Frame,
    /// Where the word is.
    answer_at: Hpa,
    answer: &'m AtomicU64,
    /// The size of a command's slot in bytes, 16 or 32. What is beyond a command's
    /// own 16 bytes stays zero.
    slot: u64,
    /// Where the next command goes, a byte offset.
    tail: u64,
    /// What the last wait had the unit store.
    sequence: u32,
    /// Set for good once the unit failed to answer: which commands it has carried
    /// out is not known any more.
    lost: bool,
}

impl<'m> Ring<'m> {
    /// An empty ring with slots of `slot` bytes.
    pub(super) fn new(mem: &'m impl PhysMemory, pool: &mut FramePool, slot: u64) -> Option<Self> {
        let (base, answer_at) = (pool.take(mem)?, pool.take(mem)?);
        Some(Self {
            base,
            commands: mem.frame(base)?,
            answer_at,
            answer: mem.frame(answer_at)?.words().first()?,
            slot,
            tail: 0,
            sequence: 0,
            lost: false,
        })
    }

    /// The ring's frame.
    pub(super) fn base(&self) -> Hpa {
        self.base
    }

    /// The byte offset of the slot for the next command.
    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    /// Starts over at the first slot. The unit fetches nothing meanwhile.
    pub(super) fn restart(&mut self) {
        self.tail = 0;
    }

    /// Whether the unit has answered everything so far.
    pub(super) fn health(&self) -> Result<(), UnitError> {
        if self.lost {
            Err(UnitError::NoAnswer)
        } else {
            Ok(())
        }
    }

    /// Takes the unit for one that does not answer any more.
    pub(super) fn give_up(&mut self) {
        self.lost = true;
    }

    /// Has the unit carry out `commands`, fewer than there are slots, in this order,
    /// and waits for the last. Stores to tables made before the call are what the
    /// unit reads from then on.
    #[inline(always)]
    pub(super) fn execute(&mut self, port: &impl Port, commands: &[u128]) -> Result<(), UnitError> {
        self.health()?;
        self.sequence = self.sequence.wrapping_add(1);
        for command in commands {
            self.push(*command);
        }
        self.push(port.wait_command(self.answer_at, self.sequence));
        self.show(port);
        let answered = poll(|| {
            // Acquire: whatever the drained DMA wrote is read only after this.
            if self.answer.load(Ordering::Acquire) as u32 == self.sequence {
                return Ok(true);
            }
            match port.failure() {
                None => Ok(false),
                Some(failure) => Err(stopped(&failure, commands)),
            }
        });
        self.lost = answered.is_err();
        answered
    }

    /// Shows the unit what was pushed. Release: it may fetch at once, commands and
    /// the tables they are about.
    #[inline]
    pub(super) fn show(&self, port: &impl Port) {
        fence(Ordering::Release);
        port.ring_doorbell(self.tail);
    }

    /// Writes a command into the next slot. The unit does not see it yet.
    #[inline]
    pub(super) fn push(&mut self, raw: u128) {
        let (pairs, _) = self.commands.words().as_chunks::<2>();
        let [low, high] = &pairs[self.tail as usize / 16 % pairs.len()];
        low.store(raw as u64, Ordering::Relaxed);
        high.store((raw >> 64) as u64, Ordering::Relaxed);
        self.tail = (self.tail + self.slot) % PAGE_SIZE;
    }
}

#[cold]
fn stopped(failure: &dyn Debug, commands: &[u128]) -> UnitError {
    log::error!("the remapping unit stopped ({failure:?}) in {commands:#x?}");
    UnitError::NoAnswer
}
