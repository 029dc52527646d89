//! A guest or a device that misbehaves: it is told so by faults, it harms only
//! itself, and it can still be moved.

// A test may panic, in its helpers too.
#![allow(clippy::expect_used)]

use scenarios::{execute, explain, migrates};
use xtask::iommu::Iommu;
use xtask::machine::Role;
use xtask::observation::Exit;
use xtask::run::Run;
use xtask::units::Span;
use xtask::verdict::{Expect, judge};
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

/// The same with AMD-Vi. QEMU's unit takes what a device sends by DMA for requests of
/// the southbridge's I/O APIC, which was granted nothing either, and never writes its
/// log: that the requests were sent shows in
/// `a_device_raises_any_vector_if_amd_vi_does_not_remap_interrupts`.
#[test]
fn a_device_that_sends_interrupts_it_was_not_granted_is_stopped_by_amd_vi() {
    let run = Run {
        iommu: Iommu::Amd,
        scenario: "forge-amd-vi".to_owned(),
        ..in_mode("forge")
    };
    let outcome = execute(&run);
    let verdict = judge(&outcome, Expect::Migrates);
    let explained = explain(&run, &outcome, &verdict);
    assert!(verdict.is_pass(), "{explained}");
    for seen in [&outcome.source, &outcome.destination] {
        assert!(!seen.interrupts_unremapped, "{explained}");
    }
}

/// Unknown MSRs, a string to a port, registers and functions that are not there, the
/// device's registers moved over memory, its interrupts sent to memory: the guest
/// itself checks the answer that it gets to each, some of them a hundred times, then
/// works and moves as ever. The operator is told of each kind once.
#[test]
fn a_guest_that_misuses_its_platform_gets_the_architectures_answers_and_can_be_moved() {
    let run = in_mode("hostile");
    let outcome = execute(&run);
    let verdict = judge(&outcome, Expect::Migrates);
    assert!(verdict.is_pass(), "{}", explain(&run, &outcome, &verdict));
    let read = |path| std::fs::read_to_string(path).expect("the machine left its files");
    let files = outcome.files(Role::Source);
    let console = read(files.console);
    assert!(
        console.contains("hostile: every answer was right"),
        "{console}"
    );
    let log = read(files.log);
    for kind in ["for MSR", "for a string instruction", "where nothing is"] {
        assert_eq!(log.matches(kind).count(), 1, "{kind}:\n{log}");
    }
}

#[test]
fn a_guest_that_triple_faults_ends_and_its_hypervisor_says_so() {
    let run = Run {
        migrate_after: Some(Span::seconds(1_000_000)),
        ..in_mode("triple-fault")
    };
    let outcome = execute(&run);
    let source = &outcome.source;
    assert_eq!(source.guest_exit_way, "error", "{source:?}");
    assert_eq!(source.exit, Exit::Code(0x11), "an orderly end: {source:?}");
    let log = std::fs::read_to_string(outcome.files(Role::Source).log).expect("its log");
    assert_eq!(log.matches("by a triple fault").count(), 1, "{log}");
    assert!(!log.contains("panic"), "{log}");
}
