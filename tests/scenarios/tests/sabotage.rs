//! Negative controls: with one mechanism broken, the same run must lose pages.
//!
//! A sabotage that goes unnoticed means that the main job would not notice a bug
//! in that mechanism either.

use hv_core::sabotage::Sabotage as Breakable;
use scenarios::{execute, explain};
use xtask::iommu::Iommu;
use xtask::run::Run;
use xtask::sabotage::Sabotage;
use xtask::verdict::{Expect, judge};

fn loses_pages(sabotage: Sabotage) {
    loses_pages_in(&Run {
        sabotage: Some(sabotage),
        ..Run::new(&format!("sabotage-{}", sabotage.name()))
    });
}

fn loses_pages_in(run: &Run) {
    let outcome = execute(run);
    let verdict = judge(&outcome, Expect::Migrates);
    let explained = explain(run, &outcome, &verdict);
    // Red for the right reason: the guest moved, looked, and named frames.
    assert!(outcome.destination.resumed, "{explained}");
    assert!(!outcome.destination.lost.is_empty(), "{explained}");
    assert!(!verdict.is_pass(), "{explained}");
}

#[test]
fn pages_are_lost_without_the_report_at_unmap() {
    loses_pages(Sabotage::UnmapReport);
}

#[test]
fn pages_are_lost_if_the_guest_hears_of_an_unmap_too_early() {
    loses_pages(Sabotage::UnmapOrder);
}

#[test]
fn pages_are_lost_if_cpu_writes_are_not_tracked() {
    loses_pages(Sabotage::CpuDirty);
}

#[test]
fn pages_are_lost_without_invalidations() {
    loses_pages(Sabotage::Iotlb);
}

#[test]
fn pages_are_lost_without_invalidations_on_amd_vi() {
    loses_pages_in(&Run {
        sabotage: Some(Sabotage::Iotlb),
        iommu: Iommu::Amd,
        ..Run::new("sabotage-iotlb-amd-vi")
    });
}

#[test]
fn pages_are_lost_if_mapped_pages_count_as_clean() {
    loses_pages(Sabotage::MappedDirty);
}

#[test]
fn pages_are_lost_if_the_hypervisors_own_writes_are_not_logged() {
    loses_pages(Sabotage::EmulationDirty);
}

#[test]
fn every_breaking_point_has_an_option_of_its_name() {
    let options: Vec<String> = Sabotage::ALL.iter().map(|it| it.name()).collect();
    let breakable: Vec<&str> = Breakable::ALL.iter().map(|it| it.name()).collect();
    assert_eq!(options, breakable);
}
