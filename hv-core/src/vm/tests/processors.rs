//! A guest with two CPUs.

use super::*;

/// Plays the physical CPU of CPU 1.
pub(super) fn second(vm: &mut TestVm<'_>, order: &Order, exit: Exit) -> Option<Event> {
    let back = Return {
        state: order.state,
        entry: order.entry,
        exit,
    };
    let mut outside = Outside {
        mmio: &mut [],
        console: &mut |_| {},
    };
    vm.returned(1, &back, &mut outside)
}

pub(super) fn send(vm: &mut TestVm<'_>, icr: u64) {
    let now = Time::from_ns(0);
    let sent = vm.platform.cpus.get(0).apic.write_msr(0x830, icr, now);
    vm.platform.cpus.send(sent.unwrap().unwrap(), Some(0));
}

#[test]
fn a_second_cpu_runs_when_the_first_starts_it() {
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        assert_eq!(vm.order(1), None, "it waits for a start-up");
        send(vm, 1 << 32 | 0x4500);
        send(vm, 1 << 32 | 0x609);
        let order = vm.order(1).unwrap();
        assert_eq!((order.state.cs.base, order.state.rip), (0x9000, 0));
        assert!(order.entry.flush_tlb);
        assert_eq!(vm.order(1), None, "it is away");
        assert!(!vm.must_call(1));
        send(vm, 1 << 32 | 0x60a);
        assert!(vm.must_call(1));
        assert!(!vm.must_call(1), "it is called already");
        assert_eq!(second(vm, &order, Exit::InterruptWindow), None);
        let again = vm.order(1).unwrap();
        assert_eq!(again.state.cs.base, 0x9000, "it runs already");
        assert!(!again.entry.flush_tlb);
    });
}

#[test]
fn an_interrupt_calls_a_cpu_back_unless_it_watches_for_it() {
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        send(vm, 1 << 32 | 0x4500);
        let _ = vm.order(1);
        send(vm, 1 << 32 | 0x609);
        let order = vm.order(1).unwrap();
        let apic = &mut vm.platform.cpus.get(1).apic;
        apic.set_base(apic.base() | 1 << 10).unwrap();
        apic.write_msr(0x80f, 0x1ff, Time::from_ns(0)).unwrap();
        send(vm, 1 << 32 | 0x41);
        assert!(vm.must_call(1));
        assert!(!vm.must_call(1), "it is called already");
        assert_eq!(second(vm, &order, Exit::InterruptWindow), None);
        // Its interrupts are off.
        let mut order = vm.order(1).unwrap();
        assert!(order.entry.interrupt_window && !vm.must_call(1));
        order.state.rflags |= 1 << 9;
        assert_eq!(second(vm, &order, Exit::InterruptWindow), None);
        let order = vm.order(1).unwrap();
        assert_eq!(order.state.pending, Pending::interrupt(0x41));
    });
}

#[test]
#[should_panic(expected = "CPU 1 is in the guest")]
fn dirty_state_is_not_read_while_a_cpu_is_away() {
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        send(vm, 1 << 32 | 0x609);
        vm.order(1).unwrap();
        let _ = vm.start_tracking();
    });
}
