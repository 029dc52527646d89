//! Interrupt remapping against the fake unit.

use super::*;
use crate::amdvi::InterruptRequest;
use crate::host::testing::interrupts::{self as rules, OTHER, Rig, TARGET};
use hv_core::platform::apic::Msi;

fn test_with(facts: Facts, rule: impl FnOnce(Rig<'_>)) {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let pool = FramePool::new(BASE, FRAMES);
    let mut unit = AmdUnit::start(&fake, &arena, pool, facts).unwrap();
    rule(Rig {
        unit: &mut unit,
        send: &|device, message| fake.interrupt(device, message),
        message: |index| Msi {
            data: index.into(),
            ..InterruptRequest::message(0)
        },
        entries: 512,
    });
}

#[test]
fn each_device_raises_what_it_was_granted() {
    test_with(FACTS, rules::each_device_raises_what_it_was_granted);
}

#[test]
fn what_was_taken_back_is_refused() {
    test_with(FACTS, rules::what_was_taken_back_is_refused);
}

#[test]
fn what_cannot_be_granted_changes_nothing() {
    test_with(FACTS, rules::what_cannot_be_granted_changes_nothing);
}

#[test]
fn without_remapping_messages_pass() {
    let facts = Facts {
        remaps_interrupts: false,
        ..FACTS
    };
    test_with(facts, rules::without_remapping_messages_pass);
}

#[test]
fn no_request_passes_before_it_is_granted_whoever_sends_it_and_whatever_it_is() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    // As an earlier owner may have left it.
    fake.state().control = Control::WIDE_INTERRUPTS | Control::MORE_INTERRUPTS;
    let mut unit = start(&fake, &arena).unwrap();
    let forged = TARGET.unremapped().unwrap();
    for device in 0..=u16::MAX {
        assert_eq!(fake.interrupt(SourceId::new(device), forged), None);
    }
    unit.grant_interrupt(DEVICE, TARGET).unwrap();
    // SMI, NMI, INIT and an 8259's, from one that is granted something.
    for mode in 2..8 {
        let data = mode << 8;
        let message = Msi { data, ..forged };
        assert_eq!(fake.interrupt(DEVICE, message), None, "{mode}");
    }
}

#[test]
fn a_grant_drops_the_way_to_the_table_first_and_a_revocation_what_it_holds() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    take_commands(&fake);
    let way = Command::DeviceEntry { device: DEVICE };
    let entries = Command::InterruptTable { device: DEVICE };
    unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert_eq!(take_commands(&fake), [way, entries]);
    unit.revoke_interrupts(DEVICE).unwrap();
    assert_eq!(take_commands(&fake), [entries]);
    unit.revoke_interrupts(DEVICE).unwrap();
    assert_eq!(take_commands(&fake), [], "there is nothing left to take");
}

/// Whether an interrupt is refused when its revocation returns, if the unit takes its
/// time.
fn is_refused_on_return(defect: Defect) -> bool {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    let message = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert!(fake.interrupt(DEVICE, message).is_some());
    fake.state().delay = 5;
    fake.state().defect = defect;
    unit.revoke_interrupts(DEVICE).unwrap();
    fake.interrupt(DEVICE, message).is_none()
}

#[test]
fn a_revocation_returns_when_its_wait_has_stored_and_no_sooner() {
    assert!(is_refused_on_return(Defect::None));
    // And it would be seen.
    assert!(!is_refused_on_return(Defect::AnswersTooEarly));
}

#[test]
fn attaching_and_blocking_leave_a_devices_interrupts_alone() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    let message = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    assert!(fake.interrupt(DEVICE, message).is_some());
    unit.revoke_interrupts(DEVICE).unwrap();
    assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_A.raw()));
    unit.grant_interrupt(DEVICE, TARGET).unwrap();
    unit.block(DEVICE).unwrap();
    assert!(fake.interrupt(DEVICE, message).is_some());
    assert_eq!(fake.dma(DEVICE, 0), None);
}

#[test]
fn a_device_too_many_is_granted_nothing() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    let device = |number: u16| SourceId::new(number << 3);
    for number in 0..8 {
        unit.grant_interrupt(device(number), TARGET).unwrap();
    }
    let refused = unit.grant_interrupt(device(8), TARGET);
    assert_eq!(refused, Err(UnitError::OutOfMemory));
    let message = unit.grant_interrupt(device(0), TARGET).unwrap();
    assert_eq!(fake.interrupt(device(8), message), None);
}

#[test]
fn a_unit_that_does_not_answer_grants_and_revokes_nothing_any_more() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.grant_interrupt(DEVICE, TARGET).unwrap();
    fake.state().defect = Defect::DoesNotAnswer;
    let lost = Err(UnitError::NoAnswer);
    assert_eq!(unit.revoke_interrupts(DEVICE), lost);
    fake.state().defect = Defect::None;
    assert_eq!(unit.revoke_interrupts(DEVICE), lost);
    assert_eq!(unit.revoke_interrupts(OTHER), lost);
    assert!(unit.grant_interrupt(OTHER, TARGET).is_err());
}

#[test]
fn a_refused_request_is_reported_in_words_with_its_index() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    fake.interrupt(DEVICE, InterruptRequest::message(9));
    let fault = unit.take_fault().unwrap();
    assert_eq!(
        fault.to_string(),
        "00:03.0: interrupt request 9 refused: the device was granted no such interrupt"
    );
    assert_eq!(fault.dma(), None);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(32))]

    #[test]
    fn whatever_is_granted_and_taken_back_a_model_agrees(steps in rules::steps()) {
        test_with(FACTS, |rig| rules::a_model_agrees(rig, &steps));
    }
}
