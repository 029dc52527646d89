//! An NVMe controller that is passed through, and carried across with no help from
//! the device.
//!
//! NVM Express Base Specification 2.0. Data goes from the device to the guest's
//! memory and back without anybody between. Register accesses are trapped and passed
//! on: the doorbells among them say how far each queue is, which the device would
//! not tell anybody afterwards.
//!
//! ```text
//!   guest's access --> read: answered at once
//!                      write: noted --> serve(): looked at (shadow), passed on
//!   migration      --> rest(): every command completed?   save(): the shadow
//!                      restore() (rebuild): a reset controller is brought there
//! ```
//!
//! # Why doorbells are trapped
//! They are the two exits of a command that mapping their page into the guest would
//! save, and they are what makes this work:
//!
//! - They are write-only. Of a tail that the guest rang for before anybody looked,
//!   memory tells nothing: completions name the submission queue's *head*, and what
//!   lies behind it may be new or of the lap before. So nobody could say whether every
//!   command is completed, which is when a controller can be left ([`Nvme::rest`]).
//! - The admin queue's are in the same page (all are, unless CAP.DSTRD says otherwise),
//!   and its commands have to be read when they are submitted: which queues there are
//!   and what was set cannot be asked of the device later.
//! - Trapping them from the start of a migration only would be too late for both.
//!
//! Doorbell Buffer Config would put tails into memory, but is for emulated controllers
//! alone, and saves nothing where commands come one by one.

mod command;
mod effect;
#[cfg(test)]
mod fake;
mod pair;
mod rebuild;
mod register;
mod shadow;
mod state;
#[cfg(test)]
mod tests;

pub use rebuild::{SCRATCH_PAGES, Scratch};
pub use state::{MAX_QUEUES, NvmeState, RingPages};

use crate::mmio::Mmio;
use crate::vm::MmioDevice;
use register::{capabilities, configuration};
use shadow::Shadow;

/// The guest's memory as the device sees it: by IOVA, through the guest's own
/// tables.
pub trait GuestDma {
    /// Fills `to`, which is within one page; false where the device reaches nothing.
    fn read(&self, iova: u64, to: &mut [u8]) -> bool;
    /// Writes likewise, marking the page as written.
    fn write(&self, iova: u64, from: &[u8]) -> bool;
}

/// Why a controller cannot be carried across.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NvmeError {
    /// A ring is where the device reaches nothing.
    #[error("a queue of the NVMe controller is not in the guest's memory")]
    Unreadable,
    /// A queue that is not contiguous, or does not start a page.
    #[error("a queue of the NVMe controller is not in one piece")]
    ScatteredQueue,
    /// A completion queue that was used has no submission queue any more: nothing
    /// could bring another one to where it is.
    #[error("a completion queue of the NVMe controller is without a submission queue")]
    UnfedQueue,
    /// More queues, event requests, features or commands than are kept track of.
    #[error("the NVMe controller has more queues, commands or features than can be carried")]
    TooMuch,
    /// A feature whose data is in memory.
    #[error("the NVMe controller has feature {0:#x} set, whose data cannot be carried")]
    FeatureWithData(u8),
    /// The other controller has other capabilities.
    #[error("the NVMe controllers differ: CAP is {theirs:#x} there and {ours:#x} here")]
    OtherController {
        /// This controller's CAP.
        ours: u64,
        /// The CAP in the state.
        theirs: u64,
    },
    /// No controller at rest can be in that state.
    #[error("the NVMe controller cannot be in the state given")]
    ImpossibleState,
    /// The controller does not become ready, or does not complete a command.
    #[error("the NVMe controller does not answer")]
    Stuck,
    /// It completed an event request while its queues were turned.
    #[error("the NVMe controller reports an event while it is rebuilt")]
    Event,
    /// It refused a command that a controller alike had carried out.
    #[error("the NVMe controller refuses command {opcode:#x} with status {status:#x}")]
    Refused {
        /// The command.
        opcode: u8,
        /// Its status field, without the phase.
        status: u16,
    },
}

/// A write of the guest that is not passed on yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Write {
    offset: u64,
    width: u8,
    value: u64,
}

/// The controller behind the registers `R`, as the guest uses it.
pub struct Nvme<R> {
    registers: R,
    /// At most one: the guest does not run on before it is served.
    waiting: Option<Write>,
    shadow: Shadow,
    io_commands: u64,
}

impl<R: Mmio> Nvme<R> {
    /// The controller behind `registers`, which was reset.
    pub fn new(registers: R) -> Self {
        Self {
            registers,
            waiting: None,
            shadow: Shadow::default(),
            io_commands: 0,
        }
    }

    /// How many commands the guest submitted here to queues for I/O.
    pub fn io_commands(&self) -> u64 {
        self.io_commands
    }

    /// Carries out what the guest wrote. To be called after each access of the
    /// guest, before it runs again.
    pub fn serve(&mut self, dma: &impl GuestDma) {
        let Some(Write {
            offset,
            width,
            value,
        }) = self.waiting.take()
        else {
            return;
        };
        // Registers of 64 bits may be written by halves.
        self.pass_on(dma, offset, value as u32);
        if width == 8 {
            self.pass_on(dma, offset + 4, (value >> 32) as u32);
        }
    }

    /// Whether every command that the guest submitted is completed. To be called
    /// while the guest stands still.
    pub fn rest(&mut self, dma: &impl GuestDma) -> Result<bool, NvmeError> {
        self.shadow.rest(dma)
    }

    /// The state of the controller at rest. It is not disturbed.
    pub fn save(&self) -> Result<NvmeState, NvmeError> {
        Ok(NvmeState {
            capabilities: self.capabilities(),
            ..self.shadow.state()?
        })
    }

    /// Checks a state that came from outside: a controller like this one can have
    /// it, at rest.
    pub fn check(&self, state: &NvmeState) -> Result<(), NvmeError> {
        state.check(self.capabilities())
    }

    /// The shadow first: what the guest submitted must be read before the controller
    /// hears of it, and completions before their places may be written again.
    fn pass_on(&mut self, dma: &impl GuestDma, offset: u64, value: u32) {
        match offset {
            register::CC => self.configure(value),
            register::DOORBELLS.. => {
                let stride = capabilities::doorbell_stride(self.capabilities());
                let index = (offset - register::DOORBELLS) / stride;
                let number = (index / 2) as usize;
                if index.is_multiple_of(2) {
                    let count = self.shadow.submitted(dma, number, value);
                    if number > 0 {
                        self.io_commands += u64::from(count);
                    }
                } else {
                    self.shadow.consumed(dma, number, value);
                }
            }
            _ => {}
        }
        self.registers.write32(offset as usize, value);
    }

    fn configure(&mut self, cc: u32) {
        match (self.shadow.is_enabled(), cc & configuration::ENABLE != 0) {
            (false, true) => {
                let aqa = self.registers.read32(register::AQA as usize);
                let [asq, acq] = [register::ASQ, register::ACQ].map(|at| self.read64(at));
                self.shadow.enable(cc, aqa, asq, acq);
            }
            (true, true) => self.shadow.reconfigure(cc),
            (_, false) => self.shadow.disable(cc),
        }
    }

    fn capabilities(&self) -> u64 {
        self.read64(register::CAP)
    }

    fn read64(&self, offset: u64) -> u64 {
        let [low, high] = [offset, offset + 4].map(|at| self.registers.read32(at as usize));
        u64::from(high) << 32 | u64::from(low)
    }
}

/// Accesses of 4 and 8 bytes, aligned. Others read as all ones and write nothing.
impl<R: Mmio> MmioDevice for Nvme<R> {
    fn read(&mut self, offset: u64, width: u8) -> u64 {
        if !is_valid(offset, width) {
            return u64::MAX;
        }
        if (register::CMBLOC..register::AFTER_CMBSZ).contains(&offset) {
            return 0;
        }
        match width {
            4 => self.registers.read32(offset as usize).into(),
            _ => self.read64(offset),
        }
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) {
        if is_valid(offset, width) {
            self.waiting = Some(Write {
                offset,
                width,
                value,
            });
        }
    }
}

fn is_valid(offset: u64, width: u8) -> bool {
    matches!(width, 4 | 8) && offset.is_multiple_of(width.into())
}
