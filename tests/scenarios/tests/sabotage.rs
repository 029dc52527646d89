//! Negative controls: with one mechanism broken, the same run must lose pages, or be
//! interrupted.
//!
//! A sabotage that goes unnoticed means that the main job would not notice a bug
//! in that mechanism either.

use hv_core::sabotage::Sabotage as Breakable;
use scenarios::{execute, explain};
use xtask::iommu::Iommu;
use xtask::observation::Observation;
use xtask::run::Run;
use xtask::sabotage::Sabotage;
use xtask::verdict::{Expect, judge};
use xtask::viommu::Viommu;

/// Runs with the mechanism broken and returns what was seen of the destination.
/// The guest moved and the run is red, with frames named.
fn red(sabotage: Sabotage) -> Observation {
    let scenario = format!("sabotage-{}", sabotage.name());
    red_in(&Run::broken(&scenario, sabotage))
}

fn red_in(run: &Run) -> Observation {
    let outcome = execute(run);
    let verdict = judge(&outcome, Expect::Migrates);
    let explained = explain(run, &outcome, &verdict);
    assert!(outcome.destination.resumed, "{explained}");
    assert!(!verdict.is_pass(), "{explained}");
    assert!(!outcome.destination.lost_frames().is_empty(), "{explained}");
    outcome.destination
}

/// The guest itself finds pages wrong.
fn guest_loses_pages(sabotage: Sabotage) {
    let seen = red(sabotage);
    assert!(!seen.lost.is_empty(), "the guest found nothing: {seen:?}");
}

/// The machines differ; the guest may be too damaged to say so, or not use the
/// page any more.
fn machines_differ(sabotage: Sabotage) {
    let seen = red(sabotage);
    assert!(!seen.mismatches.is_empty(), "the machines agree: {seen:?}");
}

#[test]
fn pages_are_lost_without_the_report_at_unmap() {
    guest_loses_pages(Sabotage::UnmapReport);
}

#[test]
fn pages_are_lost_if_the_guest_hears_of_an_unmap_too_early() {
    guest_loses_pages(Sabotage::UnmapOrder);
}

#[test]
fn pages_are_lost_if_cpu_writes_are_not_tracked() {
    machines_differ(Sabotage::CpuDirty);
}

#[test]
fn pages_are_lost_without_invalidations() {
    guest_loses_pages(Sabotage::Iotlb);
}

#[test]
fn pages_are_lost_without_invalidations_on_amd_vi() {
    let seen = red_in(&Run {
        iommu: Iommu::Amd,
        ..Run::broken("sabotage-iotlb-amd-vi", Sabotage::Iotlb)
    });
    assert!(!seen.lost.is_empty(), "the guest found nothing: {seen:?}");
}

#[test]
fn pages_are_lost_if_evidence_is_cleared_without_dropping_what_is_cached() {
    red_in(&Run {
        iommu: Iommu::VtdFs,
        ..Run::broken("sabotage-evidence-drain-vtd-fs", Sabotage::EvidenceDrain)
    });
}

/// The same behind a virtio-iommu.
fn guest_loses_pages_behind_virtio(sabotage: Sabotage) {
    let scenario = format!("sabotage-{}-virtio-iommu", sabotage.name());
    let seen = red_in(&Run {
        viommu: Viommu::Virtio,
        ..Run::broken(&scenario, sabotage)
    });
    assert!(!seen.lost.is_empty(), "the guest found nothing: {seen:?}");
}

#[test]
fn pages_are_lost_without_the_report_at_unmap_from_a_virtio_iommu() {
    guest_loses_pages_behind_virtio(Sabotage::UnmapReport);
}

#[test]
fn pages_are_lost_if_a_virtio_iommu_answers_an_unmap_too_early() {
    guest_loses_pages_behind_virtio(Sabotage::UnmapOrder);
}

#[test]
fn pages_are_lost_without_invalidations_for_a_virtio_iommu() {
    guest_loses_pages_behind_virtio(Sabotage::Iotlb);
}

#[test]
fn pages_are_lost_if_mapped_pages_count_as_clean() {
    guest_loses_pages(Sabotage::MappedDirty);
}

#[test]
fn pages_are_lost_if_the_hypervisors_own_writes_are_not_logged() {
    machines_differ(Sabotage::EmulationDirty);
}

/// Both machines are interrupted, and the run is red.
fn raises_any_vector(run: &Run) {
    let outcome = execute(run);
    let verdict = judge(&outcome, Expect::Migrates);
    let explained = explain(run, &outcome, &verdict);
    assert!(!verdict.is_pass(), "{explained}");
    for seen in [&outcome.source, &outcome.destination] {
        assert!(!seen.stray_interrupts.is_empty(), "{explained}");
        assert_eq!(seen.interrupt_faults, 0, "{explained}");
    }
}

#[test]
fn a_device_raises_any_vector_if_interrupts_are_not_remapped() {
    let sabotage = Sabotage::InterruptRemapping;
    raises_any_vector(&Run::broken("sabotage-interrupt-remapping", sabotage));
}

#[test]
fn a_device_raises_any_vector_if_amd_vi_does_not_remap_interrupts() {
    let sabotage = Sabotage::InterruptRemapping;
    raises_any_vector(&Run {
        iommu: Iommu::Amd,
        ..Run::broken("sabotage-interrupt-remapping-amd-vi", sabotage)
    });
}

#[test]
fn every_breaking_point_has_an_option_of_its_name() {
    let options: Vec<String> = Sabotage::ALL.iter().map(|it| it.name()).collect();
    let breakable: Vec<&str> = Breakable::ALL.iter().map(|it| it.name()).collect();
    assert_eq!(options, breakable);
}
