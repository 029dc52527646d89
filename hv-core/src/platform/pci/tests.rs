//! The bus as a guest sees it.

use super::super::apic::Msi;
use super::*;
use crate::platform::time::Time;
use crate::platform::{Platform, apic};
use raw_cpuid::CpuIdResult;

const EDU: PassthroughFunction = PassthroughFunction {
    device: 4,
    vendor_id: 0x1234,
    device_id: 0x11e8,
    class: 0x00ff00,
    revision: 0x10,
    subsystem: 0x1100_1af4,
    bar0: Bar {
        home: 0xe000_0000,
        bytes: 0x10_0000,
        placement: Placement::Fixed,
    },
    interrupts: Interrupts::Msi,
};

const NVME: PassthroughFunction = PassthroughFunction {
    device: 5,
    class: 0x01_0802,
    bar0: Bar {
        home: 0xe010_0000,
        bytes: 0x4000,
        placement: Placement::Movable,
    },
    interrupts: Interrupts::Msix(MsixLayout {
        vectors: 3,
        table: 0x2000,
        pending: 0x3000,
    }),
    ..EDU
};

fn bus() -> PciBus {
    let mut bus = PciBus::new();
    bus.add(EDU).unwrap();
    bus
}

fn select(bus: &mut PciBus, device: u32, register: u32) {
    bus.write_port(ADDRESS_PORT, 4, 1 << 31 | device << 11 | register);
}

fn read(bus: &mut PciBus, device: u32, register: u32) -> u32 {
    select(bus, device, register);
    bus.read_port(DATA_PORT, 4)
}

fn write_to(bus: &mut PciBus, device: u32, register: u32, value: u32) -> bool {
    select(bus, device, register);
    bus.write_port(DATA_PORT, 4, value)
}

fn write(bus: &mut PciBus, register: u32, value: u32) -> bool {
    write_to(bus, 4, register, value)
}

/// Whatever the device itself has: the guest is shown nothing of ATS, which is an
/// extended capability, nor that there could be such ones.
#[test]
fn a_function_has_one_capability_which_is_for_interrupts_and_none_beyond_256_bytes() {
    let mut bus = bus();
    bus.add(NVME).unwrap();
    for (device, id) in [(4, 0x05), (5, 0x11)] {
        let first = read(&mut bus, device, 0x34);
        let capability = read(&mut bus, device, first);
        assert_eq!(capability & 0xffff, id, "no other is linked to it");
        for register in (0x100..0x1000).step_by(4) {
            assert_eq!(bus.read_window(u64::from(device) << 15 | register, 4), 0);
        }
        // Some host bridges take bits 27:24 for the rest of an extended register; this
        // one has nothing there.
        for beyond in 1..16 {
            assert_eq!(read(&mut bus, device, beyond << 24), u32::MAX);
        }
    }
}

#[test]
fn functions_are_found_and_missing_ones_read_all_ones() {
    let mut bus = bus();
    assert_eq!(read(&mut bus, 4, 0), 0x11e8_1234);
    assert_eq!(read(&mut bus, 0, 0), 0x29c0_8086);
    assert_eq!(read(&mut bus, 5, 0), u32::MAX);
    bus.write_port(ADDRESS_PORT, 4, 1 << 31 | 1 << 16);
    assert_eq!(bus.read_port(DATA_PORT, 4), u32::MAX, "bus 1");
    select(&mut bus, 4, 0);
    assert_eq!(bus.read_port(DATA_PORT + 2, 2) & 0xffff, 0x11e8);
}

#[test]
fn a_fixed_bar_tells_its_size_and_stays_at_home() {
    let mut bus = bus();
    write(&mut bus, 0x10, u32::MAX);
    assert_eq!(read(&mut bus, 4, 0x10), 0xfff0_0000);
    assert_eq!(bus.window(0), Some(Gpa::new(0xe000_0000)));
    write(&mut bus, 0x10, 0xd000_0000);
    assert_eq!(read(&mut bus, 4, 0x10), 0xe000_0000);
    assert_eq!(bus.window(0), Some(Gpa::new(0xe000_0000)));
}

#[test]
fn a_movable_bar_tells_its_size_and_is_where_it_was_put_while_memory_is_on() {
    let mut bus = PciBus::new();
    bus.add(NVME).unwrap();
    assert_eq!(read(&mut bus, 5, 0x10), 0xe010_0004);
    assert_eq!(bus.window(0), None, "memory space is off");
    for register in [0x10, 0x14] {
        write_to(&mut bus, 5, register, u32::MAX);
    }
    assert_eq!(read(&mut bus, 5, 0x10), 0xffff_c004);
    assert_eq!(read(&mut bus, 5, 0x14), u32::MAX);
    write_to(&mut bus, 5, 0x10, 0x8000_1234);
    write_to(&mut bus, 5, 0x14, 0x10);
    assert!(write_to(&mut bus, 5, 0x04, 2), "the image hears of it");
    assert_eq!(bus.window(0), Some(Gpa::new(0x10_8000_0000)));
}

#[test]
fn msi_is_sent_while_enabled_and_every_change_is_told() {
    let mut bus = bus();
    assert_eq!(bus.signal(0, 0), None);
    assert!(write(&mut bus, 0x44, 0xfee0_0000));
    assert!(write(&mut bus, 0x4c, 0x41));
    assert!(write(&mut bus, 0x40, 1 << 16));
    let msi = Msi {
        address: 0xfee0_0000,
        data: 0x41,
    };
    assert!(bus.wants_interrupts(0));
    let source = 4 << 3;
    assert_eq!(bus.signal(0, 0), Some(Request { source, msi }));
    assert!(!write(&mut bus, 0x40, 1 << 16), "nothing new");
    assert!(write(&mut bus, 0x04, 6));
    assert_eq!(bus.command(0), Some(6));
    assert_eq!(read(&mut bus, 4, 0x40), 0x0081_0005);
}

#[test]
fn the_msix_table_is_in_the_bar_and_moves_with_it() {
    let mut bus = bus();
    let function = bus.add(NVME).unwrap();
    assert_eq!(read(&mut bus, 5, 0x40), 0x0002_0011);
    assert_eq!(read(&mut bus, 5, 0x44), 0x2000);
    assert_eq!(read(&mut bus, 5, 0x48), 0x3000);
    let table = |base: u64| Gpa::new(base + 0x2000);
    assert_eq!(bus.read_memory(table(0xe010_0000)), None, "memory is off");
    write_to(&mut bus, 5, 0x04, 2);
    assert!(bus.write_memory(table(0xe010_0000), 0xfee0_1000));
    assert!(!bus.write_memory(Gpa::new(0xe010_0000), 1), "registers");
    write_to(&mut bus, 5, 0x10, 0xe020_0000);
    assert_eq!(bus.read_memory(table(0xe010_0000)), None);
    assert_eq!(bus.read_memory(table(0xe020_0000)), Some(0xfee0_1000));
    assert!(write_to(&mut bus, 5, 0x40, 1 << 31));
    assert!(bus.wants_interrupts(function));
    assert_eq!(bus.signal(function, 0), None, "masked");
    assert!(bus.write_memory(Gpa::new(0xe020_200c), 0));
    assert_eq!(bus.take_due().map(|it| it.msi.address), Some(0xfee0_1000));
}

#[test]
fn a_state_of_other_functions_is_refused() {
    let mut ours = bus();
    write(&mut ours, 0x04, 6);
    let state = ours.save();
    let mut same = bus();
    assert!(same.restore(&state));
    assert_eq!(same.save(), state);
    assert!(!PciBus::new().restore(&state));
}

#[test]
fn impossible_functions_are_refused() {
    let mut bus = bus();
    assert_eq!(bus.add(EDU), Err(AddFunctionError::DeviceNumber(4)));
    let odd = PassthroughFunction {
        device: 5,
        bar0: Bar {
            bytes: 0x3000,
            ..EDU.bar0
        },
        ..EDU
    };
    assert_eq!(bus.add(odd), Err(AddFunctionError::Bar));
    let interrupts = |table, pending| {
        Interrupts::Msix(MsixLayout {
            vectors: 1,
            table,
            pending,
        })
    };
    for (table, pending) in [(0x4000, 0), (0, 0), (0x10, 0x1000)] {
        let outside = PassthroughFunction {
            interrupts: interrupts(table, pending),
            ..NVME
        };
        assert_eq!(bus.add(outside), Err(AddFunctionError::Bar));
    }
}

#[test]
fn memory_and_ports_are_two_ways_to_one_register() {
    let mut bus = bus();
    let at = |register: u64| 4 << 15 | register;
    assert_eq!(bus.read_window(at(0), 4), 0x11e8_1234);
    assert_eq!(bus.read_window(at(2), 2), 0x11e8);
    assert_eq!(bus.read_window(at(1), 1) & 0xff, 0x12);
    assert!(
        bus.write_window(at(4), 2, 6),
        "the command register changed"
    );
    assert_eq!(read(&mut bus, 4, 4) & 0xffff, 6);
    write(&mut bus, 4, 0);
    assert_eq!(bus.read_window(at(4), 2) & 0xffff, 0);
}

#[test]
fn what_is_not_there_in_memory_reads_all_ones_and_takes_no_writes() {
    let mut bus = bus();
    let before = bus.save();
    let (missing, second_function) = (9 << 15, 4 << 15 | 1 << 12);
    let across = 4 << 15 | 2;
    for (offset, width) in [
        (missing, 4),
        (second_function, 4),
        (across, 4),
        (WINDOW_BYTES, 4),
    ] {
        assert_eq!(bus.read_window(offset, width), u32::MAX, "{offset:#x}");
        assert!(!bus.write_window(offset, width, u32::MAX), "{offset:#x}");
    }
    // A function that is there has no extended capability.
    assert_eq!(bus.read_window(4 << 15 | 0x100, 4), 0);
    assert!(!bus.write_window(4 << 15 | 0x104, 4, u32::MAX));
    assert_eq!(bus.save(), before);
}

#[test]
fn the_msix_table_takes_8_aligned_bytes_at_once_and_no_other_register_does() {
    let mut bus = PciBus::new();
    bus.add(NVME).unwrap();
    const NONE: CpuIdResult = CpuIdResult {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    let mut platform = Platform::new(|_, _| NONE, bus, 1_000_000_000, 1, 0);
    write_to(&mut platform.pci, 5, 0x04, 2);
    let table = |offset: u64| Gpa::new(0xe010_2000 + offset);
    let now = Time::from_ns(0);
    platform.write_memory(0, table(0), 8, 0x1_fee0_1004, now);
    assert_eq!(platform.read_memory(0, table(0), 8, now), 0x1_fee0_1004);
    platform.write_memory(0, table(4), 8, u64::MAX, now);
    platform.write_memory(0, table(8), 8, 0xffff_fffe_0000_0041, now);
    assert_eq!(platform.read_memory(0, table(8), 8, now), 0x41);
    assert_eq!(platform.read_memory(0, table(4), 8, now), u64::MAX);
    let registers = Gpa::new(apic::WINDOW);
    assert_eq!(platform.read_memory(0, registers, 8, now), u64::MAX);
}
