mod device_tlbs;
mod interrupts;

use super::fake::{Defect, FakeUnit, State, unit_event, write_fault};
use super::*;
use crate::amdvi::event::EventCode;
use crate::amdvi::{Control, Features, Status};
use crate::dirty_mode::{DirtyDecision, DirtyMode};
use crate::ivrs::IvhdFlags;
use crate::tables::AmdV1;
use crate::unit::{Fault, FaultCause};
use crate::{Iova, IovaRange};
use hv_core::memory::FramePool;
use hv_core::testing::Arena;
use std::string::ToString;
use std::vec::Vec;

type Unit<'a> = AmdUnit<'a, &'a FakeUnit<'a>, Arena>;

const BASE: Hpa = Hpa::new(0x10_0000);
const FRAMES: u64 = Unit::FRAMES;
const DEVICE: SourceId = SourceId::new(0x0018);
const TABLE_A: Hpa = Hpa::new(0xa000);
const TABLE_B: Hpa = Hpa::new(0xb000);
const FACTS: Facts = Facts {
    flags: IvhdFlags::PASS_POSTED,
    capability: 0x000b_000f,
    remaps_interrupts: true,
};

fn arena() -> Arena {
    Arena::new(BASE, FRAMES as usize)
}

fn start<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena) -> Result<Unit<'a>, StartError> {
    AmdUnit::start(fake, arena, FramePool::new(BASE, FRAMES), FACTS)
}

fn domain(number: u16) -> DomainId {
    DomainId::new(number)
}

/// The commands so far but the waits, of which there is one after each; forgets
/// them.
fn take_commands(fake: &FakeUnit<'_>) -> Vec<Command> {
    let commands = std::mem::take(&mut fake.state().commands);
    let is_wait = |command: &&Command| matches!(command, Command::CompletionWait { .. });
    assert!(commands.iter().skip(1).step_by(2).all(|it| is_wait(&it)));
    commands.into_iter().step_by(2).collect()
}

#[test]
fn the_unit_is_turned_off_before_and_dropped_clean_after_its_table_moves() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let leftover = Control::ENABLE | Control::COMMANDS | Control::EVENT_LOG | Control::TUNNEL;
    fake.state().control = leftover;
    let unit = start(&fake, &arena).unwrap();
    assert!(unit.reports_faults());
    assert_eq!(take_commands(&fake), [Command::All]);
    let control = fake.state().control;
    let wired = Control::COHERENT | Control::PASS_POSTED;
    assert_eq!(
        control,
        wired | Control::ENABLE | Control::COMMANDS | Control::EVENT_LOG
    );
    for device in [0, 0x18, 0xffff] {
        assert_eq!(fake.dma(SourceId::new(device), 1), None);
    }
}

#[test]
fn a_unit_that_cannot_keep_the_promises_is_refused_untouched() {
    let refusal = |spoil: fn(&mut State), facts| {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        spoil(&mut fake.state());
        let refusal = AmdUnit::start(&fake, &arena, FramePool::new(BASE, FRAMES), facts).err();
        assert!(fake.state().controls.is_empty());
        refusal
    };
    assert_eq!(
        refusal(|unit| unit.features = Features::empty(), FACTS),
        Some(StartError::NoInvalidateAll)
    );
    assert_eq!(
        refusal(
            |unit| unit.control = Control::from_bits_retain(u64::MAX),
            FACTS
        ),
        Some(StartError::NoUnit)
    );
    for capability in [0, u32::MAX, 0x0008_000f, 0x000b_0005] {
        let facts = Facts {
            capability,
            ..FACTS
        };
        let expected = Some(StartError::NoCapability(capability));
        assert_eq!(refusal(|_| {}, facts), expected);
    }
}

#[test]
fn too_little_memory_is_refused() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    for frames in [0, 1, 512, FRAMES - 1] {
        let unit = AmdUnit::start(&fake, &arena, FramePool::new(BASE, frames), FACTS);
        assert_eq!(unit.err(), Some(StartError::OutOfMemory));
    }
}

#[test]
fn a_unit_caches_absent_entries_if_its_capability_says_so() {
    for (capability, caches) in [(0x000b_000f, false), (0x040b_000f, true)] {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        let facts = Facts {
            capability,
            ..FACTS
        };
        let unit = AmdUnit::start(&fake, &arena, FramePool::new(BASE, FRAMES), facts).unwrap();
        assert_eq!(unit.caches_absent(), caches);
    }
}

#[test]
fn a_unit_that_never_logs_is_found_out_and_used_all_the_same() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    fake.state().defect = Defect::TellsNothing;
    let mut unit = start(&fake, &arena).unwrap();
    assert!(!unit.reports_faults());
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_A.raw()));
    assert_eq!(unit.take_fault(), None);
}

#[test]
fn a_unit_sets_dirty_bits_if_it_can_set_accessed_bits_too() {
    let both = Features::HOST_ACCESSED | Features::HOST_DIRTY;
    for (features, sets) in [
        (Features::empty(), false),
        (Features::HOST_DIRTY, false),
        (Features::HOST_ACCESSED, false),
        (both, true),
    ] {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        fake.state().features |= features;
        let mut unit = start(&fake, &arena).unwrap();
        unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
        assert_eq!(fake.sets_dirty_bits(DEVICE), sets);
        let decision = DirtyDecision::new(AmdV1, unit.dirty_hardware());
        let expected = match sets {
            true => DirtyMode::DirtyBitWhileMapped,
            false => DirtyMode::MappedWritable,
        };
        assert_eq!(decision.mode, expected);
    }
}

#[test]
fn a_device_is_taken_out_and_drained_before_it_enters_another_domain() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    take_commands(&fake);
    unit.attach(DEVICE, domain(2), TABLE_B).unwrap();
    let entry = Command::DeviceEntry { device: DEVICE };
    assert_eq!(
        take_commands(&fake),
        [
            entry,
            invalidation(1, PageBlock::ALL),
            entry,
            invalidation(2, PageBlock::ALL),
        ]
    );
    assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_B.raw()));
}

#[test]
fn an_invalidation_names_its_domain_its_pages_and_the_tables_above_them() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    take_commands(&fake);
    let range = IovaRange::new(Iova::new(0x5000), 3).unwrap();
    unit.invalidate(domain(3), Scope::Pages(range)).unwrap();
    unit.invalidate(domain(3), Scope::Pages(IovaRange::ALL))
        .unwrap();
    let expected = |block| Command::Pages {
        domain: 3,
        block,
        tables: true,
    };
    assert_eq!(
        take_commands(&fake),
        [
            expected(PageBlock { page: 4, order: 2 }),
            expected(PageBlock::ALL)
        ]
    );
}

/// Whether the unit has dropped a translation when an invalidation returns, if it takes
/// its time to.
fn is_dropped_on_return(defect: Defect) -> bool {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    fake.dma(DEVICE, 3).unwrap();
    fake.state().version = 1;
    fake.state().delay = 5;
    fake.state().defect = defect;
    unit.invalidate(domain(1), Scope::Domain).unwrap();
    fake.dma(DEVICE, 3) == Some(TABLE_A.raw() + 1)
}

#[test]
fn an_invalidation_returns_when_its_wait_has_stored_and_no_sooner() {
    assert!(is_dropped_on_return(Defect::None));
    // And it would be seen.
    assert!(!is_dropped_on_return(Defect::AnswersTooEarly));
}

#[test]
fn the_queue_wraps_without_losing_an_invalidation() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    take_commands(&fake);
    for _ in 0..1000 {
        unit.invalidate(domain(1), Scope::Domain).unwrap();
    }
    assert_eq!(take_commands(&fake).len(), 1000);
}

#[test]
fn a_unit_that_does_not_answer_stays_lost() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    fake.state().defect = Defect::DoesNotAnswer;
    assert_eq!(unit.block(DEVICE), Err(UnitError::NoAnswer));
    // The entry is blocked in memory, yet nobody knows whether the unit noticed.
    fake.state().defect = Defect::None;
    assert_eq!(unit.block(DEVICE), Err(UnitError::NoAnswer));
    let attached = unit.attach(DEVICE, domain(2), TABLE_B);
    assert_eq!(attached, Err(UnitError::NoAnswer));
    let invalidated = unit.invalidate(domain(1), Scope::Domain);
    assert_eq!(invalidated, Err(UnitError::NoAnswer));
}

#[test]
fn domain_numbers_and_roots_out_of_range_change_nothing() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    unit.attach(DEVICE, domain(u16::MAX), TABLE_A).unwrap();
    take_commands(&fake);
    for (number, root) in [(0, TABLE_B), (1, Hpa::new(0xb008))] {
        let attached = unit.attach(DEVICE, domain(number), root);
        assert_eq!(attached, Err(UnitError::OutOfRange));
    }
    let invalidated = unit.invalidate(domain(0), Scope::Domain);
    assert_eq!(invalidated, Err(UnitError::OutOfRange));
    assert_eq!(take_commands(&fake), []);
    assert_eq!(fake.dma(DEVICE, 0), Some(TABLE_A.raw()));
}

#[test]
fn faults_come_in_order_in_words_and_other_events_are_skipped() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    fake.log_event(unit_event(EventCode::IotlbTimeout, 0x5000));
    assert_eq!(fake.dma(DEVICE, 7), None);
    fake.log_event(write_fault(SourceId::new(0x20), 0x9abc));
    let fault = unit.take_fault().and_then(Fault::dma).unwrap();
    assert!(fault.write && fault.source == DEVICE);
    assert_eq!(fault.iova, Iova::new(0x7000));
    assert_eq!(
        fault.to_string(),
        "00:03.0: write at 0x7000 refused: the page is not mapped"
    );
    let fault = unit.take_fault().and_then(Fault::dma).unwrap();
    assert_eq!((fault.source.raw(), fault.iova), (0x20, Iova::new(0x9000)));
    assert!(matches!(fault.cause, FaultCause::AmdVi(_)));
    assert_eq!(unit.take_fault(), None);
}

#[test]
fn after_an_overflow_the_log_goes_on_and_what_it_held_is_read_first() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    for round in 0..3 {
        for page in 0..1000 {
            fake.log_event(write_fault(DEVICE, page << 12));
        }
        assert!(fake.state().status.contains(Status::EVENT_OVERFLOW));
        for page in 0..255 {
            let fault = unit.take_fault().and_then(Fault::dma).unwrap();
            assert_eq!(fault.iova.raw(), page << 12, "round {round}");
        }
        assert_eq!(unit.take_fault(), None);
        assert!(!fake.state().status.contains(Status::EVENT_OVERFLOW));
    }
}

proptest::proptest! {
    /// Against a unit that caches all it may: whatever the calls, a DMA goes where
    /// the last call sent its device.
    #[test]
    fn no_dma_ever_uses_what_was_replaced(
        steps in proptest::collection::vec((0u16..3, 0u16..5, 0u64..4), 1..60),
    ) {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
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
