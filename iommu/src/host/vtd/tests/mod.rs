mod device_tlbs;
mod interrupts;
mod scalable;

use super::fake::{Event, FakeUnit, is_wait};
use super::invalidation::drained;
use super::*;
use crate::vtd::registers::PMEN_ENABLE;
use crate::vtd::{
    AddressWidth, ContextCacheScope, Descriptor, FaultReason, FaultRecord, FaultStatus, Global,
    IotlbScope, PasidCacheScope, PasidDescriptor, PasidIotlbScope,
};
use crate::{Iova, IovaRange};
use hv_core::testing::Arena;
use std::vec::Vec;

type Unit<'a> = VtdUnit<'a, &'a FakeUnit<'a>, Arena>;

const BASE: Hpa = Hpa::new(0x10_0000);
const FRAMES: usize = 16;
const DEVICE: SourceId = SourceId::new(0x0018);
const TABLE_A: Hpa = Hpa::new(0xa000);
const TABLE_B: Hpa = Hpa::new(0xb000);

fn arena() -> Arena {
    Arena::new(BASE, FRAMES)
}

fn start<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena) -> Result<Unit<'a>, StartError> {
    let pool = FramePool::new(BASE, FRAMES as u64);
    VtdUnit::start(fake, arena, pool, Implementation::Hardware)
}

fn domain(number: u16) -> DomainId {
    DomainId::new(number)
}

fn context_of(domain: u16) -> u128 {
    Descriptor::ContextCache(ContextCacheScope::Device {
        domain,
        source: DEVICE,
        function_mask: 0,
    })
    .encode()
}

fn iotlb(scope: IotlbScope) -> u128 {
    drained(scope).encode()
}

/// Gives the unit a scalable mode, with one kind of tables.
fn make_scalable(fake: &FakeUnit<'_>, second_stage: bool) {
    let extended = &mut fake.state().extended;
    extended.scalable = true;
    extended.walk_snoops = true;
    extended.first_stage = !second_stage;
    extended.second_stage = second_stage;
    extended.second_stage_dirty = second_stage;
}

#[test]
fn translation_goes_on_last_after_the_old_state_was_dropped() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().status = Global::TRANSLATION | Global::COMPATIBILITY_INTERRUPTS;
    fake.state().pmen = PMEN_ENABLE | 1;
    start(&fake, &arena).unwrap();

    let kept = Global::COMPATIBILITY_INTERRUPTS;
    let queue = Global::QUEUED_INVALIDATION;
    let events: Vec<Event> = fake
        .state()
        .events
        .iter()
        .copied()
        .filter(|event| !matches!(event, Event::Carried(raw, _) if is_wait(*raw)))
        .collect();
    let global = Descriptor::ContextCache(ContextCacheScope::Global).encode();
    assert_eq!(
        events,
        [
            Event::Command(kept),
            Event::Protect(false),
            Event::Command(kept | queue),
            Event::Command(kept | queue | Global::ROOT_TABLE),
            Event::Carried(global, false),
            Event::Carried(iotlb(IotlbScope::Global), false),
            Event::Command(kept | queue | Global::TRANSLATION),
        ]
    );
    assert_eq!(fake.dma(DEVICE, 1), None);
}

#[test]
fn a_queue_left_on_is_turned_off_before_it_moves() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().status = Global::QUEUED_INVALIDATION;
    start(&fake, &arena).unwrap();
    assert_eq!(fake.state().events[1], Event::Command(Global::empty()));
}

#[test]
fn a_unit_that_cannot_keep_the_promises_is_refused() {
    let refusal = |spoil: fn(&mut super::fake::State)| {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        spoil(&mut fake.state());
        let refusal = start(&fake, &arena).err();
        assert_eq!(fake.state().events, []);
        refusal
    };
    let none = Some(StartError::NoUnit(u32::MAX));
    assert_eq!(refusal(|unit| unit.version_register = u32::MAX), none);
    let drain = Some(StartError::NoDrain);
    assert_eq!(
        refusal(|unit| unit.capabilities.drain_writes = false),
        drain
    );
    assert_eq!(refusal(|unit| unit.capabilities.drain_reads = false), drain);
    assert_eq!(
        refusal(|unit| unit.extended.coherent = false),
        Some(StartError::NotCoherent)
    );
    assert_eq!(
        refusal(|unit| unit.extended.queued_invalidation = false),
        Some(StartError::NoQueue)
    );
    assert_eq!(
        refusal(|unit| {
            unit.capabilities.width_39 = false;
            unit.capabilities.width_48 = false;
        }),
        Some(StartError::NoTableWidth)
    );
}

#[test]
fn a_unit_that_does_not_snoop_is_accepted_only_on_someones_word() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().extended.coherent = false;
    let pool = FramePool::new(BASE, FRAMES as u64);
    assert!(VtdUnit::start(&fake, &arena, pool, Implementation::Emulated).is_ok());
}

#[test]
fn the_smaller_table_width_on_offer_is_used() {
    for (width_39, levels) in [(true, 3), (false, 4)] {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        fake.state().capabilities.width_39 = width_39;
        let mut unit = start(&fake, &arena).unwrap();
        assert_eq!(unit.levels(), levels);
        unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
        assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_A.raw()));
    }
}

#[test]
fn a_device_is_taken_out_and_drained_before_it_enters_another_domain() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().watched = DEVICE;
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    fake.state().events.clear();

    unit.attach(DEVICE, domain(2), TABLE_B).unwrap();
    assert_eq!(
        fake.state().take_invalidations(),
        [
            (context_of(1), false),
            (iotlb(IotlbScope::Domain { domain: 1 }), false),
            (context_of(0), true),
            (iotlb(IotlbScope::Domain { domain: 2 }), true),
        ]
    );
}

#[test]
fn an_invalidation_is_followed_by_its_wait_and_nothing_else() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    fake.state().events.clear();
    let range = IovaRange::new(Iova::new(0x5000), 3).unwrap();
    unit.invalidate(domain(3), Scope::Pages(range)).unwrap();
    let events = fake.state().events.clone();
    let expected = iotlb(IotlbScope::Pages {
        domain: 3,
        address: 0x4000,
        order: 2,
        leaves_only: false,
    });
    assert_eq!(events[0], Event::Carried(expected, false));
    assert!(matches!(events[1..], [Event::Carried(raw, _)] if is_wait(raw)));
}

/// Whether the unit has dropped a translation when an invalidation returns, if it takes
/// its time to.
fn is_dropped_on_return(answers_too_early: bool) -> bool {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    fake.dma(DEVICE, 3).unwrap();
    fake.state().version = 1;
    fake.state().delay = 5;
    fake.state().answers_too_early = answers_too_early;
    unit.invalidate(domain(1), Scope::Domain).unwrap();
    fake.dma(DEVICE, 3) == Some(TABLE_A.raw() + 1)
}

#[test]
fn an_invalidation_returns_when_the_status_of_its_wait_is_written_and_no_sooner() {
    assert!(is_dropped_on_return(false));
    // And it would be seen.
    assert!(!is_dropped_on_return(true));
}

#[test]
fn the_queue_wraps_without_losing_an_invalidation() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    fake.state().events.clear();
    for _ in 0..1000 {
        unit.invalidate(domain(1), Scope::Domain).unwrap();
    }
    assert_eq!(fake.state().take_invalidations().len(), 1000);
}

#[test]
fn a_unit_that_does_not_answer_stays_lost() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    fake.state().answers = false;
    assert_eq!(unit.block(DEVICE), Err(UnitError::NoAnswer));
    // The entry is gone from memory, yet nobody knows whether the unit noticed.
    fake.state().answers = true;
    assert_eq!(unit.block(DEVICE), Err(UnitError::NoAnswer));
    assert_eq!(
        unit.attach(DEVICE, domain(2), TABLE_B),
        Err(UnitError::NoAnswer)
    );
    assert_eq!(
        unit.invalidate(domain(1), Scope::Domain),
        Err(UnitError::NoAnswer)
    );
}

#[test]
fn a_queue_error_is_reported_at_once() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    fake.state().faults = FaultStatus::QUEUE_ERROR;
    assert_eq!(
        unit.invalidate(domain(1), Scope::Domain),
        Err(UnitError::NoAnswer)
    );
}

#[test]
fn domain_numbers_and_roots_out_of_range_change_nothing() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(255), TABLE_A).unwrap();
    fake.state().events.clear();
    for (number, root) in [(0, TABLE_B), (256, TABLE_B), (1, Hpa::new(0xb008))] {
        assert_eq!(
            unit.attach(DEVICE, domain(number), root),
            Err(UnitError::OutOfRange)
        );
    }
    assert_eq!(fake.state().events, []);
    assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_A.raw()));
}

#[test]
fn a_bus_without_memory_for_its_table_is_refused_and_the_others_go_on() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = VtdUnit::start(
        &fake,
        &arena,
        FramePool::new(BASE, 4),
        Implementation::Hardware,
    )
    .unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    let elsewhere = SourceId::new(0x0100);
    assert_eq!(
        unit.attach(elsewhere, domain(2), TABLE_B),
        Err(UnitError::OutOfMemory)
    );
    assert_eq!(unit.block(elsewhere), Ok(()));
    assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_A.raw()));
}

#[test]
fn faults_come_in_order_and_lost_ones_do_not_stop_the_next() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    let record = |page| FaultRecord {
        page: Iova::new(page),
        source: DEVICE,
        reason: FaultReason::NotWritable.code(),
        kind: crate::vtd::RequestKind::Write,
    };
    fake.state().records = std::vec![record(0x1000).encode(), record(0x2000).encode()];
    fake.state().faults = FaultStatus::OVERFLOW;
    let take = |unit: &mut Unit<'_>| unit.take_fault().and_then(Fault::dma).unwrap();
    let fault = take(&mut unit);
    assert_eq!(fault.iova, Iova::new(0x1000));
    assert!(fault.write && fault.source == DEVICE);
    assert_eq!(fault.cause, crate::unit::FaultCause::Vtd(5));
    // The unit goes round: record 0 is newer than record 1 now.
    fake.state().records[0] = record(0x3000).encode();
    assert_eq!(take(&mut unit).iova, Iova::new(0x2000));
    assert_eq!(take(&mut unit).iova, Iova::new(0x3000));
    assert!(fake.state().faults.contains(FaultStatus::OVERFLOW));
    assert_eq!(unit.take_fault(), None);
    assert!(!fake.state().faults.contains(FaultStatus::OVERFLOW));
}

proptest::proptest! {
    #[test]
    fn a_page_invalidation_is_the_smallest_block_that_covers_the_range(
        first in 0u64..1 << 20, count in 1u64..2048,
    ) {
        let capabilities = Capabilities {
            page_selective: true,
            max_address_mask: 9,
            ..Capabilities::default()
        };
        let range = IovaRange::new(Iova::new(first << 12), count).unwrap();
        let splits = |order: u8| first >> order != (first + count - 1) >> order;
        let legacy = Translation::Legacy(AddressWidth::Bits39);
        let raw = invalidation::pages(legacy, &capabilities, 1, range);
        match Descriptor::decode(raw).unwrap() {
            Descriptor::Iotlb { scope: IotlbScope::Pages { address, order, .. }, .. } => {
                proptest::prop_assert!(order <= 9 && !splits(order));
                proptest::prop_assert!(order == 0 || splits(order - 1));
                proptest::prop_assert_eq!(address >> 12, first >> order << order);
            }
            descriptor => {
                let whole = drained(IotlbScope::Domain { domain: 1 });
                proptest::prop_assert_eq!(descriptor, whole);
                proptest::prop_assert!(splits(9));
            }
        }
        // First-stage tables know no limit.
        let raw = invalidation::pages(Translation::FirstStage, &capabilities, 1, range);
        let descriptor = PasidDescriptor::decode(raw);
        let Some(PasidDescriptor::Iotlb {
            scope: PasidIotlbScope::Pages { address, order, leaves_only: false }, ..
        }) = descriptor else {
            panic!("{descriptor:?}");
        };
        proptest::prop_assert!(!splits(order) && (order == 0 || splits(order - 1)));
        proptest::prop_assert_eq!(address >> 12, first >> order << order);
    }

    /// Against a unit that caches all it may: whatever the calls, a DMA goes where
    /// the last call sent its device.
    #[test]
    fn no_dma_ever_uses_what_was_replaced(
        second_stage in proptest::option::of(proptest::bool::ANY),
        steps in proptest::collection::vec((0u16..3, 0u16..5, 0u64..4), 1..60),
    ) {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        if let Some(second_stage) = second_stage {
            make_scalable(&fake, second_stage);
        }
        let mut unit = start(&fake, &arena).unwrap();
        // A domain's table is a function of its number and of how often the number
        // was given out, so that recycled numbers meet new tables.
        let mut uses = [0u64; 5];
        let mut expected: [Option<(u16, u64)>; 3] = [None; 3];
        for (which, number, page) in steps {
            let device = SourceId::new(which << 8);
            let slot = usize::from(which);
            if number == 0 {
                unit.block(device).unwrap();
                expected[slot] = None;
            } else {
                let in_use = expected.iter().flatten().any(|(domain, _)| *domain == number);
                if !in_use {
                    uses[usize::from(number)] += 1;
                }
                let table = uses[usize::from(number)] << 32 | u64::from(number) << 12;
                unit.attach(device, domain(number), Hpa::new(table)).unwrap();
                expected[slot] = Some((number, table));
            }
            for (which, expected) in expected.iter().enumerate() {
                let device = SourceId::new((which as u16) << 8);
                proptest::prop_assert_eq!(fake.dma(device, page), expected.map(|(_, table)| table));
            }
        }
    }
}
