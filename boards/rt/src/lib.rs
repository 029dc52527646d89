//! What a freestanding x86-64 program stands on.
//!
//! The hypervisor image and the test guest are both built on this: PVH entry and
//! the way into long mode, the tables the CPU needs, interrupts, serial ports, the
//! log, and access to physical memory. Memory is identity mapped. The boot CPU runs the
//! program; it can start another one to run a function of its own.
//!
//! ```text
//!  boot loader --(PVH, 32-bit, ebx = start_info)--> entry: checks, long mode
//!     -> start: log, segments, interrupt table, stack guards, boot information
//!     -> the program's own main, named with entry!
//! ```
//!
//! An image package is compiled with `boards/image.toml`, which sets the cfg
//! `strandline_image`; without it this crate is an ordinary host library whose
//! parsers can be tested.
#![cfg_attr(not(test), no_std)]
// On the host nobody starts a CPU, but the code is compiled and linted all the same.
#![cfg_attr(not(strandline_image), allow(dead_code))]

pub mod acpi;
pub mod apic;
pub mod boot_info;
pub mod cpu;
pub mod debug_exit;
pub mod interrupts;
pub mod memory_map;
pub mod pci;
pub mod physical;
pub mod processors;
pub mod serial;

mod exceptions;
mod logger;
mod paging;
mod pic;
mod segments;
mod stacks;

#[cfg(strandline_image)]
mod entry;
#[cfg(strandline_image)]
mod panic;
#[cfg(strandline_image)]
mod symbols;

pub use boot_info::BootInfo;
#[cfg(strandline_image)]
pub use entry::image_range;

/// Names the function that an image runs: `entry!(main)` with
/// `fn main(boot: &'static BootInfo) -> !`.
///
/// It runs with interrupts disabled, the log working, and every exception fatal.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[allow(unsafe_code)]
        // SAFETY: no other function has this name; strandline-rt declares it with
        // this very signature.
        #[unsafe(no_mangle)]
        extern "Rust" fn image_main(boot: &'static $crate::BootInfo) -> ! {
            const MAIN: fn(&'static $crate::BootInfo) -> ! = $main;
            MAIN(boot)
        }
    };
}
