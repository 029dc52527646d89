//! The benchmark image: what each operation of the IOMMU layer costs, measured on
//! the layer as it ships, with real tables and a real invalidation queue.
//!
//! It runs in QEMU with `-icount shift=0`, where the time stamp counter counts
//! instructions of this machine, and those only: what the emulator does behind a
//! register access is not in the figures. Each small operation is then done once more
//! under the CPU's single-step flag, which shows every instruction and so how many
//! of them lock the bus and which cache lines of the tables they touch. One JSON
//! object per operation goes to the second serial port.
//!
//! The pure parts live here and are tested on the host; `main.rs` is the program.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod record;
pub mod tally;
