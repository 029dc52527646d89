//! A layer on a unit with dirty bits, which the test sets as hardware would.

use hv_core::dirty::DirtyLog;
use hv_core::memory::{FramePool, GuestMemory, PhysMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, Hpa, PAGE_SIZE};
use iommu::dirty_mode::{DirtyHardware, DirtyUpdate};
use iommu::space::{Access, DmaSpace};
use iommu::tables::{Entry, EntryFormat};
use iommu::unit::{DomainId, Fault, HostUnit, Scope, SourceId, UnitError};
use iommu::{Iommu, Parts};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Guest frames 0..1024 at large-page alignment.
pub const FRAMES: u64 = 1024;
const GUEST: Hpa = Hpa::new(0x4000_0000);
const TABLES: Hpa = Hpa::new(GUEST.raw() + FRAMES * PAGE_SIZE);

/// What a unit says whose dirty bits can be trusted.
pub const TRUSTED: DirtyHardware = DirtyHardware {
    update: DirtyUpdate::Rechecked,
    coherent: true,
    drains_updates: true,
    read_hides_write: false,
    spares_marked: false,
};

/// A unit that does what it is asked, at once.
pub struct Unit<'m> {
    pub facts: DirtyHardware,
    pub invalidations: &'m Cell<u64>,
}

impl HostUnit for Unit<'_> {
    fn levels(&self) -> u8 {
        3
    }

    fn has_large_leaves(&self) -> bool {
        true
    }

    fn caches_absent(&self) -> bool {
        false
    }

    fn dirty_hardware(&self) -> DirtyHardware {
        self.facts
    }

    fn attach(&mut self, _: SourceId, _: DomainId, _: Hpa) -> Result<(), UnitError> {
        Ok(())
    }

    fn block(&mut self, _: SourceId) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate(&mut self, _: DomainId, _: Scope) -> Result<(), UnitError> {
        self.invalidations.set(self.invalidations.get() + 1);
        Ok(())
    }

    fn take_fault(&mut self) -> Option<Fault> {
        None
    }
}

pub struct Machine<'m, F> {
    pub layer: Iommu<'m, Arena, Unit<'m>, F>,
    pub domain: DomainId,
    pub log: &'m DirtyLog<'m>,
    pub invalidations: &'m Cell<u64>,
    pub format: F,
    arena: &'m Arena,
}

/// Runs `test` on a unit of that kind with `table_frames` frames for tables. The
/// log records; tracking has not been started.
pub fn with_dirty_unit<F: EntryFormat>(
    format: F,
    facts: DirtyHardware,
    table_frames: u64,
    test: impl FnOnce(Machine<'_, F>),
) {
    let arena = Arena::new(GUEST, (FRAMES + table_frames) as usize);
    let words: Vec<AtomicU64> = std::iter::repeat_with(AtomicU64::default)
        .take(DirtyLog::words_needed(FRAMES) as usize)
        .collect();
    let log = DirtyLog::new(&words, FRAMES);
    let mut guest = GuestMemory::new(&arena, &log);
    let slot = Slot {
        gfn: Gfn::new(0),
        hpa: GUEST,
        frames: FRAMES,
    };
    guest.add_slot(slot).unwrap();
    let mut pins = vec![0; FRAMES as usize];
    let invalidations = Cell::new(0);
    let mut layer = Iommu::new(Parts {
        mem: &arena,
        format,
        unit: Unit {
            facts,
            invalidations: &invalidations,
        },
        guest: &guest,
        pool: FramePool::new(TABLES, table_frames),
        pins: &mut pins,
    })
    .unwrap();
    log.start();
    let domain = layer.create_domain().unwrap();
    test(Machine {
        layer,
        domain,
        log: &log,
        invalidations: &invalidations,
        arena: &arena,
        format,
    });
}

impl<F: EntryFormat> Machine<'_, F> {
    /// Maps pages to the guest frames of the same numbers.
    pub fn map(&mut self, page: u64, pages: u64, access: Access) {
        let gpa = Gpa::new(page * PAGE_SIZE);
        let range = super::world::range(page, pages);
        self.layer.map(self.domain, range, gpa, access).unwrap();
    }

    /// The hardware sets `bits` in the leaf over `page`, of which the domain's
    /// root is the first table frame. Says at which level it found it.
    pub fn set(&self, page: u64, bits: u64) -> u8 {
        let mut table = TABLES;
        for level in (1..=3).rev() {
            let index = page >> (9 * (level - 1)) & 511;
            let slot = &self.arena.frame(table).unwrap().words()[index as usize];
            match self.format.decode(level as u8, slot.load(Ordering::SeqCst)) {
                Entry::Table { table: below, .. } => table = below,
                Entry::Leaf(_) => {
                    slot.fetch_or(bits, Ordering::SeqCst);
                    return level as u8;
                }
                Entry::Empty => panic!("page {page} is not mapped"),
            }
        }
        panic!("a table of level 0");
    }

    /// What the log has, and forgets.
    pub fn drain(&self) -> Vec<u64> {
        let mut from = Gfn::new(0);
        let mut drained = Vec::new();
        while let Some(batch) = self.log.drain(from) {
            from = batch.resume_at();
            drained.extend(batch.map(Gfn::number));
        }
        drained
    }
}
