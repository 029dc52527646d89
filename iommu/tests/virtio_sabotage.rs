//! The negative controls of the virtio-iommu: each mechanism, broken on purpose, over a
//! remapping unit that caches and lets devices race. Alone in its binary: a sabotage is
//! global.
#![cfg(feature = "sabotage")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails its test")]

mod common;
mod virtio_support;

use common::migration::Migration;
use common::unit::Hardware;
use hv_core::sabotage::{Sabotage, activate};
use iommu::Iova;
use iommu::tables::AnyFormat;
use virtio_support::*;

/// A device writes a page that its driver unmaps and one that stays mapped. Returns the
/// frames that migration lost, and whether the device still reached the unmapped page
/// when the driver had its answer.
fn migrate() -> (Vec<u64>, bool) {
    let memory = Memory::new(FRAMES, TABLES);
    let migration = Box::leak(Box::new(Migration::new(memory.guest)));
    let hardware: &Hardware<'_> = Box::leak(Box::new(Hardware::new(
        memory.arena,
        migration,
        3,
        AnyFormat::VtdSecondStage,
    )));
    let mut machine = Machine::over(memory, hardware, TABLES);
    machine.take_over();
    assert_eq!(machine.attach(1, NIC, 0), OK);
    for page in [0, 1] {
        assert_eq!(machine.map_pages(1, page, 1, DATA + page), OK);
        assert!(hardware.write(NIC.host, Iova::new(page << 12)));
    }
    hardware.land();
    assert_eq!(machine.unmap_pages(1, 0, 1), OK);
    migration.send_dirty();
    let late = hardware.write(NIC.host, Iova::new(0));
    hardware.land();
    machine.space.mark_writable();
    migration.send_dirty();
    let data = |gfn: &u64| *gfn >= DATA;
    (migration.lost().into_iter().filter(data).collect(), late)
}

// One test: what is sabotaged is the same for the whole program.
#[test]
fn each_sabotage_loses_a_write_or_lets_one_come_late() {
    assert_eq!(migrate(), (vec![], false));
    activate(Sabotage::UnmapReport);
    assert_eq!(migrate(), (vec![DATA], false));
    activate(Sabotage::UnmapOrder);
    assert_eq!(migrate(), (vec![], true), "answered, and still mapped");
    activate(Sabotage::Iotlb);
    assert_eq!(migrate(), (vec![DATA], true));
    activate(Sabotage::MappedDirty);
    assert_eq!(migrate(), (vec![DATA + 1], false));
}
