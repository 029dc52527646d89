//! The APIC against the manual's rules.

use super::*;

/// What a device's message does to this APIC.
fn deliver(apic: &mut Apic, msi: Msi) {
    if let Some(message) = Message::from_msi(msi) {
        give(apic, message, None);
    }
}

fn give(apic: &mut Apic, message: Message, from: Option<u32>) {
    if !apic.is_addressed(message.to, from) {
        return;
    }
    if let Delivery::Fixed(vector) | Delivery::LowestPriority(vector) = message.delivery {
        apic.request(vector);
    }
}

const NOW: Time = Time::from_ns(0);

fn enabled() -> Apic {
    let mut apic = Apic::new(0);
    apic.set_base(apic.base() | BASE_X2APIC).unwrap();
    apic.write_msr(0x80f, 0x1ff, NOW).unwrap();
    apic
}

fn msi(vector: u32) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data: vector,
    }
}

#[test]
fn the_registers_need_x2apic_mode() {
    let mut apic = Apic::new(0);
    assert_eq!(apic.read_msr(0x802, NOW), Err(Refused));
    assert_eq!(apic.write_msr(0x808, 0, NOW), Err(Refused));
    assert_eq!(apic.set_base(BASE_ADDRESS | BASE_X2APIC), Err(Refused));
    apic = enabled();
    assert_eq!(apic.read_msr(0x803, NOW), Ok(u64::from(VERSION)));
    assert_eq!(apic.set_base(BASE_ADDRESS | BASE_ENABLE), Err(Refused));
}

#[test]
fn a_higher_class_interrupts_a_lower_one_and_not_the_reverse() {
    let mut apic = enabled();
    deliver(&mut apic, msi(0x41));
    assert_eq!(apic.deliverable(), Some(0x41));
    apic.accept(0x41);
    deliver(&mut apic, msi(0x4f));
    assert_eq!(apic.deliverable(), None, "same class");
    deliver(&mut apic, msi(0x51));
    assert_eq!(apic.deliverable(), Some(0x51));
    apic.accept(0x51);
    apic.write_msr(0x80b, 0, NOW).unwrap();
    assert_eq!(apic.deliverable(), None, "0x41 is still in service");
    apic.write_msr(0x80b, 0, NOW).unwrap();
    assert_eq!(apic.deliverable(), Some(0x4f));
    apic.write_msr(0x808, 0x40, NOW).unwrap();
    assert_eq!(apic.deliverable(), None, "task priority");
}

#[test]
fn messages_for_others_and_exception_vectors_are_dropped() {
    let mut apic = enabled();
    for (address, data) in [
        (0xfee0_1000, 0x41),
        (0xfed0_0000, 0x41),
        (0xfee0_0000, 0x8),
        (0xfee0_0000, 0x441),
    ] {
        deliver(&mut apic, Msi { address, data });
    }
    assert_eq!(apic.deliverable(), None);
}

#[test]
fn an_interrupt_to_oneself_arrives() {
    let mut apic = enabled();
    apic.write_msr(0x83f, 0x33, NOW).unwrap();
    assert_eq!(apic.deliverable(), Some(0x33));
    apic.accept(0x33);
    apic.write_msr(0x80b, 0, NOW).unwrap();
    let sent = apic.write_msr(0x830, 1 << 18 | 0x34, NOW).unwrap();
    give(&mut apic, sent.unwrap(), Some(0));
    assert_eq!(apic.read_msr(0x821, NOW), Ok(1 << (0x34 - 32)));
}

#[test]
fn impossible_states_are_refused() {
    let good = enabled().save();
    assert!(Apic::restored(&good).is_some());
    let mut bad = good;
    bad.registers.requested.insert(3);
    assert!(Apic::restored(&bad).is_none());
    let mut bad = good;
    bad.registers.base = 0;
    assert!(Apic::restored(&bad).is_none());
}

#[test]
fn registers_in_memory_are_those_of_the_msrs() {
    let mut apic = Apic::new(0);
    apic.write_memory(0xf0, 0x1ff, NOW);
    apic.write_memory(0xd0, 1 << 24, NOW);
    // A message to logical destination 1, and one to nobody here.
    for address in [0xfee0_1004, 0xfee0_2004] {
        deliver(
            &mut apic,
            Msi {
                address,
                data: 0x41,
            },
        );
    }
    assert_eq!(apic.read_memory(0x220, NOW), 1 << 1);
    apic.accept(0x41);
    apic.write_memory(0xb0, 0xabcd, NOW);
    assert_eq!(apic.deliverable(), None);
    // To itself by its physical id.
    apic.write_memory(0x310, 0, NOW);
    let sent = apic.write_memory(0x300, 0x51, NOW);
    give(&mut apic, sent.unwrap(), Some(0));
    assert_eq!(apic.deliverable(), Some(0x51));
    assert_eq!(apic.read_memory(0x123_0000, NOW), 0, "no such register");
}

#[test]
fn the_timer_interrupts_unless_it_is_masked() {
    let mut apic = enabled();
    apic.write_msr(0x83e, 0xb, NOW).unwrap();
    for (lvt, vector) in [(0x61 | u64::from(LVT_MASKED), None), (0x61, Some(0x61))] {
        apic.write_msr(0x832, lvt, NOW).unwrap();
        apic.write_msr(0x838, 100, NOW).unwrap();
        apic.advance(Time::from_ns(99));
        assert_eq!(apic.deliverable(), None);
        apic.advance(Time::from_ns(100));
        assert_eq!(apic.deliverable(), vector);
    }
}
