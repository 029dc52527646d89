//! The main job: a guest moves while its device works, and loses nothing.

use scenarios::{Moved, migrates};
use xtask::iommu::Iommu;
use xtask::run::Run;
use xtask::viommu::Viommu;

/// The pages that matter most: last written by the device, then unmapped. With
/// fewer of them a run shows little.
const ENOUGH_DEVICE_PAGES: u64 = 20;

fn loses_nothing(seed: u64) {
    job_done(&Run {
        seed,
        ..Run::new(&format!("main-seed-{seed}"))
    });
}

fn job_done(run: &Run) -> Moved {
    let moved = migrates(run);

    let account = &moved.account;
    assert!(account.device_last >= ENOUGH_DEVICE_PAGES, "{account:?}");
    // One log feeds all three kinds; a kind that never shows up is not tested.
    let migrated = &moved.migrated;
    assert!(migrated.rounds >= 3, "{migrated:?}");
    assert!(migrated.dirty_cpu > 0, "{migrated:?}");
    assert!(migrated.dirty_mapped > 0, "{migrated:?}");
    assert!(migrated.dirty_unmap > 0, "{migrated:?}");
    assert_eq!(
        migrated.downtime_us,
        migrated.quiesce_us
            + migrated.harvest_us
            + migrated.pages_us
            + migrated.audit_us
            + migrated.state_us
            + migrated.ack_us,
        "the parts of the downtime add up"
    );
    moved
}

#[test]
fn a_guest_loses_nothing_with_seed_1() {
    loses_nothing(1);
}

#[test]
fn a_guest_loses_nothing_with_seed_2() {
    loses_nothing(2);
}

#[test]
fn a_guest_loses_nothing_with_seed_3() {
    loses_nothing(3);
}

/// The guest's own IOMMU is a virtio-iommu: the mappings themselves go across.
#[test]
fn main_job_on_virtio_iommu() {
    job_done(&Run {
        viommu: Viommu::Virtio,
        ..Run::new("main-virtio-iommu")
    });
}

/// The other vendor's remapping unit under the same guest, which sees a VT-d unit
/// as ever.
#[test]
fn main_job_on_amd_vi() {
    job_done(&Run {
        iommu: Iommu::Amd,
        ..Run::new("main-amd-vi")
    });
}

/// First-stage tables in scalable mode, which have accessed and dirty bits: of the
/// pages that are unmapped, those that the device left alone are not reported.
#[test]
fn main_job_on_vtd_with_first_stage_tables() {
    let moved = job_done(&Run {
        iommu: Iommu::VtdFs,
        ..Run::new("main-vtd-fs")
    });
    assert_eq!(moved.dirty_mode, "accessed-bit");
    let writable = job_done(&Run::new("main-vtd-fs-against-vtd"));
    assert_eq!(writable.dirty_mode, "mapped-writable");
    let [exact, all] = [moved, writable].map(|moved| moved.migrated.dirty_unmap);
    assert!(exact < all, "{exact} of {all} pages reported");
}
