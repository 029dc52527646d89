//! Devices with TLBs of their own.

use super::*;
use crate::device_tlb::{AtsCapability, DeviceTlb, NoDeviceTlb, Trust};

const WITH_TLBS: Facts = Facts {
    flags: IvhdFlags::DEVICE_TLB,
    capability: FACTS.capability | 1 << 24,
    ..FACTS
};

fn tlb() -> DeviceTlb {
    let ats = AtsCapability { queue_depth: 5 };
    DeviceTlb::decide(Some(ats), Trust::Vouched).unwrap()
}

fn start_with<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena, facts: Facts) -> Unit<'a> {
    AmdUnit::start(fake, arena, FramePool::new(BASE, FRAMES), facts).unwrap()
}

/// [`DEVICE`] with a TLB, in domain 1.
fn attached<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena) -> Unit<'a> {
    let mut unit = start_with(fake, arena, WITH_TLBS);
    unit.allow_device_tlb(DEVICE, tlb()).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    unit
}

fn page(number: u64) -> Scope {
    Scope::Pages(IovaRange::new(Iova::new(number << 12), 1).unwrap())
}

#[test]
fn a_unit_that_cannot_tell_devices_or_the_operator_allows_no_device_tlb() {
    let no_flag = Facts {
        flags: IvhdFlags::empty(),
        ..WITH_TLBS
    };
    let no_capability = Facts {
        capability: FACTS.capability,
        ..WITH_TLBS
    };
    for (facts, defect) in [
        (no_flag, Defect::None),
        (no_capability, Defect::None),
        (WITH_TLBS, Defect::TellsNothing),
    ] {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        fake.state().defect = defect;
        let mut unit = start_with(&fake, &arena, facts);
        let refused = unit.allow_device_tlb(DEVICE, tlb());
        assert_eq!(refused, Err(NoDeviceTlb::Unit));
    }
}

#[test]
fn devices_are_told_after_the_unit_and_before_the_wait() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    fake.state().commands.clear();
    unit.invalidate(domain(1), page(9)).unwrap();
    let block = PageBlock { page: 9, order: 0 };
    let commands = fake.state().commands.clone();
    let expected = [
        invalidation(1, block),
        Command::Fence,
        Command::DeviceTlb {
            device: DEVICE,
            pending: 5,
            block,
        },
    ];
    assert_eq!(commands[..3], expected);
    assert!(matches!(commands[3..], [Command::CompletionWait { .. }]));
}

#[test]
fn other_domains_and_devices_without_tlbs_cost_nothing_more() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    let other = SourceId::new(0x20);
    unit.attach(other, domain(2), TABLE_B).unwrap();
    fake.state().commands.clear();
    unit.invalidate(domain(2), Scope::Domain).unwrap();
    assert_eq!(take_commands(&fake), [invalidation(2, PageBlock::ALL)]);
    unit.block(DEVICE).unwrap();
    fake.state().commands.clear();
    unit.invalidate(domain(1), Scope::Domain).unwrap();
    assert_eq!(take_commands(&fake), [invalidation(1, PageBlock::ALL)]);
}

/// A device that does not answer may go on: that is no success, then or ever after.
#[test]
fn a_device_that_keeps_silent_is_an_error_of_its_own_and_the_unit_stays_lost() {
    for goes_on in [true, false] {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        let mut unit = attached(&fake, &arena);
        // An event that is to be read later stays.
        fake.log_event(write_fault(DEVICE, 0x5000));
        unit.invalidate(domain(1), page(9)).unwrap();
        fake.state().defect = Defect::DevicesKeepSilent { goes_on };
        let invalidated = unit.invalidate(domain(1), page(9));
        assert_eq!(invalidated, Err(UnitError::DeviceTlb), "{goes_on}");
        fake.state().defect = Defect::None;
        let invalidated = unit.invalidate(domain(1), page(9));
        assert_eq!(
            invalidated,
            Err(UnitError::DeviceTlb),
            "the log has it still"
        );
        assert_eq!(
            unit.take_fault().unwrap().dma().unwrap().iova,
            Iova::new(0x5000)
        );
        assert_eq!(unit.take_fault(), None);
        let invalidated = unit.invalidate(domain(1), page(9));
        assert_eq!(invalidated, Err(UnitError::NoAnswer));
    }
}

#[test]
fn where_events_were_lost_a_silent_device_may_be_among_them() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    for _ in 0..1000 {
        fake.log_event(write_fault(DEVICE, 0x5000));
    }
    let invalidated = unit.invalidate(domain(1), page(9));
    assert_eq!(invalidated, Err(UnitError::DeviceTlb));
}

/// Devices ask anew whenever they can; the domain's tables change, and are invalidated.
/// Whether some DMA then ends where it did before.
fn uses_old_translations(defect: Defect) -> bool {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    fake.state().defect = defect;
    let mut is_stale = false;
    for (version, scope) in [Scope::Domain, page(3), Scope::Domain]
        .into_iter()
        .enumerate()
    {
        let before = fake.state().version;
        for page in [0, 3, 4, 511, 512] {
            fake.dma(DEVICE, page).unwrap();
        }
        fake.state().version = version as u64 + 1;
        unit.invalidate(domain(1), scope).unwrap();
        is_stale |= fake.dma(DEVICE, 3) == Some(TABLE_A.raw() + before);
    }
    unit.attach(DEVICE, domain(2), TABLE_B).unwrap();
    is_stale |= fake.dma(DEVICE, 3) != Some(TABLE_B.raw() + fake.state().version);
    unit.block(DEVICE).unwrap();
    is_stale | fake.dma(DEVICE, 3).is_some()
}

#[test]
fn no_dma_uses_what_a_device_was_to_forget() {
    assert!(!uses_old_translations(Defect::None));
    // And it would be seen.
    for defect in [Defect::DevicesKeepTheirs, Defect::DevicesTooEarly] {
        assert!(uses_old_translations(defect), "{defect:?}");
    }
}
