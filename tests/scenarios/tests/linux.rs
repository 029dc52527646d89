//! A stock Linux kernel as the guest, on a disk that is passed through.
//!
//! The guest itself says when it has done enough to be moved, and does much more
//! afterwards than a migration takes: neither depends on how fast this machine is.

// A test may panic, in its helpers too.
#![allow(clippy::expect_used)]

use scenarios::logs_and_table;
use xtask::linux::{Done, Job, Load, Sources};
use xtask::sabotage::Sabotage;
use xtask::units::Span;
use xtask::viommu::Viommu;

fn job(scenario: &str) -> Job {
    Job {
        append: format!("{} quiet", Job::new(scenario).append),
        load: Some(Load {
            operations: 4000,
            cue: 400,
        }),
        timeout: Span::seconds(400),
        ..Job::new(scenario)
    }
}

fn execute(job: &Job) -> Done {
    job.execute(&mut |_, _| {})
        .expect("the run must take place")
}

/// Moves while its disk is in use, and is well. Returns what programs are told.
fn moves_at_work(job: &Job) -> serde_json::Value {
    let done = execute(job);
    let explained = logs_and_table(&done.outcome, &done.report);
    assert!(done.verdict.is_pass(), "{explained}");
    assert_eq!(done.outcome.destination.guest_exit_way, "power-off");
    let json = done.report.to_json().expect("only strings and numbers");
    serde_json::from_str(&json).expect("it is JSON")
}

#[test]
fn a_linux_guest_moves_while_it_uses_its_disk() {
    let json = moves_at_work(&Job {
        compare_boot: true,
        ..job("linux-disk")
    });
    assert_eq!(json["result"], "pass");
    assert_eq!(json["scenario"], "linux-disk");
    for member in ["rounds", "downtime_us", "pages_dirty_unmap"] {
        assert!(json[member].as_u64() > Some(0), "{member}: {json:#}");
    }
    let guest = &json["guest"];
    // What this kernel complains of at its boot, a faithful platform would have.
    let errors = [
        &guest["boot_errors"],
        &guest["errors"],
        &guest["io"]["errors"],
    ];
    assert_eq!(errors, [0, 0, 0], "{json:#}");
    for member in ["operations", "verified", "kept", "longest_us"] {
        assert!(guest["io"][member].as_u64() > Some(0), "{member}: {json:#}");
    }
    assert!(guest["clock_behind_us"].is_i64(), "{json:#}");
    assert!(guest["direct_boot_cycles"].as_u64() > Some(0), "{json:#}");
    for reason in ["iommu", "device", "end-of-interrupt"] {
        let share = &json["exits"]["command"][reason];
        assert!(share.as_f64() > Some(0.5), "{reason}: {json:#}");
    }
}

/// Their interrupts are remapped: the verdict looks for it.
#[test]
fn a_linux_guest_with_two_cpus_moves_while_it_uses_its_disk() {
    moves_at_work(&Job {
        vcpus: 2,
        ..job("linux-disk-two-cpus")
    });
}

/// Its local APICs are in memory then, and so are the interrupts that its CPUs send.
#[test]
fn a_linux_guest_whose_interrupts_nobody_remaps_moves_as_well() {
    moves_at_work(&Job {
        vcpus: 2,
        interrupt_remapping: false,
        load: None,
        ..job("linux-unremapped")
    });
}

#[test]
fn a_linux_guest_behind_a_virtio_iommu_moves_while_it_uses_its_disk() {
    let json = moves_at_work(&Job {
        sources: Sources {
            viommu: Viommu::Virtio,
            ..Sources::default()
        },
        ..job("linux-disk-virtio-iommu")
    });
    // Its driver is there and unmaps: without it the disk would reach all memory.
    assert!(json["pages_dirty_unmap"].as_u64() > Some(0), "{json:#}");
}

/// Negative control: every completed read is an unmap, and without its report the page
/// that the disk wrote stays behind.
#[test]
fn a_linux_guest_loses_what_its_disk_wrote_without_the_report_at_unmap() {
    let done = execute(&Job {
        sabotage: Some(Sabotage::UnmapReport),
        ..job("linux-disk-sabotage-unmap-report")
    });
    let explained = logs_and_table(&done.outcome, &done.report);
    assert!(done.outcome.destination.resumed, "{explained}");
    assert!(!done.verdict.is_pass(), "{explained}");
    let guest = done.report.guest.expect("the guest gave an account");
    let errors = guest.io.map(|io| io.errors);
    assert!(errors > Some(0), "the guest found nothing: {explained}");
}
