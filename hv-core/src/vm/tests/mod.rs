//! Exit handling against a CPU that plays a script.

mod access;
mod nmi;
mod processors;

use super::*;
use crate::addr::Hpa;
use crate::memory::{FramePool, Slot};
use crate::platform::GuestExit;
use crate::platform::pci::PciBus;
use crate::testing::Arena;
use crate::vcpu::gpr::{RAX, RCX};
use crate::vcpu::{Intercepted, IoAccess, NestedFault, Pending};
use crate::{Gfn, Gpa, PAGE_SIZE};
use core::sync::atomic::AtomicU64;
use raw_cpuid::CpuIdResult;
use std::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// A CPU whose exits are given beforehand, and that notes how it was entered.
struct Script {
    exits: std::collections::VecDeque<Exit>,
    entries: Vec<(Entry, VcpuState)>,
    tsc: u64,
}

impl Vcpu for &mut Script {
    fn run(&mut self, state: &mut VcpuState, entry: Entry) -> Exit {
        self.entries.push((entry, *state));
        state.pending = Pending::NONE;
        self.exits.pop_front().unwrap_or(Exit::HostInterrupt)
    }

    fn host_tsc(&self) -> u64 {
        self.tsc
    }
}

fn host_cpuid(_: u32, _: u32) -> CpuIdResult {
    CpuIdResult {
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
    }
}

type TestVm<'a> = Vm<'a, Arena, &'a mut Script>;

/// A guest of 16 frames in 64-bit mode whose linear addresses are mapped 1:1 by
/// tables at 0x1000, with its code at 0x4ffe, across a page boundary.
fn with_vm(exits: &[Exit], test: impl FnOnce(&mut TestVm<'_>, &GuestMemory<'_, Arena>)) -> Script {
    let arena = Arena::new(Hpa::new(0x10_0000), 32);
    let words: [AtomicU64; 2] = Default::default();
    let log = DirtyLog::new(&words, 16);
    let mut memory = GuestMemory::new(&arena, &log);
    let slot = Slot {
        gfn: Gfn::new(0),
        hpa: arena.start(),
        frames: 16,
    };
    memory.add_slot(slot).unwrap();
    for (at, entry) in [(0x1000, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
        memory.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
    }
    let pool = FramePool::new(Hpa::new(arena.start().raw() + 16 * PAGE_SIZE), 16);
    let mut tables = NestedTables::new(&arena, pool).unwrap();
    tables.map_ram(&slot).unwrap();
    let mut state = VcpuState::pvh(CODE, 0);
    state.cr0 |= 1 << 31;
    state.cr3 = 0x1000;
    state.cr4 = 1 << 5;
    state.efer = 0x500;
    state.cs.attributes = 0xa9b;
    state.validate().unwrap();
    let mut script = Script {
        exits: exits.iter().copied().collect(),
        entries: Vec::new(),
        tsc: 0,
    };
    let platform = Platform::new(host_cpuid, PciBus::new(), 1_000_000_000, 2, 0);
    test(
        &mut Vm::new(&memory, tables, &mut script, state, platform),
        &memory,
    );
    script
}

const CODE: u32 = 0x4ffe;

fn run(vm: &mut TestVm<'_>) -> Event {
    let mut outside = Outside {
        mmio: &mut [],
        console: &mut |_| {},
    };
    vm.run(&mut outside)
}

fn instruction(what: Intercepted) -> Exit {
    Exit::Instruction {
        what,
        next_rip: u64::from(CODE) + 2,
    }
}

fn fault(gpa: u64) -> NestedFault {
    NestedFault {
        gpa: Gpa::new(gpa),
        write: true,
        fetch: false,
        table_walk: false,
        in_delivery: false,
    }
}

fn enable_apic(vm: &mut TestVm<'_>) {
    let apic = &mut vm.platform.cpus.get(0).apic;
    apic.set_base(apic.base() | 1 << 10).unwrap();
    apic.write_msr(0x80f, 0x1ff, Time::from_ns(0)).unwrap();
}

const MSI: Msi = Msi {
    address: 0xfee0_0000,
    data: 0x41,
};

#[test]
fn an_unknown_msr_is_a_protection_fault_at_the_instruction() {
    let script = with_vm(&[instruction(Intercepted::ReadMsr)], |vm, _| {
        vm.cpus[0].state.gpr[RCX] = 0x1234;
        assert_eq!(run(vm), Event::Interrupted);
    });
    let (_, state) = &script.entries[1];
    assert_eq!(state.pending, Pending::GP);
    assert_eq!(state.rip, u64::from(CODE));
}

#[test]
fn a_missing_instruction_is_an_invalid_opcode() {
    let script = with_vm(&[instruction(Intercepted::Missing)], |vm, _| {
        run(vm);
    });
    assert_eq!(script.entries[1].1.pending, Pending::UD);
}

#[test]
fn the_debug_exit_port_ends_the_guest() {
    let out = IoAccess {
        port: 0xf4,
        width: 4,
        is_in: false,
        is_string: false,
    };
    with_vm(&[instruction(Intercepted::Io(out))], |vm, _| {
        vm.cpus[0].state.gpr[RAX] = 0x10;
        assert_eq!(run(vm), Event::GuestExit(GuestExit::Status(0x10)));
    });
}

#[test]
fn ports_without_a_device_read_all_ones_in_their_width_only() {
    let read = IoAccess {
        port: 0x70,
        width: 1,
        is_in: true,
        is_string: false,
    };
    with_vm(&[instruction(Intercepted::Io(read))], |vm, _| {
        vm.cpus[0].state.gpr[RAX] = 0x1100;
        run(vm);
        assert_eq!(vm.cpus[0].state.gpr[RAX], 0x11ff);
    });
}

#[test]
fn an_interrupt_waits_for_its_window() {
    let script = with_vm(&[Exit::InterruptWindow], |vm, _| {
        enable_apic(vm);
        vm.inject_msi(MSI);
        // Interrupts are off: only a window is asked for. The scripted CPU cannot
        // change its flags, so it is asked again.
        assert_eq!(run(vm), Event::Interrupted);
        vm.cpus[0].state.rflags |= 1 << 9;
        assert_eq!(run(vm), Event::Interrupted);
    });
    let windows: Vec<bool> = script
        .entries
        .iter()
        .map(|(e, _)| e.interrupt_window)
        .collect();
    assert_eq!(windows, [true, true, false]);
    assert_eq!(script.entries[2].1.pending, Pending::interrupt(0x41));
}

#[test]
fn a_halted_guest_sleeps_until_an_interrupt_it_can_take() {
    let script = with_vm(&[instruction(Intercepted::Halt)], |vm, _| {
        enable_apic(vm);
        vm.cpus[0].state.rflags |= 1 << 9;
        assert_eq!(run(vm), Event::Halted);
        assert_eq!(run(vm), Event::Halted);
        vm.inject_msi(MSI);
        assert_eq!(run(vm), Event::Interrupted);
    });
    assert_eq!(script.entries.len(), 2);
    assert_eq!(script.entries[1].1.pending, Pending::interrupt(0x41));
    assert_eq!(script.entries[1].1.rip, u64::from(CODE) + 2);
}

#[test]
fn a_harvest_is_followed_by_one_flush() {
    let script = with_vm(&[], |vm, _| {
        run(vm);
        vm.start_tracking().unwrap();
        run(vm);
        run(vm);
    });
    let flushes: Vec<bool> = script.entries.iter().map(|(e, _)| e.flush_tlb).collect();
    assert_eq!(flushes, [true, true, false]);
}

#[test]
fn a_saved_guest_goes_on_elsewhere_and_a_bad_state_changes_nothing() {
    let mut saved = None;
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        vm.inject_msi(MSI);
        vm.cpus[0].state.gpr[3] = 0xabcd;
        vm.cpus[1].tsc_offset = 5;
        vm.vcpu.tsc = 77;
        saved = Some((vm.save_cpu(0), vm.save_cpu(1), vm.save_platform()));
    });
    let (first, second, platform) = saved.unwrap();
    assert_eq!((first.vcpu.tsc, second.vcpu.tsc), (77, 82));
    let first = CpuState::read_from_bytes(first.as_bytes()).unwrap();
    with_vm(&[], |vm, _| {
        let before = vm.save_cpu(0);
        let mut bad = first;
        bad.vcpu.cr0 |= 1 << 50;
        assert!(matches!(
            vm.restore_cpu(0, &bad),
            Err(RestoreError::Vcpu(_))
        ));
        assert_eq!(vm.save_cpu(0), before);
        assert!(vm.restore_cpu(0, &second).is_err(), "another CPU's");
        vm.vcpu.tsc = 1000;
        vm.restore_cpu(0, &first).unwrap();
        vm.vcpu.tsc = 2000;
        vm.restore_cpu(1, &second).unwrap();
        vm.restore_platform(&platform).unwrap();
        let apart = vm.cpus[1].tsc_offset.wrapping_sub(vm.cpus[0].tsc_offset);
        assert_eq!(apart, 5, "however long it took");
        assert_eq!(vm.platform.cpus.get(0).apic.deliverable(), Some(0x41));
        assert_eq!(vm.save_cpu(0).vcpu.gpr, first.vcpu.gpr);
    });
}

proptest::proptest! {
    #[test]
    fn no_port_or_msr_access_panics(
        accesses in proptest::collection::vec(
            (0..4u8, 0u16.., 0..3u32, 0u64.., 0u64.., 0u64..), 1..64
        )
    ) {
        let exits: Vec<Exit> = accesses.iter().map(|(kind, port, width, ..)| {
            // Half of the ports are those of devices.
            let port = if port & 1 == 0 { 0x3f8 + (port >> 1) % 8 } else { 0xcf8 + (port >> 1) % 8 };
            let access = IoAccess { port, width: 1 << width, is_in: *kind == 0, is_string: false };
            instruction(match kind {
                0 | 1 => Intercepted::Io(access),
                2 => Intercepted::ReadMsr,
                _ => Intercepted::WriteMsr,
            })
        }).collect();
        with_vm(&[], |vm, _| {
            enable_apic(vm);
            let mut outside = Outside { mmio: &mut [], console: &mut |_| {} };
            for (exit, (_, _, _, rax, rcx, rdx)) in exits.iter().zip(&accesses) {
                vm.cpus[0].state.gpr[RAX] = *rax;
                vm.cpus[0].state.gpr[RCX] = 0x800 + rcx % 0x100;
                vm.cpus[0].state.gpr[2] = *rdx & 0x1ff;
                vm.handle(0, *exit, &mut outside);
                let state = vm.save_cpu(0);
                assert_eq!(vm.restore_cpu(0, &state), Ok(()), "{exit:?}");
                let state = vm.save_platform();
                assert_eq!(vm.restore_platform(&state), Ok(()), "{exit:?}");
                if vm.platform.cpus.get(0).apic.deliverable().is_some() {
                    vm.cpus[0].state.pending = Pending::NONE;
                    vm.offer_interrupt(0);
                }
                vm.cpus[0].state.pending = Pending::NONE;
            }
        });
    }
}
