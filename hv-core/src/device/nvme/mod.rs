//! An NVMe controller that is passed through.
//!
//! NVM Express Base Specification 2.0. Data goes from the device to the guest's
//! memory and back without anybody between. Register accesses are trapped and passed
//! on: the doorbells among them say how far each queue is, which the device would
//! not tell anybody afterwards.
//!
//! ```text
//!   guest's access --> read: answered at once
//!                      write: noted --> serve(): looked at, then passed on
//! ```

mod register;

use crate::mmio::Mmio;
use crate::vm::MmioDevice;

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
}

impl<R: Mmio> Nvme<R> {
    /// The controller behind `registers`, which was reset.
    pub fn new(registers: R) -> Self {
        Self {
            registers,
            waiting: None,
        }
    }

    /// Carries out what the guest wrote. To be called after each access of the
    /// guest, before it runs again.
    pub fn serve(&mut self) {
        let Some(Write {
            offset,
            width,
            value,
        }) = self.waiting.take()
        else {
            return;
        };
        match width {
            4 => self.registers.write32(offset as usize, value as u32),
            _ => self.registers.write64(offset as usize, value),
        }
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
            _ => self.registers.read64(offset as usize),
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
