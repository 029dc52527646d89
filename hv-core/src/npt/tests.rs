//! Tests of nested paging on an arena.

use super::entry::hardware_write;
use super::*;
use crate::testing::Arena;

const TABLES: Hpa = Hpa::new(0x10_0000);

fn arena() -> Arena {
    Arena::new(TABLES, 32)
}

fn tables(arena: &Arena, frames: u64) -> NestedTables<'_, Arena> {
    NestedTables::new(arena, FramePool::new(TABLES, frames)).unwrap()
}

/// 4 MiB and 3 frames of memory from GPA 0 on, backed from 1 GiB on.
const MEMORY: Slot = Slot {
    gfn: Gfn::new(0),
    hpa: Hpa::new(1 << 30),
    frames: 1024 + 3,
};

fn entry_of(tables: &NestedTables<'_, Arena>, gpa: u64) -> Entry {
    Entry::load(tables.leaf(Gpa::new(gpa)).unwrap())
}

fn write(tables: &NestedTables<'_, Arena>, gpa: u64) {
    hardware_write(tables.leaf(Gpa::new(gpa)).unwrap());
}

fn with_log(test: impl FnOnce(&DirtyLog<'_>)) {
    let words: [AtomicU64; 20] = Default::default();
    let log = DirtyLog::new(&words, 1027);
    log.start();
    test(&log);
}

#[test]
fn aligned_memory_gets_large_leaves_and_the_rest_small_ones() {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    tables.map_ram(&MEMORY).unwrap();
    assert!(entry_of(&tables, 0).is_large());
    assert!(entry_of(&tables, 0x20_0000).is_large());
    assert!(!entry_of(&tables, 0x40_0000).is_large());
    assert_eq!(
        entry_of(&tables, 0x40_2000).hpa(),
        Hpa::new((1 << 30) + 0x40_2000)
    );
    assert!(!tables.is_mapped(Gpa::new(0x40_3000)));
    assert!(!tables.is_mapped(Gpa::new(1 << 50)));
}

#[test]
fn a_mapping_over_another_changes_nothing() {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    tables.map_ram(&MEMORY).unwrap();
    let before = tables.pool.available();
    let clash = tables.map_device(Gpa::new(0x40_2000), Hpa::new(0xfeb0_0000), 0x2000);
    assert_eq!(clash, Err(NptError::Mapped(Gpa::new(0x40_2000))));
    let clash = tables.map_device(Gpa::new(0x3f_f000), Hpa::new(0xfeb0_0000), 0x1000);
    assert_eq!(clash, Err(NptError::Mapped(Gpa::new(0x3f_f000))));
    // A large leaf over a table that holds small ones.
    let clash = tables.map_device(Gpa::new(0x40_0000), Hpa::new(0x8000_0000), 0x20_0000);
    assert_eq!(clash, Err(NptError::Mapped(Gpa::new(0x40_0000))));
    assert_eq!(tables.pool.available(), before);
}

#[test]
fn malformed_ranges_are_refused() {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    let hpa = Hpa::new(0xfeb0_0000);
    for (gpa, bytes) in [
        (0x1001, 0x1000),
        (0x1000, 0),
        (0x1000, 12),
        (!0xfff, 0x2000),
        ((1 << 48) - 0x1000, 0x2000),
    ] {
        let refused = tables.map_device(Gpa::new(gpa), hpa, bytes);
        assert_eq!(refused, Err(NptError::Malformed), "{gpa:#x}");
    }
}

#[test]
fn mapping_without_enough_frames_changes_nothing() {
    let arena = arena();
    let mut tables = tables(&arena, 3);
    let refused = tables.map_ram(&MEMORY);
    assert!(matches!(refused, Err(NptError::OutOfFrames { .. })));
    assert_eq!(tables.pool.available(), 2);
    assert!(!tables.is_mapped(Gpa::new(0)));
}

#[test]
fn the_frames_taken_never_exceed_what_was_checked() {
    // A range that starts and ends inside tables, and crosses a 1 GiB border.
    let arena = arena();
    for frames in 1..16 {
        let mut tables = tables(&arena, frames);
        let start = (1 << 30) - 0x20_1000;
        let slot = Slot {
            gfn: Gfn::new(start >> 12),
            hpa: Hpa::new(start),
            frames: 1 + 1024 + 1,
        };
        match tables.map_ram(&slot) {
            Ok(()) => (0..slot.frames)
                .map(|frame| Gpa::new(start + frame * PAGE_SIZE))
                .for_each(|gpa| assert!(tables.is_mapped(gpa))),
            Err(_) => assert_eq!(tables.pool.available(), frames - 1),
        }
    }
}

#[test]
fn tracking_finds_exactly_the_pages_written() {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    tables.map_ram(&MEMORY).unwrap();
    tables
        .map_device(Gpa::new(0xe000_0000), Hpa::new(0xfeb0_0000), 0x3000)
        .unwrap();
    write(&tables, 0x5000);
    tables.start_tracking(&nobody()).unwrap();
    with_log(|log| {
        assert_eq!(
            tables.harvest(log, &nobody()),
            0,
            "writes before the start are copied"
        );
        for gpa in [0x0, 0x20_3000, 0x40_2000, 0xe000_0000] {
            write(&tables, gpa);
        }
        assert_eq!(tables.harvest(log, &nobody()), 3);
        assert_eq!(log.count(), 3);
        for gfn in [0, 0x203, 0x402] {
            assert!(log.is_marked(Gfn::new(gfn)));
        }
        assert_eq!(
            tables.harvest(log, &nobody()),
            0,
            "a harvest clears what it found"
        );
        write(&tables, 0x20_3000);
        assert_eq!(tables.harvest(log, &nobody()), 1);
    });
}

#[test]
fn every_harvest_that_found_something_requests_a_flush() {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    tables.map_ram(&MEMORY).unwrap();
    tables.start_tracking(&nobody()).unwrap();
    let mut tlbs = [GuestTlb::unknown(); 2];
    let mut flushes = |tables: &NestedTables<'_, Arena>| {
        tlbs.each_mut().map(|tlb| {
            let flush = tables.enter(tlb);
            tlb.leave(flush);
            flush
        })
    };
    assert_eq!(flushes(&tables), [true; 2]);
    with_log(|log| {
        tables.harvest(log, &nobody());
        assert_eq!(flushes(&tables), [false; 2], "nothing was cleared");
        write(&tables, 0x1000);
        tables.harvest(log, &nobody());
        assert_eq!(flushes(&tables), [true; 2]);
        assert_eq!(flushes(&tables), [false; 2]);
    });
}

#[test]
fn stopping_restores_large_leaves_and_returns_their_tables() {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    tables.map_ram(&MEMORY).unwrap();
    let (frames, first) = (tables.pool.available(), entry_of(&tables, 0));
    tables.start_tracking(&nobody()).unwrap();
    assert_eq!(tables.pool.available(), frames - 2);
    assert!(!entry_of(&tables, 0x1000).is_large());
    assert_eq!(
        tables.map_device(Gpa::new(1 << 40), Hpa::new(0x1000), 0x1000),
        Err(NptError::Tracking)
    );
    let mut tlb = GuestTlb::unknown();
    let flush = tables.enter(&mut tlb);
    tlb.leave(flush);
    tables.stop_tracking(&nobody());
    assert!(tables.enter(&mut tlb));
    assert_eq!(tables.pool.available(), frames);
    assert_eq!(entry_of(&tables, 0), first);
    assert!(!entry_of(&tables, 0x40_0000).is_large());
}

#[test]
fn tracking_without_enough_frames_changes_nothing() {
    let arena = arena();
    let mut tables = tables(&arena, 6);
    tables.map_ram(&MEMORY).unwrap();
    while tables.pool.available() > 1 {
        tables.pool.take(&arena).unwrap();
    }
    let refused = NptError::OutOfFrames {
        needed: 2,
        available: 1,
    };
    assert_eq!(tables.start_tracking(&nobody()), Err(refused));
    assert!(entry_of(&tables, 0).is_large());
    assert!(entry_of(&tables, 0x20_0000).is_large());
}

/// The proof for a guest that never ran.
fn nobody() -> Stopped<'static> {
    Stopped::all([])
}

#[test]
#[should_panic(expected = "CPU 1 is in the guest")]
fn there_is_no_proof_while_a_cpu_is_in_the_guest() {
    let mut tlbs = [GuestTlb::unknown(); 2];
    let _ = tlbs[1].enter(1);
    let _ = Stopped::all(&tlbs);
}

#[test]
#[should_panic(expected = "CPU 1 entered after downgrade 2 and flushed last after 1")]
fn there_is_no_proof_after_an_entry_without_the_flush_that_was_due() {
    let mut tlbs = [GuestTlb::unknown(); 2];
    for (downgrades, second_flushes) in [(1, true), (2, false)] {
        let [first, second] = &mut tlbs;
        let flush = first.enter(downgrades);
        first.leave(flush);
        assert!(second.enter(downgrades));
        second.leave(second_flushes);
    }
    let _ = Stopped::all(&tlbs);
}

/// A CPU with a TLB that keeps all it may: "D is set" until a flush.
#[derive(Default)]
struct CachingCpu {
    known_dirty: std::collections::BTreeSet<u64>,
}

impl CachingCpu {
    fn write(&mut self, tables: &NestedTables<'_, Arena>, gpa: u64) {
        if self.known_dirty.insert(gpa) {
            write(tables, gpa);
        }
    }
}

/// Two caching CPUs write, in turns, between harvests. Returns the writes that no
/// harvest after them found.
fn writes_lost(turns: &[(usize, u64)], second_flushes: bool) -> usize {
    let arena = arena();
    let mut tables = tables(&arena, 32);
    tables.map_ram(&MEMORY).unwrap();
    tables.start_tracking(&nobody()).unwrap();
    let mut cpus = [CachingCpu::default(), CachingCpu::default()];
    let mut tlbs = [GuestTlb::unknown(); 2];
    let mut lost = 0;
    with_log(|log| {
        for (cpu, page) in turns {
            let gpa = page * PAGE_SIZE;
            let flush = tables.enter(&mut tlbs[*cpu]);
            if flush && (*cpu == 0 || second_flushes) {
                cpus[*cpu].known_dirty.clear();
            }
            cpus[*cpu].write(&tables, gpa);
            tlbs[*cpu].leave(flush);
            log.start();
            tables.harvest(log, &Stopped::all(&tlbs));
            lost += usize::from(!log.is_marked(Gfn::containing(Gpa::new(gpa))));
        }
    });
    lost
}

proptest::proptest! {
    #[test]
    fn no_write_of_either_cpu_is_lost(
        turns in proptest::collection::vec((0..2usize, 0..4u64), 1..64)
    ) {
        assert_eq!(writes_lost(&turns, true), 0);
    }
}

#[test]
fn writes_are_lost_if_the_second_cpu_does_not_flush() {
    let turns = [(0, 0), (1, 1), (0, 1), (1, 1)];
    assert_eq!(writes_lost(&turns, true), 0);
    assert_eq!(writes_lost(&turns, false), 1);
}
