//! Interrupt remapping against the fake unit.

use super::*;
use crate::host::testing::interrupts::{self as rules, OTHER, Rig, TARGET};
use crate::vtd::{InterruptCacheScope, InterruptFaultReason as Reason, InterruptRequest};

fn remapping<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena) -> Unit<'a> {
    fake.state().extended.interrupt_remapping = true;
    let mut unit = start(fake, arena).unwrap();
    unit.remap_interrupts().unwrap();
    unit
}

/// Has `rule` look at a unit that can remap, or cannot.
fn test(is_able: bool, rule: impl FnOnce(Rig<'_>)) {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().extended.interrupt_remapping = is_able;
    let mut unit = start(&fake, &arena).unwrap();
    unit.remap_interrupts().unwrap();
    rule(Rig {
        unit: &mut unit,
        send: &|device, message| fake.interrupt(device, message).ok(),
        message: InterruptRequest::message,
        entries: 256,
    });
}

#[test]
fn each_device_raises_what_it_was_granted() {
    test(true, rules::each_device_raises_what_it_was_granted);
}

#[test]
fn what_was_taken_back_is_refused() {
    test(true, rules::what_was_taken_back_is_refused);
}

#[test]
fn what_cannot_be_granted_changes_nothing() {
    test(true, rules::what_cannot_be_granted_changes_nothing);
}

#[test]
fn without_remapping_messages_pass() {
    test(false, rules::without_remapping_messages_pass);
}

#[test]
fn remapping_goes_on_last_when_no_cache_has_the_old_table() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().extended.interrupt_remapping = true;
    fake.state().status = Global::COMPATIBILITY_INTERRUPTS;
    let mut unit = start(&fake, &arena).unwrap();
    fake.state().events.clear();
    unit.remap_interrupts().unwrap();

    let on = Global::TRANSLATION | Global::QUEUED_INVALIDATION;
    let compatible = Global::COMPATIBILITY_INTERRUPTS;
    let global = Descriptor::InterruptCache(InterruptCacheScope::Global).encode();
    let events: Vec<Event> = fake.state().events.clone();
    assert_eq!(
        events[0],
        Event::Command(on | compatible | Global::INTERRUPT_TABLE)
    );
    assert_eq!(events[1], Event::Carried(global, false));
    assert!(matches!(events[2], Event::Carried(raw, _) if is_wait(raw)));
    assert_eq!(events[3], Event::Command(on));
    assert_eq!(events[4], Event::Command(on | Global::INTERRUPT_REMAPPING));
    assert_eq!(events.len(), 5);
}

#[test]
fn each_refusal_has_its_reason() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = remapping(&fake, &arena);
    let message = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert_eq!(fake.interrupt(OTHER, message), Err(Reason::WrongSource));
    let forged = TARGET.unremapped().unwrap();
    let refused = Err(Reason::CompatibilityFormat);
    assert_eq!(fake.interrupt(DEVICE, forged), refused);
    let absent = InterruptRequest::message(7);
    assert_eq!(fake.interrupt(DEVICE, absent), Err(Reason::NotPresent));
    let beyond = InterruptRequest::message(256);
    assert_eq!(fake.interrupt(DEVICE, beyond), Err(Reason::BeyondTable));
}

#[test]
fn an_entry_that_goes_to_somebody_else_is_no_longer_its_former_owners() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = remapping(&fake, &arena);
    let first = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert!(fake.interrupt(DEVICE, first).is_ok());
    unit.revoke_interrupts(DEVICE).unwrap();
    // The absence is cached now.
    assert_eq!(fake.interrupt(DEVICE, first), Err(Reason::NotPresent));
    let again = unit.grant_interrupt(OTHER, TARGET).unwrap();
    assert_eq!(again, first);
    assert!(fake.interrupt(OTHER, again).is_ok());
    assert_eq!(fake.interrupt(DEVICE, again), Err(Reason::WrongSource));
}

#[test]
fn a_refused_request_is_reported_in_words_with_its_index() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = remapping(&fake, &arena);
    let record = FaultRecord {
        page: Iova::new(crate::vtd::interrupt_fault::information_of(9)),
        source: DEVICE,
        reason: Reason::NotPresent.code(),
        kind: crate::vtd::RequestKind::Write,
    };
    fake.state().records[0] = record.encode();
    let fault = unit.take_fault().unwrap();
    assert_eq!(
        std::string::ToString::to_string(&fault),
        "00:03.0: interrupt request 9 refused: interrupt entry not present"
    );
    assert_eq!(fault.dma(), None);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(32))]

    #[test]
    fn whatever_is_granted_and_taken_back_a_model_agrees(steps in rules::steps()) {
        test(true, |rig| rules::a_model_agrees(rig, &steps));
    }
}
