//! QEMU's `edu` device: its registers, and its buffer by its own DMA.
//!
//! Source: QEMU, `docs/specs/edu.rst`. Registers below 0x80 take 32-bit accesses
//! only.
//!
//! The buffer cannot be reached by the CPU, so the device copies it to a page of
//! the hypervisor, and at the destination back. That disturbs the DMA registers;
//! they are part of the state, so [`Edu::restore`] mends them on either side.

#[cfg(test)]
mod tests;

use crate::memory::{Frame, WORDS_PER_FRAME};
use crate::mmio::Mmio;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Register offsets.
mod register {
    /// Liveness check: reads back the complement of what was written.
    pub(super) const LIVENESS: usize = 0x04;
    /// Factorial: write n, wait until not busy, read n! mod 2^32.
    pub(super) const FACTORIAL: usize = 0x08;
    /// Status: see [`super::status`].
    pub(super) const STATUS: usize = 0x20;
    /// Interrupt status: which causes are raised.
    pub(super) const INTERRUPT_STATUS: usize = 0x24;
    /// Writing raises these causes.
    pub(super) const INTERRUPT_RAISE: usize = 0x60;
    /// Writing clears these causes.
    pub(super) const INTERRUPT_ACK: usize = 0x64;
    /// DMA source address.
    pub(super) const DMA_SOURCE: usize = 0x80;
    /// DMA destination address.
    pub(super) const DMA_DESTINATION: usize = 0x88;
    /// DMA byte count.
    pub(super) const DMA_COUNT: usize = 0x90;
    /// DMA command: see [`super::command`]. Takes effect only with RUN set.
    pub(super) const DMA_COMMAND: usize = 0x98;
}

/// Bits of the status register.
mod status {
    /// A factorial is being computed.
    pub(super) const BUSY: u32 = 1 << 0;
    /// Raise an interrupt when it is done (the one writable bit).
    pub(super) const INTERRUPT: u32 = 1 << 7;
}

/// Interrupt cause: a factorial is done.
const FACTORIAL_DONE: u32 = 1 << 0;

/// Bits of the DMA command register.
mod command {
    /// Start; reads as set until the transfer is done.
    pub(super) const RUN: u64 = 1 << 0;
    /// From the buffer to memory, rather than the other way.
    pub(super) const TO_MEMORY: u64 = 1 << 1;
    /// Raise an interrupt when done.
    #[cfg(test)]
    pub(super) const INTERRUPT: u64 = 1 << 2;
    /// The bits that stay after a transfer: the device keeps also those that mean
    /// nothing.
    pub(super) const LASTING: u64 = !RUN;
}

/// Where the buffer lies, as the device's DMA engine addresses it.
const BUFFER_ADDRESS: u64 = 0x4_0000;
/// The size of the buffer, in bytes.
const BUFFER_BYTES: u64 = 4096;
/// How long one transfer takes, in microseconds of the device's clock.
const TRANSFER_US: u64 = 100_000;

/// What saving and restoring take at the most, in microseconds: one transfer out,
/// one in, and one more to leave the command register as it was.
pub const STATE_TRANSFER_US: u64 = 3 * TRANSFER_US;

/// Everything the guest can tell about a resting `edu`, as it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct EduState {
    /// The liveness register, as it reads.
    pub liveness: u32,
    /// The factorial register, as it reads.
    pub factorial: u32,
    /// The status register.
    pub status: u32,
    /// The interrupt causes that are raised.
    pub interrupts: u32,
    /// The DMA source address.
    pub dma_source: u64,
    /// The DMA destination address.
    pub dma_destination: u64,
    /// The DMA byte count.
    pub dma_count: u64,
    /// The DMA command register, RUN clear.
    pub dma_command: u64,
    /// The buffer.
    pub buffer: [u64; WORDS_PER_FRAME],
}

/// Why the device's state could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EduError {
    /// A transfer or a computation did not end.
    #[error("the edu device stays busy")]
    Stuck,
    /// The state to restore is one that no resting device can be in.
    #[error("the edu device cannot be in the state given")]
    ImpossibleState,
}

/// A page of the hypervisor that the device can reach, and nothing else can.
pub struct Staging<'a> {
    /// The page.
    pub frame: &'a Frame,
    /// Where the device finds it; within the device's DMA mask.
    pub address: u64,
}

/// One `edu`, by its registers (BAR 0).
///
/// The caller has taken the device away from the guest: nobody else accesses the
/// registers, its interrupts go nowhere, and its DMA reaches the staging page.
pub struct Edu<R> {
    registers: R,
    /// A factorial was under way whose interrupt is still to come.
    awaits_interrupt: bool,
}

impl<R: Mmio> Edu<R> {
    /// The device behind these registers.
    pub fn new(registers: R) -> Self {
        Self {
            registers,
            awaits_interrupt: false,
        }
    }

    /// Whether neither a transfer nor a computation is under way, and the interrupts
    /// of those that were have been raised. To be asked, until it is so, from when the
    /// guest is stopped.
    ///
    /// The device says that a factorial is done before it raises the interrupt for it.
    /// One that is seen under way is therefore over when its interrupt is there. Not
    /// covered is the moment between the two itself, at the first call.
    pub fn is_resting(&mut self) -> bool {
        let status = self.registers.read32(register::STATUS);
        if status & status::BUSY != 0 {
            self.awaits_interrupt = status & status::INTERRUPT != 0;
            return false;
        }
        let raised = self.registers.read32(register::INTERRUPT_STATUS);
        if self.awaits_interrupt && raised & FACTORIAL_DONE == 0 {
            return false;
        }
        self.awaits_interrupt = false;
        !self.is_busy()
    }

    fn is_busy(&self) -> bool {
        self.registers.read32(register::STATUS) & status::BUSY != 0
            || self.registers.read64(register::DMA_COMMAND) & command::RUN != 0
    }

    /// Reads the state of a resting device. `relax` is called while waiting for
    /// the transfer; it says whether to wait on. On an error the device has its
    /// registers back, but for the command of a transfer that does not end.
    pub fn save(
        &self,
        staging: &Staging<'_>,
        relax: &mut impl FnMut() -> bool,
    ) -> Result<EduState, EduError> {
        self.wait(relax)?;
        let registers = &self.registers;
        let mut state = EduState {
            liveness: registers.read32(register::LIVENESS),
            factorial: registers.read32(register::FACTORIAL),
            status: registers.read32(register::STATUS),
            interrupts: registers.read32(register::INTERRUPT_STATUS),
            dma_source: registers.read64(register::DMA_SOURCE),
            dma_destination: registers.read64(register::DMA_DESTINATION),
            dma_count: registers.read64(register::DMA_COUNT),
            dma_command: registers.read64(register::DMA_COMMAND),
            buffer: [0; WORDS_PER_FRAME],
        };
        let transferred = self.transfer(command::TO_MEMORY, staging, relax);
        if transferred.is_err() {
            self.put_addresses(&state);
        }
        staging.frame.copy_to(&mut state.buffer);
        transferred.map(|()| state)
    }

    /// Puts a state into the device, whatever it held before: at the destination,
    /// and at the source when the guest goes on there after a [`Edu::save`].
    pub fn restore(
        &self,
        state: &EduState,
        staging: &Staging<'_>,
        relax: &mut impl FnMut() -> bool,
    ) -> Result<(), EduError> {
        let n = inverse_factorial(state.factorial).ok_or(EduError::ImpossibleState)?;
        if state.dma_command & !command::LASTING != 0 || state.status & !status::INTERRUPT != 0 {
            return Err(EduError::ImpossibleState);
        }
        self.wait(relax)?;
        let registers = &self.registers;
        registers.write32(register::INTERRUPT_ACK, u32::MAX);

        // With its interrupt off, or the result would raise one.
        registers.write32(register::STATUS, 0);
        registers.write32(register::FACTORIAL, n);
        self.wait(relax)?;
        registers.write32(register::STATUS, state.status);
        registers.write32(register::LIVENESS, !state.liveness);

        staging.frame.copy_from(&state.buffer);
        let mut transferred = self.transfer(0, staging, relax);
        // The command register only takes a value that starts a transfer, so the
        // last one must have the direction that the guest's last one had.
        if transferred.is_ok() && state.dma_command != 0 {
            transferred = self.transfer(state.dma_command, staging, relax);
        }
        // Whatever came of it, the guest's registers are the guest's again.
        self.put_addresses(state);
        registers.write32(register::INTERRUPT_ACK, u32::MAX);
        if state.interrupts != 0 {
            registers.write32(register::INTERRUPT_RAISE, state.interrupts);
        }
        transferred
    }

    fn put_addresses(&self, state: &EduState) {
        let registers = &self.registers;
        registers.write64(register::DMA_SOURCE, state.dma_source);
        registers.write64(register::DMA_DESTINATION, state.dma_destination);
        registers.write64(register::DMA_COUNT, state.dma_count);
    }

    /// Moves the whole buffer to or from the staging page.
    fn transfer(
        &self,
        lasting: u64,
        staging: &Staging<'_>,
        relax: &mut impl FnMut() -> bool,
    ) -> Result<(), EduError> {
        let (source, destination) = if lasting & command::TO_MEMORY != 0 {
            (BUFFER_ADDRESS, staging.address)
        } else {
            (staging.address, BUFFER_ADDRESS)
        };
        self.registers.write64(register::DMA_SOURCE, source);
        self.registers
            .write64(register::DMA_DESTINATION, destination);
        self.registers.write64(register::DMA_COUNT, BUFFER_BYTES);
        self.registers
            .write64(register::DMA_COMMAND, lasting | command::RUN);
        self.wait(relax)
    }

    fn wait(&self, relax: &mut impl FnMut() -> bool) -> Result<(), EduError> {
        while self.is_busy() {
            if !relax() {
                return Err(EduError::Stuck);
            }
        }
        Ok(())
    }
}

/// The number whose factorial is `result` modulo 2^32. From 34 on it is 0, which
/// is also what the register holds after reset.
fn inverse_factorial(result: u32) -> Option<u32> {
    let mut factorial = 1u32;
    for n in 1..=34 {
        factorial = factorial.wrapping_mul(n);
        if factorial == result {
            return Some(n);
        }
    }
    None
}
