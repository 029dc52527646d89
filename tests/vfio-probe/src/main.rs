//! The first and only process of a Linux that is measured: it hands a device to
//! vfio-pci, does to its container what the benchmark image does to Strandline's
//! layer, and writes what that cost to the second serial port, as the image does.
//!
//! Under QEMU's `-icount shift=0` the time stamp counter counts the machine's
//! instructions, the kernel's included.

#![allow(clippy::print_stderr)]

mod edu;
mod measure;
mod memory;
mod pinning;
mod system;
mod vfio;
mod written;

use anyhow::{Context, Result};
use std::fs::OpenOptions;

fn main() {
    let outcome = run();
    if let Err(error) = &outcome {
        eprintln!("vfio-probe: {error:#}");
    }
    system::exit(outcome.is_ok());
}

fn run() -> Result<()> {
    system::mount()?;
    system::load_modules()?;
    system::allow_unsafe_interrupts()?;
    let group = system::bind_device()?;
    system::reserve_huge_pages(memory::HUGE_PAGES)?;
    let container = vfio::Container::open(group)?;
    let mut output = OpenOptions::new()
        .write(true)
        .open("/dev/ttyS1")
        .context("cannot open the second serial port")?;
    measure::all(&container, &mut output)?;
    written::all(&container, &memory::Memory::scattered()?, &mut output)
}
