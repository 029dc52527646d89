//! QEMU's `edu` device: its registers, and its buffer by its own DMA.
//!
//! Source: QEMU, `docs/specs/edu.rst`. Registers below 0x80 take 32-bit accesses
//! only.
//!
//! The buffer cannot be reached by the CPU, so the device copies it to a page of
//! the hypervisor, and at the destination back. That disturbs the DMA registers;
//! they are part of the state, so [`Edu::restore`] mends them on either side.

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

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use core::sync::atomic::Ordering;

    const STAGING: u64 = 0x5000;

    /// The device as QEMU has it; a transfer ends when it was waited for once.
    struct Model<'a> {
        state: RefCell<EduState>,
        staging: &'a Frame,
        raised: RefCell<u32>,
    }

    impl Mmio for &Model<'_> {
        fn read32(&self, offset: usize) -> u32 {
            let state = self.state.borrow();
            match offset {
                register::LIVENESS => state.liveness,
                register::FACTORIAL => state.factorial,
                register::STATUS => state.status,
                register::INTERRUPT_STATUS => state.interrupts,
                _ => panic!("32-bit read of {offset:#x}"),
            }
        }
        fn write32(&self, offset: usize, value: u32) {
            let mut state = self.state.borrow_mut();
            match offset {
                register::LIVENESS => state.liveness = !value,
                register::FACTORIAL => {
                    state.factorial = (1..=value).fold(1, u32::wrapping_mul);
                    if state.status & status::INTERRUPT != 0 {
                        *self.raised.borrow_mut() += 1;
                    }
                }
                register::STATUS => state.status = value & status::INTERRUPT,
                register::INTERRUPT_RAISE => state.interrupts |= value,
                register::INTERRUPT_ACK => state.interrupts &= !value,
                _ => panic!("32-bit write of {offset:#x}"),
            }
        }
        fn read64(&self, offset: usize) -> u64 {
            let state = self.state.borrow();
            match offset {
                register::DMA_SOURCE => state.dma_source,
                register::DMA_DESTINATION => state.dma_destination,
                register::DMA_COUNT => state.dma_count,
                register::DMA_COMMAND => state.dma_command,
                _ => panic!("64-bit read of {offset:#x}"),
            }
        }
        fn write64(&self, offset: usize, value: u64) {
            let mut state = self.state.borrow_mut();
            match offset {
                register::DMA_SOURCE => state.dma_source = value,
                register::DMA_DESTINATION => state.dma_destination = value,
                register::DMA_COUNT => state.dma_count = value,
                register::DMA_COMMAND if value & command::RUN != 0 => state.dma_command = value,
                register::DMA_COMMAND => {}
                _ => panic!("64-bit write of {offset:#x}"),
            }
        }
    }

    impl Model<'_> {
        fn tick(&self) -> bool {
            let mut state = self.state.borrow_mut();
            if state.dma_command & command::RUN != 0 {
                assert_eq!(state.dma_count, BUFFER_BYTES);
                if state.dma_command & command::TO_MEMORY != 0 {
                    assert_eq!(state.dma_destination, STAGING);
                    self.staging.copy_from(&state.buffer);
                } else {
                    assert_eq!(state.dma_source, STAGING);
                    self.staging.copy_to(&mut state.buffer);
                }
                if state.dma_command & command::INTERRUPT != 0 {
                    state.interrupts |= 0x100;
                }
                state.dma_command &= !command::RUN;
            }
            true
        }
    }

    fn some_state() -> EduState {
        EduState {
            liveness: 0x1234_5678,
            factorial: 120,
            status: status::INTERRUPT,
            interrupts: 0x100,
            dma_source: BUFFER_ADDRESS,
            dma_destination: 0x77000,
            dma_count: 99,
            dma_command: 0xf8 | command::TO_MEMORY | command::INTERRUPT,
            buffer: core::array::from_fn(|i| i as u64 * 3),
        }
    }

    fn with_model(state: EduState, test: impl FnOnce(&Model<'_>, &Staging<'_>)) {
        let frame = Frame::zeroed();
        let model = Model {
            state: RefCell::new(state),
            staging: &frame,
            raised: RefCell::new(0),
        };
        test(
            &model,
            &Staging {
                frame: &frame,
                address: STAGING,
            },
        );
    }

    #[test]
    fn a_state_saved_and_restored_is_the_state_there_was() {
        let mut saved = None;
        with_model(some_state(), |model, staging| {
            let edu = Edu::new(model);
            let state = edu.save(staging, &mut || model.tick()).unwrap();
            assert_eq!(state, some_state());
            saved = Some(state);
            // The source goes on: what saving disturbed is mended.
            edu.restore(&state, staging, &mut || model.tick()).unwrap();
            assert_eq!(*model.state.borrow(), some_state());
        });
        let blank = EduState {
            liveness: 0,
            factorial: 0,
            status: 0,
            interrupts: 7,
            dma_source: 0,
            dma_destination: 0,
            dma_count: 0,
            dma_command: 0,
            buffer: [1; WORDS_PER_FRAME],
        };
        with_model(blank, |model, staging| {
            Edu::new(model)
                .restore(&saved.unwrap(), staging, &mut || model.tick())
                .unwrap();
            assert_eq!(*model.state.borrow(), some_state());
            assert_eq!(*model.raised.borrow(), 0);
        });
    }

    #[test]
    fn a_state_no_device_can_be_in_is_refused_before_anything_changes() {
        with_model(some_state(), |model, staging| {
            let edu = Edu::new(model);
            for bad in [
                EduState {
                    factorial: 7,
                    ..some_state()
                },
                EduState {
                    dma_command: 1,
                    ..some_state()
                },
                EduState {
                    status: 1,
                    ..some_state()
                },
            ] {
                assert_eq!(
                    edu.restore(&bad, staging, &mut || true),
                    Err(EduError::ImpossibleState)
                );
            }
            assert_eq!(*model.state.borrow(), some_state());
        });
    }

    #[test]
    fn a_device_that_stays_busy_is_given_up() {
        with_model(some_state(), |model, staging| {
            let mut left = 3;
            let result = Edu::new(model).save(staging, &mut || {
                left -= 1;
                left > 0
            });
            assert_eq!(result, Err(EduError::Stuck));
            assert_eq!(staging.frame.words()[1].load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn a_transfer_that_does_not_end_leaves_the_guests_registers() {
        let stuck = |result: Result<(), EduError>, model: &Model<'_>| {
            assert_eq!(result, Err(EduError::Stuck));
            let mut left = *model.state.borrow();
            left.dma_command = some_state().dma_command;
            assert_eq!(left, some_state());
        };
        with_model(some_state(), |model, staging| {
            stuck(
                Edu::new(model).save(staging, &mut || false).map(drop),
                model,
            );
        });
        with_model(some_state(), |model, staging| {
            let result = Edu::new(model).restore(&some_state(), staging, &mut || false);
            stuck(result, model);
        });
    }

    #[test]
    fn a_factorial_is_over_when_its_interrupt_is_there() {
        let computing = EduState {
            status: status::BUSY | status::INTERRUPT,
            interrupts: 0,
            ..some_state()
        };
        with_model(computing, |model, _| {
            let mut edu = Edu::new(model);
            assert!(!edu.is_resting());
            // The device is done, and about to say so.
            model.state.borrow_mut().status = status::INTERRUPT;
            assert!(!edu.is_resting());
            model.state.borrow_mut().interrupts = FACTORIAL_DONE;
            assert!(edu.is_resting());
        });
        let silent = EduState {
            status: status::BUSY,
            ..computing
        };
        with_model(silent, |model, _| {
            let mut edu = Edu::new(model);
            assert!(!edu.is_resting());
            model.state.borrow_mut().status = 0;
            assert!(edu.is_resting(), "no interrupt was asked for");
        });
    }

    #[test]
    fn every_factorial_the_device_computes_can_be_put_back() {
        let mut factorial = 1u32;
        for n in 1..100 {
            factorial = factorial.wrapping_mul(n);
            let inverse = inverse_factorial(factorial).unwrap();
            assert_eq!((1..=inverse).fold(1, u32::wrapping_mul), factorial);
        }
        assert!(inverse_factorial(0).is_some());
        assert_eq!(inverse_factorial(7), None);
    }
}
