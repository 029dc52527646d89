//! Tests of what the VMCB is filled with and how exits are read.

use super::*;
use crate::vcpu::Segment;
use std::boxed::Box;
use zerocopy::FromZeros;

/// A block of zeros.
fn block() -> Box<Vmcb> {
    Box::new(Vmcb::new_zeroed())
}

#[test]
fn every_register_survives_a_round_trip_through_the_block() {
    let mut state = VcpuState::pvh(0x10_0000, 0x9000);
    state.cr8 = 5;
    state.efer = 0xd01;
    state.interrupt_shadow = 1;
    state.fs = Segment {
        selector: 1,
        attributes: 0x493,
        limit: 3,
        base: 4,
    };
    state.star = 0x1111;
    state.sysenter_eip = 0x2222;
    state.gpr[RSP] = 0x3333;
    state.cr2 = 0x4444;
    let mut vmcb = block();
    load(&mut vmcb, &state, Entry::default());
    assert_eq!(vmcb.save.efer, 0x1d01, "SVME is set for hardware only");
    let mut back = VcpuState::pvh(0, 0);
    // What only the switch itself carries.
    back.gpr = state.gpr;
    store(&vmcb, &mut back);
    assert_eq!(back, state);
}

#[test]
fn a_flush_lasts_for_one_entry() {
    let (mut vmcb, state) = (block(), VcpuState::pvh(0, 0));
    let flush = Entry {
        flush_tlb: true,
        ..Entry::default()
    };
    load(&mut vmcb, &state, flush);
    assert_eq!(vmcb.control.tlb_control, tlb_control::FLUSH_ALL);
    load(&mut vmcb, &state, Entry::default());
    assert_eq!(vmcb.control.tlb_control, tlb_control::NOTHING);
}

#[test]
fn an_interrupt_window_lasts_for_one_entry() {
    let (mut vmcb, state) = (block(), VcpuState::pvh(0, 0));
    let window = Entry {
        interrupt_window: true,
        ..Entry::default()
    };
    load(&mut vmcb, &state, window);
    assert_ne!(vmcb.control.vintr & vintr::IRQ, 0);
    assert_ne!(vmcb.control.intercept1 & intercept1::VINTR, 0);
    load(&mut vmcb, &state, Entry::default());
    assert_eq!(vmcb.control.vintr, vintr::MASKING);
    assert_eq!(vmcb.control.intercept1 & intercept1::VINTR, 0);
}

#[test]
fn an_nmi_is_injected_and_iret_exits_as_long_as_nmis_are_masked() {
    let (mut vmcb, mut state) = (block(), VcpuState::pvh(0, 0));
    state.begin_nmi();
    load(&mut vmcb, &state, Entry::default());
    assert_eq!(vmcb.control.event_injection, EVENT_VALID | 2 << 8 | 2);
    assert_ne!(vmcb.control.intercept1 & intercept1::IRET, 0);
    vmcb.control.exit_code = exit_code::IRET;
    assert_eq!(decode(&vmcb, false), Exit::InterruptReturn);
    store(&vmcb, &mut state);
    assert_eq!((state.pending, state.nmi_masked), (Pending::NONE, 1));
    state.end_nmi();
    load(&mut vmcb, &state, Entry::default());
    assert_eq!(vmcb.control.intercept1 & intercept1::IRET, 0);
    assert_eq!(vmcb.control.interrupt_shadow, 1);
}

#[test]
fn interrupted_deliveries_are_repeated_and_software_interrupts_restarted() {
    for event in [Pending::nmi(), Pending::exception(14, Some(6)), Pending::UD] {
        assert_eq!(decode_event(encode_exception(&event)), event);
    }
    assert_eq!(decode_event(EVENT_VALID | 0x51), Pending::interrupt(0x51));
    // INT 0x80, INT3, no exception at all, and an invalid word with bits in it.
    for info in [
        EVENT_VALID | 4 << 8 | 0x80,
        EVENT_VALID | 3 << 8 | 3,
        EVENT_VALID | 3 << 8 | 0x41,
        0x30,
    ] {
        assert_eq!(decode_event(info), Pending::NONE);
    }
    assert_eq!(encode_exception(&Pending::NONE), 0);
}

#[test]
fn instruction_exits_name_the_next_instruction() {
    let mut vmcb = block();
    vmcb.save.rip = 0x1000;
    vmcb.control.exit_code = exit_code::CPUID;
    let cpuid = |next_rip| Exit::Instruction {
        what: Intercepted::Cpuid,
        next_rip,
    };
    assert_eq!(decode(&vmcb, false), cpuid(0x1002));
    vmcb.control.next_rip = 0x1003;
    assert_eq!(decode(&vmcb, true), cpuid(0x1003), "a prefix is counted");
    // out dx, al to 0x3f8.
    vmcb.control.exit_code = exit_code::IOIO;
    vmcb.control.exit_info1 = 0x3f8 << 16 | 1 << 4;
    vmcb.control.exit_info2 = 0x1001;
    let access = IoAccess {
        port: 0x3f8,
        width: 1,
        is_in: false,
        is_string: false,
    };
    let out = Exit::Instruction {
        what: Intercepted::Io(access),
        next_rip: 0x1001,
    };
    assert_eq!(decode(&vmcb, false), out);
}

#[test]
fn nested_faults_tell_fetches_walks_and_writes_apart() {
    let mut vmcb = block();
    vmcb.control.exit_code = exit_code::NPF;
    vmcb.control.exit_info2 = 0xfed9_0008;
    let fault = |vmcb: &Vmcb| match decode(vmcb, false) {
        Exit::NestedFault(fault) => (fault.write, fault.fetch, fault.table_walk),
        other => panic!("{other:?}"),
    };
    for (info, expected) in [
        (0x1_0000_0006, (true, false, false)),
        (0x1_0000_0004, (false, false, false)),
        (0x1_0000_0014, (false, true, false)),
        (0x2_0000_0006, (true, false, true)),
    ] {
        vmcb.control.exit_info1 = info;
        assert_eq!(fault(&vmcb), expected);
    }
}

/// A block as VMEXIT leaves it, after an entry with `pending` and no window.
fn left_with(pending: Pending, is_requested: bool, exit_int_info: u64) -> Box<Vmcb> {
    let (mut vmcb, mut state) = (block(), VcpuState::pvh(0, 0));
    state.pending = pending;
    load(&mut vmcb, &state, Entry::default());
    if !is_requested {
        vmcb.control.vintr &= !vintr::IRQ;
    }
    vmcb.control.exit_int_info = exit_int_info;
    vmcb
}

#[test]
fn an_interrupt_is_requested_with_its_vector_and_never_injected() {
    let vmcb = left_with(Pending::interrupt(0x41), true, 0);
    assert_eq!(vmcb.control.vintr, vintr::MASKING | vintr::request(0x41));
    assert_eq!(vmcb.control.vintr >> 32, 0x41);
    assert_eq!(vmcb.control.intercept1 & intercept1::VINTR, 0);
    assert_eq!(vmcb.control.event_injection, 0);
}

#[test]
fn an_interrupt_is_repeated_exactly_if_it_was_not_taken() {
    let event = Pending::interrupt(0x41);
    let not_taken = left_with(event, true, 0);
    assert_eq!(undelivered_event(&not_taken, event), event);
    let taken = left_with(event, false, 0);
    assert_eq!(undelivered_event(&taken, event), Pending::NONE);
    // The stack that it needs was not there.
    let cut_short = left_with(event, false, EVENT_VALID | 0x41);
    assert_eq!(undelivered_event(&cut_short, event), event);
}

#[test]
fn a_window_that_did_not_open_is_no_interrupt() {
    let mut vmcb = left_with(Pending::NONE, true, 0);
    vmcb.control.vintr |= vintr::request(0);
    assert_eq!(undelivered_event(&vmcb, Pending::NONE), Pending::NONE);
}

#[test]
fn exceptions_that_can_raise_themselves_exit_and_go_back_to_the_guest() {
    let mut vmcb = block();
    prepare(&mut vmcb, Hpa::new(0), Hpa::new(0), Hpa::new(0));
    for event in [Pending::exception(1, None), Pending::exception(17, Some(0))] {
        assert_ne!(vmcb.control.intercept_exceptions >> event.vector() & 1, 0);
        vmcb.control.exit_code = exit_code::EXCEPTION + u64::from(event.vector());
        assert_eq!(decode(&vmcb, false), Exit::Exception(event));
    }
}
