//! NMIs: when they are taken, when they are held back, and what makes a CPU exit for one.

use super::processors::{second, send};
use super::*;

/// An NMI for CPU 0, and for CPU 1.
const FOR_FIRST: u64 = 0x400;
const FOR_SECOND: u64 = 1 << 32 | 0x400;

/// What each entry delivers.
fn deliveries(script: &Script) -> Vec<Pending> {
    let entries = script.entries.iter();
    entries.map(|(_, state)| state.pending).collect()
}

/// The guest's next instruction was executed.
fn step(state: &mut VcpuState) {
    assert_eq!(state.interrupt_shadow, 1);
    state.interrupt_shadow = 0;
}

/// CPU 1 is started, and goes with nothing to deliver.
fn start_second(vm: &mut TestVm<'_>) -> Order {
    send(vm, 1 << 32 | 0x4500);
    send(vm, 1 << 32 | 0x609);
    let order = vm.order(1).unwrap();
    assert_eq!(order.state.pending, Pending::NONE);
    order
}

#[test]
fn an_nmi_is_taken_with_interrupts_off_and_before_an_interrupt() {
    let script = with_vm(&[], |vm, _| {
        enable_apic(vm);
        assert_eq!(vm.cpus[0].state.rflags & 1 << 9, 0);
        vm.inject_msi(MSI);
        send(vm, FOR_FIRST);
        run(vm);
    });
    assert_eq!(deliveries(&script), [Pending::nmi()]);
    assert!(script.entries[0].0.interrupt_window, "the interrupt waits");
}

#[test]
fn an_nmi_waits_for_a_pending_event_and_for_the_end_of_a_shadow() {
    let script = with_vm(&[instruction(Intercepted::Missing)], |vm, _| {
        enable_apic(vm);
        vm.cpus[0].state.interrupt_shadow = 1;
        send(vm, FOR_FIRST);
        assert_eq!(run(vm), Event::Interrupted);
        step(&mut vm.cpus[0].state);
        run(vm);
    });
    let expected = [Pending::NONE, Pending::UD, Pending::nmi()];
    assert_eq!(deliveries(&script), expected);
    assert!(script.entries[0].0.interrupt_window, "the shadow's end");
}

#[test]
fn those_that_come_during_one_are_one_more_after_its_iret_is_executed() {
    let exits = [
        Exit::HostInterrupt,
        Exit::HostInterrupt,
        Exit::InterruptReturn,
    ];
    let script = with_vm(&exits, |vm, _| {
        enable_apic(vm);
        vm.cpus[0].state.rflags |= 1 << 9;
        send(vm, FOR_FIRST);
        run(vm);
        send(vm, FOR_FIRST);
        send(vm, FOR_FIRST);
        run(vm);
        vm.inject_msi(MSI);
        vm.cpus[0].state.rflags &= !(1 << 9);
        // The exit at the IRET, and then one that came before it was executed.
        run(vm);
        vm.cpus[0].state.rflags |= 1 << 9;
        run(vm);
        step(&mut vm.cpus[0].state);
        run(vm);
        run(vm);
        assert!(!vm.platform.cpus.get(0).has_nmi());
    });
    let held = [Pending::NONE; 4];
    let mut expected = std::vec![Pending::nmi()];
    expected.extend(held);
    // The interrupt comes once the second handler's flags allow it; here they do.
    expected.extend([Pending::nmi(), Pending::interrupt(0x41)]);
    assert_eq!(deliveries(&script), expected);
    let masked: Vec<u8> = script.entries.iter().map(|(_, s)| s.nmi_masked).collect();
    assert_eq!(masked, [1, 1, 1, 0, 0, 1, 1]);
    let windows = script.entries.iter().map(|(e, _)| e.interrupt_window);
    assert!(windows.skip(3).take(2).all(|window| window));
}

#[test]
fn an_nmi_wakes_a_halted_cpu_but_not_one_that_waits_for_its_start() {
    let script = with_vm(&[instruction(Intercepted::Halt)], |vm, _| {
        enable_apic(vm);
        assert_eq!(run(vm), Event::Halted);
        send(vm, FOR_SECOND);
        assert_eq!((vm.order(1), vm.has_news(1)), (None, false));
        assert_eq!(run(vm), Event::Halted);
        send(vm, FOR_FIRST);
        assert_eq!(run(vm), Event::Interrupted);
        send(vm, 1 << 32 | 0x609);
        let order = vm.order(1).unwrap();
        assert_eq!(order.state.pending, Pending::nmi());
    });
    assert_eq!(deliveries(&script), [Pending::NONE, Pending::nmi()]);
    assert_eq!(script.entries[1].1.halted, 0);
}

#[test]
fn a_handler_that_halts_is_not_woken_by_the_next_one() {
    let halts = instruction(Intercepted::Halt);
    let script = with_vm(&[halts], |vm, _| {
        enable_apic(vm);
        send(vm, FOR_FIRST);
        assert_eq!(run(vm), Event::Halted);
        send(vm, FOR_FIRST);
        assert_eq!(run(vm), Event::Halted);
    });
    assert_eq!(deliveries(&script), [Pending::nmi()]);
}

#[test]
fn a_cpu_that_is_away_is_called_for_an_nmi_unless_it_exits_by_itself() {
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        let order = start_second(vm);
        assert!(!vm.must_call(1));
        send(vm, FOR_SECOND);
        assert!(vm.must_call(1));
        assert!(!vm.must_call(1), "it is called already");
        second(vm, &order, Exit::HostInterrupt);
        let mut order = vm.order(1).unwrap();
        assert_eq!(order.state.pending, Pending::nmi());
        // The next one waits for the handler's IRET, which exits.
        send(vm, FOR_SECOND);
        vm.vcpu.tsc += 10_000_000;
        assert!(!vm.must_call(1));
        order.state.pending = Pending::NONE;
        assert_eq!(second(vm, &order, Exit::InterruptReturn), None);
        let mut order = vm.order(1).unwrap();
        assert_eq!(order.state.pending, Pending::NONE);
        // It has the time to execute the IRET before it is called for what waits.
        assert!(!vm.must_call(1));
        vm.vcpu.tsc += 1_000_000;
        assert!(vm.must_call(1));
        step(&mut order.state);
        second(vm, &order, Exit::HostInterrupt);
        assert_eq!(vm.order(1).unwrap().state.pending, Pending::nmi());
    });
}

#[test]
fn init_ends_an_nmi_and_what_is_held_back() {
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        let order = start_second(vm);
        send(vm, FOR_SECOND);
        second(vm, &order, Exit::HostInterrupt);
        let order = vm.order(1).unwrap();
        assert_eq!(order.state.nmi_masked, 1);
        send(vm, FOR_SECOND);
        send(vm, 1 << 32 | 0x4500);
        second(vm, &order, Exit::HostInterrupt);
        assert_eq!(vm.order(1), None);
        send(vm, 1 << 32 | 0x609);
        let order = vm.order(1).unwrap();
        assert_eq!(order.state.nmi_masked, 0);
        assert_eq!(order.state.pending, Pending::NONE);
    });
}

#[test]
fn an_nmi_in_the_making_goes_on_elsewhere() {
    let mut saved = None;
    with_vm(&[], |vm, _| {
        enable_apic(vm);
        send(vm, FOR_FIRST);
        run(vm);
        send(vm, FOR_FIRST);
        saved = Some(vm.save_cpu(0));
    });
    let saved = CpuState::read_from_bytes(saved.unwrap().as_bytes()).unwrap();
    let script = with_vm(&[Exit::InterruptReturn], |vm, _| {
        vm.restore_cpu(0, &saved).unwrap();
        run(vm);
        step(&mut vm.cpus[0].state);
        run(vm);
    });
    let expected = [Pending::NONE, Pending::NONE, Pending::nmi()];
    assert_eq!(deliveries(&script), expected, "held back until the IRET");
    with_vm(&[], |vm, _| {
        let mut bad = saved;
        bad.vcpu.nmi_masked = 2;
        assert!(vm.restore_cpu(0, &bad).is_err());
        bad.vcpu.nmi_masked = 0;
        assert!(vm.restore_cpu(0, &bad).is_ok());
        bad.vcpu.pending = Pending::nmi();
        assert!(vm.restore_cpu(0, &bad).is_err(), "taken and not masked");
    });
}
