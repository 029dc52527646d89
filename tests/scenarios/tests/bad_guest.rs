//! A guest or a device that misbehaves: it is told so by faults, it harms only
//! itself, and it can still be moved.

use scenarios::migrates;
use xtask::run::Run;
use xtask::viommu::Viommu;

fn in_mode(mode: &str) -> Run {
    Run {
        guest_options: vec![format!("mode={mode}")],
        ..Run::new(mode)
    }
}

/// Which record each malformed entry and descriptor gets is tested at the model of
/// the unit, in `iommu/tests/viommu_*.rs`. Here: a whole machine survives them, and
/// the unit works afterwards as if nothing had been, faults included.
#[test]
fn a_guest_that_fed_its_iommu_garbage_has_a_unit_that_works_and_can_be_moved() {
    let moved = migrates(&in_mode("garbage"));
    assert!(moved.account.faults > 0, "{:?}", moved.account);
}

#[test]
fn a_guest_that_fed_its_virtio_iommu_garbage_has_a_unit_that_works_and_can_be_moved() {
    let moved = migrates(&Run {
        viommu: Viommu::Virtio,
        guest_options: vec!["mode=garbage".to_owned()],
        ..Run::new("garbage-virtio-iommu")
    });
    assert!(moved.account.faults > 0, "{:?}", moved.account);
}

#[test]
fn a_device_that_writes_where_nothing_is_mapped_is_stopped_and_reported() {
    let moved = migrates(&in_mode("stray"));
    assert!(moved.dma_faults > 0, "the hardware recorded no fault");
    assert!(moved.account.faults > 0, "the guest was told of no fault");
}

/// The device sends its messages by DMA, which QEMU's unit takes for requests of
/// nobody; so the entry that it names is one that nobody has. What the unit does about
/// other devices' entries and compatibility format is tested at the model of it, in
/// `iommu/src/host/vtd/tests/interrupts.rs`: QEMU 10.0 lets the latter pass.
#[test]
fn a_device_that_sends_interrupts_it_was_not_granted_is_stopped_and_reported() {
    let moved = migrates(&in_mode("forge"));
    assert!(moved.interrupt_faults.iter().all(|count| *count > 0));
}
