//! From boot to role.
#![allow(unsafe_code)]

use core::fmt::Display;
use log::{error, info};
use strandline_pc::budget::Budget;
use strandline_pc::events;
use strandline_pc::machine::Machine;
use strandline_pc::options::{Options, Role};
use strandline_pc::{tick, vectors};
use strandline_rt::debug_exit::{Exit, exit};
use strandline_rt::memory_map::FreeMemory;
use strandline_rt::pci::ConfigPorts;
use strandline_rt::physical::FirmwareMemory;
use strandline_rt::{BootInfo, interrupts};

strandline_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    info!("strandline {}", env!("CARGO_PKG_VERSION"));
    let options = Options::parse(boot.command_line()).unwrap_or_else(|error| refuse(&error));
    // SAFETY: this is an image on the identity map, which reads only what the
    // firmware's tables name.
    let firmware = unsafe { FirmwareMemory::new() };
    // SAFETY: this is an image on a PC, on its only CPU.
    let config = unsafe { ConfigPorts::new() };
    let machine =
        Machine::discover(&firmware, config, boot.rsdp()).unwrap_or_else(|error| refuse(&error));
    // SAFETY: the only call.
    let mut free = unsafe { FreeMemory::at_boot(boot) };
    let free_bytes = free.bytes();
    let budget = Budget::carve(&mut free, options.memory).unwrap_or_else(|error| refuse(&error));

    #[cfg(feature = "sabotage")]
    if let Some(sabotage) = options.sabotage {
        info!("sabotage: {}", sabotage.name());
        hv_core::sabotage::activate(sabotage);
    }
    describe(boot, &machine, free_bytes);
    info!("{budget}");
    events::emit(
        "boot",
        &[
            ("role", (&options.role.name()).into()),
            ("version", (&env!("CARGO_PKG_VERSION")).into()),
        ],
    );
    // The role's own main loop takes over here with `machine`, `budget`, `options`
    // and, as the source, the guest in `boot.module_bytes(0)`.
    match options.role {
        Role::None => self_check(&machine),
        Role::Source | Role::Destination => refuse(&"this role is not wired up yet"),
    }
}

/// Ends the program because the machine or the request lacks something; nothing
/// was started.
fn refuse(reason: &dyn Display) -> ! {
    error!("{reason}");
    events::emit("refused", &[("reason", (&reason).into())]);
    exit(Exit::Failure)
}

fn describe(boot: &BootInfo, machine: &Machine, free: u64) {
    info!("memory: {} KiB free", free >> 10);
    for module in boot.modules() {
        info!("module: {} bytes at {:#x}", module.bytes, module.start);
    }
    info!(
        "clocks: tsc {} kHz, apic timer {} kHz",
        machine.rates.tsc_hz / 1000,
        machine.rates.apic_timer_hz / 1000
    );
    info!("iommu: DMAR table of {} bytes", machine.dmar().len());
    for (name, device) in [("device", machine.edu), ("link", machine.link)] {
        info!(
            "{name}: {}, {} KiB at {:#x}",
            device.function,
            device.window.bytes >> 10,
            device.window.start
        );
    }
}

/// Shows that time passes and interrupts arrive, and ends.
fn self_check(machine: &Machine) -> ! {
    use hv_core::clock::Clock;
    const HZ: u32 = 100;
    const TICKS: u32 = 10;

    let start = machine.clock.now_us();
    tick::start(&machine.apic, machine.rates, HZ);
    let mut ticks = 0;
    while ticks < TICKS {
        if interrupts::wait().contains(vectors::TICK) {
            ticks += 1;
        }
    }
    machine.apic.stop_timer();
    let took = machine.clock.now_us() - start;
    info!("self-check: {TICKS} ticks at {HZ} Hz took {took} us");
    exit(Exit::Success)
}
