//! The guest's driver for `edu` (QEMU, `docs/specs/edu.rst`).

use hv_core::mmio::Mmio;
use iommu::Iova;
use strandline_rt::interrupts;
use strandline_rt::physical::MmioWindow;

const ID: usize = 0x00;
const INTERRUPT_STATUS: usize = 0x24;
const INTERRUPT_ACK: usize = 0x64;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;

const RUN: u64 = 1 << 0;
const TO_MEMORY: u64 = 1 << 1;
const INTERRUPT: u64 = 1 << 2;

/// The interrupt cause "transfer done".
const DMA_DONE: u32 = 0x100;
/// Where the DMA engine sees the device's buffer.
const BUFFER: u64 = 0x4_0000;

/// The vector the device interrupts with.
pub(crate) const VECTOR: u8 = 0x41;

/// The device has no buffer transfer under way between two calls, other than what
/// [`Edu::start`] began.
pub(crate) struct Edu {
    registers: MmioWindow,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From memory to the device's buffer.
    Load,
    /// From the device's buffer to memory.
    Store,
}

impl Edu {
    /// The device behind these registers, or `None` if they are not an `edu`'s.
    pub(crate) fn new(registers: MmioWindow) -> Option<Self> {
        (registers.read32(ID) & 0xffff == 0xed).then_some(Self { registers })
    }

    /// Starts a transfer of the first `bytes` bytes of the buffer.
    pub(crate) fn start(&self, direction: Direction, iova: Iova, bytes: usize) {
        let (source, destination, command) = match direction {
            Direction::Load => (iova.raw(), BUFFER, RUN | INTERRUPT),
            Direction::Store => (BUFFER, iova.raw(), RUN | INTERRUPT | TO_MEMORY),
        };
        self.registers.write64(DMA_SOURCE, source);
        self.registers.write64(DMA_DESTINATION, destination);
        self.registers.write64(DMA_COUNT, bytes as u64);
        self.registers.write64(DMA_COMMAND, command);
    }

    /// Whether a transfer is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.registers.read64(DMA_COMMAND) & RUN != 0
    }

    /// Sleeps until the transfer is done.
    pub(crate) fn finish(&self) {
        while self.registers.read32(INTERRUPT_STATUS) & DMA_DONE == 0 {
            while !interrupts::wait().contains(VECTOR) {}
        }
        self.registers.write32(INTERRUPT_ACK, DMA_DONE);
    }
}
