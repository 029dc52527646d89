//! From boot to role.
#![allow(unsafe_code)]

use core::fmt::Display;
use hv_core::PAGE_SHIFT;
use hv_core::boot::Payload;
use hv_core::clock::Clock;
use hv_core::dirty::DirtyLog;
use hv_core::memory::GuestMemory;
use log::{error, info};
use migration::destination::{Destination, DestinationParams, OnMismatch};
use migration::link::{self, Ring};
use migration::source::{Source, SourceParams};
use migration::stream::RECORD_BYTES;
use spin::{Mutex, Once};
use strandline_pc::budget::Budget;
use strandline_pc::guest::{Guest, GuestEnd, GuestIommu, Resources, add_memory};
use strandline_pc::host::Host;
use strandline_pc::modules::Modules;
use strandline_pc::options::{MAX_MEMORY, Options, Role};
use strandline_pc::{destination, events, source, tick, vectors, worker};
use strandline_rt::debug_exit::{Exit, exit};
use strandline_rt::memory_map::{FreeMemory, OwnedRange};
use strandline_rt::pci::ConfigPorts;
use strandline_rt::physical::{FirmwareMemory, IdentityMemory, shared_words};
use strandline_rt::processors::{self, StartError};
use strandline_rt::{BootInfo, cpu, interrupts};

strandline_rt::entry!(main);

fn main(boot: &'static BootInfo) -> ! {
    info!("strandline {}", env!("CARGO_PKG_VERSION"));
    let options = Options::parse(boot.command_line()).unwrap_or_else(|error| refuse(&error));
    // SAFETY: this is an image on the identity map, which reads only what the
    // firmware's tables name.
    let firmware = unsafe { FirmwareMemory::new() };
    // SAFETY: this is an image on a PC; its other CPU, once started, stays away from
    // configuration space.
    let config = unsafe { ConfigPorts::new() };
    let host =
        Host::discover(&firmware, config, boot.rsdp()).unwrap_or_else(|error| refuse(&error));
    events::set_clock(host.clock);
    // SAFETY: the only call.
    let mut free = unsafe { FreeMemory::at_boot(boot) };
    let free_bytes = free.bytes();
    let budget = Budget::carve(&mut free, options.memory).unwrap_or_else(|error| refuse(&error));

    #[cfg(feature = "sabotage")]
    if let Some(sabotage) = options.sabotage {
        info!("sabotage: {}", sabotage.name());
        hv_core::sabotage::activate(sabotage);
    }
    describe(boot, &host, free_bytes);
    info!("{budget}");
    events::emit(
        "boot",
        &[
            ("role", (&options.role.name()).into()),
            ("version", (&env!("CARGO_PKG_VERSION")).into()),
        ],
    );
    match options.role {
        Role::None => self_check(&host),
        Role::Source | Role::Destination => host_guest(boot, &options, &host, budget),
    }
}

/// Ends the program because the machine or the request lacks something; nothing
/// was started.
fn refuse(reason: &dyn Display) -> ! {
    error!("{reason}");
    events::emit("refused", &[("reason", (&reason).into())]);
    exit(Exit::Failure)
}

/// How often the tick cuts in, in Hz.
const TICK_HZ: u32 = 1000;

/// How long the source waits for a destination to accept.
const CONNECT_TIMEOUT_MS: u64 = 10_000;
/// How long the source waits for the destination to go on: longer than a device's
/// state takes to put back.
const PROGRESS_TIMEOUT_MS: u64 = 3_000;

/// One record of the stream.
static RECORD: Mutex<[u8; RECORD_BYTES]> = Mutex::new([0; RECORD_BYTES]);
/// One bit for each page that arrived.
static ARRIVED: Mutex<[u64; ARRIVED_WORDS]> = Mutex::new([0; ARRIVED_WORDS]);
const ARRIVED_WORDS: usize = Destination::words_needed(MAX_MEMORY >> PAGE_SHIFT) as usize;

/// The host's memory.
static FRAMES: Once<IdentityMemory> = Once::new();

/// Makes the guest of the budget and plays the role.
fn host_guest(boot: &'static BootInfo, options: &Options<'_>, host: &Host, budget: Budget) -> ! {
    let mut frames = IdentityMemory::new();
    let mut own = |range: OwnedRange| {
        range
            .into_frames(&mut frames)
            .unwrap_or_else(|error| refuse(&error))
    };
    let guest_memory = own(budget.guest);
    let nested_tables = own(budget.nested_tables);
    let iommu_tables = own(budget.iommu_tables);
    let vcpu = own(budget.vcpu);
    // For good, because another CPU uses its part of it.
    let frames = FRAMES.call_once(|| frames);
    let log = DirtyLog::new(budget.dirty_log.into_words(), options.memory >> PAGE_SHIFT);
    let mut memory = GuestMemory::new(frames, &log);
    add_memory(&mut memory, guest_memory).unwrap_or_else(|error| refuse(&error));
    let resources = Resources {
        frames,
        memory: &memory,
        nested_tables,
        iommu_tables,
        vcpu,
        pins: budget.pin_tracker.into_counters(),
        worker: start_worker(boot, options, host),
    };
    // SAFETY: the link's memory answers since discovery, and nothing else on this
    // machine uses it. The other machine writes it at any time, which atomic words
    // allow.
    let words = unsafe { shared_words(host.link.window) }
        .unwrap_or_else(|| refuse(&"the link's memory is not usable"));

    let payload = payload(boot, options);
    let given = GuestIommu {
        kind: options.viommu,
        interrupt_remapping: options.interrupt_remapping,
    };
    let mut guest = Guest::build(host, resources, given, payload.as_ref())
        .unwrap_or_else(|error| refuse(&error));
    tick::start(&host.apic, host.rates, TICK_HZ);
    let ring = |role| Ring::new(words, role).unwrap_or_else(|error| refuse(&error));
    let end = match options.role {
        Role::Destination => receive(
            &mut guest,
            options,
            &mut ring(link::ring::Role::Destination),
            host,
        ),
        Role::Source | Role::None => send(
            &mut guest,
            options,
            &mut ring(link::ring::Role::Source),
            host,
        ),
    };
    // Its time ends here: a reset of its device takes some.
    info!("{end}");
    events::emit(
        "guest-exit",
        &[
            ("status", end.status().into()),
            ("way", (&end.way()).into()),
        ],
    );
    guest.release_device();
    exit(match end.status() {
        0 => Exit::Success,
        _ => Exit::Failure,
    })
}

/// The guest's image, which only the source has.
fn payload<'a>(boot: &'static BootInfo, options: &Options<'a>) -> Option<Payload<'a>> {
    if options.role != Role::Source {
        return None;
    }
    let modules = Modules::find([boot.module_bytes(0), boot.module_bytes(1)])
        .unwrap_or_else(|error| refuse(&error));
    Some(Payload {
        image: modules.kernel,
        initramfs: modules.initramfs,
        command_line: options.guest,
        cpus: options.vcpus,
    })
}

/// Starts the CPU for the guest's second one, if it is to have two; its APIC id.
fn start_worker(boot: &BootInfo, options: &Options<'_>, host: &Host) -> Option<u32> {
    if options.vcpus < 2 {
        return None;
    }
    let own = host.apic.id();
    let Some(id) = host.cpus.iter().copied().find(|id| *id != own) else {
        refuse(&StartError::NoOther);
    };
    let wait_us = |us| {
        let start = host.clock.now_us();
        while host.clock.now_us() - start < us {
            cpu::pause();
        }
    };
    match processors::start(boot, &host.apic, id, wait_us, worker::main) {
        Ok(()) => Some(id),
        Err(error) => refuse(&error),
    }
}

/// Runs the guest until it ends here; does not return when it leaves.
fn send<'m>(
    guest: &mut Guest<'m>,
    options: &Options<'m>,
    link: &mut Ring<'_>,
    host: &Host,
) -> GuestEnd {
    let params = SourceParams {
        max_bandwidth: options.max_bandwidth.unwrap_or(0),
        downtime_limit_ms: options.downtime_limit_us / 1000,
        audit: options.verify,
        connect_timeout_ms: CONNECT_TIMEOUT_MS,
        progress_timeout_ms: PROGRESS_TIMEOUT_MS,
        ..SourceParams::default()
    };
    if let Some(word) = options.migrate_on {
        guest.wait_for_cue(word);
    }
    let mut record = RECORD.lock();
    let migration = Source::new(params, &mut record);
    match source::run(
        guest,
        migration,
        link,
        &host.clock,
        options.migrate_after_us(),
    ) {
        source::End::Guest(end) => end,
        source::End::Migrated => {
            guest.release_device();
            exit(Exit::Success)
        }
        source::End::InDoubt => exit(Exit::Failure),
    }
}

/// Waits for the guest and runs it until it ends; does not return if it does not
/// arrive.
fn receive(
    guest: &mut Guest<'_>,
    options: &Options<'_>,
    link: &mut Ring<'_>,
    host: &Host,
) -> GuestEnd {
    let params = DestinationParams {
        // A guest that is broken on purpose is let in, so that it can tell itself.
        on_mismatch: match options.sabotage {
            None => OnMismatch::Refuse,
            Some(_) => OnMismatch::Report,
        },
        ..DestinationParams::default()
    };
    let (mut record, mut arrived) = (RECORD.lock(), ARRIVED.lock());
    let migration = Destination::new(params, &mut record, &mut *arrived);
    if let Err(error) = destination::receive(guest, migration, link, &host.clock) {
        refuse(&error);
    }
    destination::run(guest)
}

fn describe(boot: &BootInfo, host: &Host, free: u64) {
    info!("memory: {} KiB free", free >> 10);
    for module in boot.modules() {
        info!("module: {} bytes at {:#x}", module.bytes, module.start);
    }
    info!(
        "clocks: tsc {} kHz, apic timer {} kHz",
        host.rates.tsc_hz / 1000,
        host.rates.apic_timer_hz / 1000
    );
    let units = &host.units;
    info!(
        "iommu: {} table of {} bytes",
        units.signature,
        units.bytes().len()
    );
    for (name, device) in [("device", host.device), ("link", host.link)] {
        info!(
            "{name}: {}, {} KiB at {:#x}",
            device.function,
            device.window.bytes >> 10,
            device.window.start
        );
    }
}

/// Shows that time passes and interrupts arrive, and ends.
fn self_check(host: &Host) -> ! {
    const HZ: u32 = 100;
    const TICKS: u32 = 10;

    let start = host.clock.now_us();
    tick::start(&host.apic, host.rates, HZ);
    let mut ticks = 0;
    while ticks < TICKS {
        if interrupts::wait().contains(vectors::TICK) {
            ticks += 1;
        }
    }
    host.apic.stop_timer();
    let took = host.clock.now_us() - start;
    info!("self-check: {TICKS} ticks at {HZ} Hz took {took} us");
    exit(Exit::Success)
}
