//! A guest with an IOMMU layer on a unit that does what it is asked.

use hv_core::dirty::DirtyLog;
use hv_core::memory::{FramePool, GuestMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Hpa, PAGE_SIZE};
use iommu::unit::{DomainId, Fault, HostUnit, Scope, SourceId, UnitError};
use iommu::{Iommu, Parts, tables::VtdSecondStage};
use std::sync::atomic::AtomicU64;

/// How many frames the guest has, from frame 0 on.
pub(crate) const FRAMES: u64 = 64;
const TABLE_FRAMES: u64 = 48;
const BASE: Hpa = Hpa::new(0x4000_0000);

pub(crate) type Layer<'m> = Iommu<'m, Arena, Willing>;

/// The unit.
pub(crate) struct Willing;

impl HostUnit for Willing {
    fn levels(&self) -> u8 {
        3
    }

    fn has_large_leaves(&self) -> bool {
        true
    }

    fn caches_absent(&self) -> bool {
        false
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

/// Runs `test` with writes tracked.
pub(crate) fn with_layer(test: impl FnOnce(Layer<'_>, &GuestMemory<'_, Arena>)) {
    let arena = Arena::new(BASE, (FRAMES + TABLE_FRAMES) as usize);
    let words: [AtomicU64; 2] = Default::default();
    let log = DirtyLog::new(&words, FRAMES);
    let mut guest = GuestMemory::new(&arena, &log);
    let slot = Slot {
        gfn: Gfn::new(0),
        hpa: BASE,
        frames: FRAMES,
    };
    guest.add_slot(slot).unwrap();
    let mut pins = [0; FRAMES as usize];
    let mut layer = Iommu::new(Parts {
        mem: &arena,
        format: VtdSecondStage,
        unit: Willing,
        guest: &guest,
        pool: FramePool::new(Hpa::new(BASE.raw() + FRAMES * PAGE_SIZE), TABLE_FRAMES),
        pins: &mut pins,
    })
    .unwrap();
    log.start();
    layer.start_tracking().unwrap();
    test(layer, &guest);
}
