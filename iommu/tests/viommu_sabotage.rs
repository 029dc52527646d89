//! The negative control `unmap-order`. Alone in its binary: a sabotage is global.
#![cfg(feature = "sabotage")]

mod viommu_support;

use hv_core::sabotage::{Sabotage, activate};
use viommu_support::*;

#[test]
fn the_sabotage_completes_an_unmap_one_invalidation_too_early() {
    activate(Sabotage::UnmapOrder);
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.queue_pages(5, 7, 0, 1);
    machine.settle();
    assert!(machine.pages(NIC).contains_key(&7), "maps are not late");

    machine.set_leaf(TABLE_A, 7, 0);
    machine.queue_pages(5, 7, 0, 2);
    machine.settle();
    assert_eq!(machine.wait_status(), 2);
    assert!(machine.pages(NIC).contains_key(&7));

    machine.set_leaf(TABLE_A, 8, leaf(DATA));
    machine.queue_pages(5, 8, 0, 3);
    machine.settle();
    assert_eq!(machine.wait_status(), 3);
    assert_eq!(machine.pages(NIC).keys().collect::<Vec<_>>(), [&8]);
}
