//! The negative controls: each mechanism, broken on purpose, loses a write.

#![allow(clippy::unwrap_used)]

mod common;

use common::world::{Config, device, with_world};
use hv_core::sabotage::{Sabotage, activate};
use iommu::space::Access;

/// A device writes one page that is unmapped and one that stays mapped. Returns
/// the frames lost, and whether the device still reaches the unmapped one.
fn migrate() -> (Vec<u64>, bool) {
    with_world(Config::default(), |mut world| {
        let domain = world.domains[0];
        world.map(domain, 0, 1, 3, Access::ReadWrite).unwrap();
        world.map(domain, 1, 1, 4, Access::ReadWrite).unwrap();
        for page in [0, 1] {
            world.device_write(device(1), page).unwrap();
        }
        world.hardware.land();
        world.unmap(domain, 0, 1, false).unwrap();
        world.migration.send_dirty();
        let late = world.hardware.write(device(1), common::world::iova(0));
        world.hardware.land();
        world.iommu.mark_writable();
        world.migration.send_dirty();
        (world.migration.lost(), late)
    })
}

// One test: what is sabotaged is the same for the whole program.
#[test]
fn each_sabotage_does_what_its_name_says() {
    assert_eq!(migrate(), (vec![], false));
    activate(Sabotage::UnmapReport);
    assert_eq!(migrate(), (vec![3], false));
    activate(Sabotage::MappedDirty);
    assert_eq!(migrate(), (vec![4], false));
    activate(Sabotage::Iotlb);
    assert_eq!(migrate(), (vec![3], true));
}
