//! Interrupt remapping against the fake unit.

use super::*;
use crate::unit::InterruptTarget;
use crate::vtd::{InterruptCacheScope, InterruptFaultReason as Reason, InterruptRequest};
use hv_core::platform::apic::Msi;

const OTHER: SourceId = SourceId::new(0x0020);
const TARGET: InterruptTarget = InterruptTarget {
    apic_id: 1,
    vector: 0x41,
};

fn remapping<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena) -> Unit<'a> {
    fake.state().extended.interrupt_remapping = true;
    let mut unit = start(fake, arena).unwrap();
    unit.remap_interrupts().unwrap();
    assert!(unit.remaps_interrupts());
    unit
}

fn delivered() -> Result<Msi, Reason> {
    Ok(TARGET.unremapped().unwrap())
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
fn a_device_raises_what_it_was_granted_and_nothing_else() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = remapping(&fake, &arena);
    let message = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert_eq!(fake.interrupt(DEVICE, message), delivered());
    // Another device with this message, and this one with others.
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
fn an_interrupt_that_was_taken_back_is_refused_though_the_unit_had_cached_it() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = remapping(&fake, &arena);
    let first = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    let others = unit.grant_interrupt(OTHER, TARGET).unwrap();
    assert_eq!(fake.interrupt(DEVICE, first), delivered());
    unit.revoke_interrupts(DEVICE).unwrap();
    assert_eq!(fake.interrupt(DEVICE, first), Err(Reason::NotPresent));
    assert_eq!(fake.interrupt(OTHER, others), delivered());
    // The absence is cached now, and the entry is given out again.
    let again = unit.grant_interrupt(OTHER, TARGET).unwrap();
    assert_eq!(again, first);
    assert_eq!(fake.interrupt(OTHER, again), delivered());
    assert_eq!(fake.interrupt(DEVICE, again), Err(Reason::WrongSource));
}

#[test]
fn a_full_table_and_a_cpu_out_of_reach_are_errors_that_change_nothing() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = remapping(&fake, &arena);
    let far = InterruptTarget {
        apic_id: 256,
        ..TARGET
    };
    assert_eq!(
        unit.grant_interrupt(DEVICE, far),
        Err(UnitError::OutOfRange)
    );
    for _ in 0..256 {
        unit.grant_interrupt(DEVICE, TARGET).unwrap();
    }
    let full = unit.grant_interrupt(OTHER, TARGET);
    assert_eq!(full, Err(UnitError::OutOfMemory));
    unit.revoke_interrupts(DEVICE).unwrap();
    unit.grant_interrupt(OTHER, TARGET).unwrap();
}

#[test]
fn a_unit_that_cannot_remap_says_so_and_messages_pass_as_they_are() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.remap_interrupts().unwrap();
    assert!(!unit.remaps_interrupts());
    let message = unit.grant_interrupt(DEVICE, TARGET).unwrap();
    assert_eq!(fake.interrupt(OTHER, message), delivered());
    unit.revoke_interrupts(DEVICE).unwrap();
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
