//! What a harvest costs that finds nothing: the time it takes over a GiB mapped in
//! leaves of 4 KiB, and the time of a bare scan of the same tables, taken in turns in
//! one run. Prints one JSON object with the least of each, in nanoseconds.
//!
//! `cargo xtask bench` runs it.

// A program for developers may end with a message.
#![allow(clippy::expect_used)]

use hv_core::dirty::DirtyLog;
use hv_core::memory::{Frame, FramePool, GuestMemory, PhysMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, Hpa, PAGE_SIZE};
use iommu::dirty_mode::{DirtyHardware, DirtyMode, DirtyUpdate};
use iommu::space::{Access, DmaSpace};
use iommu::tables::VtdSecondStageDirty;
use iommu::unit::{DomainId, Fault, HostUnit, Scope, SourceId, UnitError};
use iommu::{Iommu, Iova, IovaRange, Parts};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A GiB.
const PAGES: u64 = 1 << 18;
const GUEST: Hpa = Hpa::new(1 << 40);
const TABLES: Hpa = Hpa::new(1 << 30);
/// A root, a table of each level below it, and the leaf tables.
const TABLE_FRAMES: u64 = 3 + PAGES / 512;
const TURNS: usize = 200;

/// Tables that are there, and a guest of which one frame stands for all.
struct Memory {
    tables: Arena,
    any: Frame,
}

impl PhysMemory for Memory {
    fn frame(&self, hpa: Hpa) -> Option<&Frame> {
        if hpa.raw() >= GUEST.raw() {
            return Some(&self.any);
        }
        self.tables.frame(hpa)
    }
}

/// A unit whose dirty bits can be trusted, and with no device behind it.
struct Unit;

impl HostUnit for Unit {
    fn levels(&self) -> u8 {
        4
    }

    fn has_large_leaves(&self) -> bool {
        false
    }

    fn caches_absent(&self) -> bool {
        false
    }

    fn dirty_hardware(&self) -> DirtyHardware {
        DirtyHardware {
            update: DirtyUpdate::Rechecked,
            coherent: true,
            drains_updates: true,
            read_hides_write: false,
            spares_marked: false,
        }
    }

    fn attach(&mut self, _: SourceId, _: DomainId, _: Hpa) -> Result<(), UnitError> {
        Ok(())
    }

    fn block(&mut self, _: SourceId) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate(&mut self, _: DomainId, _: Scope) -> Result<(), UnitError> {
        Ok(())
    }

    fn take_fault(&mut self) -> Option<Fault> {
        None
    }
}

fn main() {
    let memory = Memory {
        tables: Arena::new(TABLES, TABLE_FRAMES as usize),
        any: Frame::zeroed(),
    };
    let words: Vec<_> = std::iter::repeat_with(AtomicU64::default)
        .take(DirtyLog::words_needed(PAGES) as usize)
        .collect();
    let log = DirtyLog::new(&words, PAGES);
    let mut guest = GuestMemory::new(&memory, &log);
    let slot = Slot {
        gfn: Gfn::new(0),
        hpa: GUEST,
        frames: PAGES,
    };
    guest.add_slot(slot).expect("one slot");
    let mut pins = vec![0; PAGES as usize];
    let mut layer = Iommu::new(Parts {
        mem: &memory,
        format: VtdSecondStageDirty,
        unit: Unit,
        guest: &guest,
        pool: FramePool::new(TABLES, TABLE_FRAMES),
        pins: &mut pins,
    })
    .expect("enough pins");
    assert_eq!(layer.dirty_decision().mode, DirtyMode::DirtyBit);
    let domain = layer.create_domain().expect("a root");
    let all = IovaRange::new(Iova::new(0), PAGES).expect("a GiB");
    let mapped = layer.map(domain, all, Gpa::new(0), Access::ReadWrite);
    mapped.expect("enough frames");
    assert_eq!(layer.frames_available(), 0, "all of the tables are scanned");
    log.start();
    layer.start_tracking().expect("a sound unit");

    let (mut harvest, mut scan) = (Duration::MAX, Duration::MAX);
    for _ in 0..TURNS {
        scan = scan.min(time(|| scan_tables(&memory)));
        harvest = harvest.min(time(|| layer.harvest().expect("a sound unit")));
    }
    assert!(log.is_clean(), "no device wrote");
    println!(
        "{{\"pages\":{PAGES},\"harvest_ns\":{},\"scan_ns\":{}}}",
        harvest.as_nanos(),
        scan.as_nanos()
    );
}

/// Reads every word of every table, and nothing else.
fn scan_tables(memory: &Memory) -> u64 {
    let mut any = 0;
    for frame in 0..TABLE_FRAMES {
        let frame = memory
            .tables
            .frame(Hpa::new(TABLES.raw() + frame * PAGE_SIZE));
        let words = frame.expect("a table").words();
        any |= words
            .iter()
            .fold(0, |any, word| any | word.load(Ordering::Acquire));
    }
    any
}

fn time<T>(act: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(act());
    start.elapsed()
}
