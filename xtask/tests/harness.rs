//! The harness, tried with an emulator that only pretends: `pretend-qemu` writes
//! what a machine would write to its serial ports and ends as it would.

// Helpers of tests may fail a test, too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use xtask::images::Images;
use xtask::machine::Role;
use xtask::observation::Exit;
use xtask::run::{Cut, Outcome, Run};
use xtask::units::Span;
use xtask::verdict::{Expect, judge};

/// Runs the pretended machines, which go on as `source` and `destination` say. The
/// directory keeps their logs.
fn execute(run: Run, source: &str, destination: &str) -> (TempDir, Outcome) {
    let directory = tempfile::tempdir().unwrap();
    let logs = directory.path();
    fs::write(logs.join("source.script"), source).unwrap();
    fs::write(logs.join("destination.script"), destination).unwrap();
    let run = Run {
        logs: Some(logs.to_owned()),
        ..run
    };
    let images = Images {
        hypervisor: "hypervisor".into(),
        guest: "guest".into(),
    };
    let qemu = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pretend-qemu");
    let outcome = run.execute_with(&qemu, &images, &mut |_, _| {}).unwrap();
    (directory, outcome)
}

#[test]
fn a_guest_that_moves_and_verifies_is_a_success() {
    let (_logs, outcome) = execute(
        Run::new("x"),
        "boot; round; event '{\"event\":\"switchover\"}'; migrated; exit 33",
        "boot; event '{\"event\":\"resumed\"}'; sleep 0.2; content",
    );
    let verdict = judge(&outcome, Expect::Migrates);
    assert!(verdict.is_pass(), "{verdict:?}");
    assert_eq!(outcome.source.rounds.len(), 1);
    let command = fs::read_to_string(outcome.files(Role::Source).command).unwrap();
    assert!(command.contains("role=source memory=64M"), "{command}");
}

#[test]
fn a_machine_that_hangs_is_killed_and_the_run_fails() {
    let run = Run {
        timeout: Span::ms(300),
        ..Run::new("x")
    };
    let started = Instant::now();
    let (_logs, outcome) = execute(run, "boot; exec sleep 1000", "boot; exec sleep 1000");
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(outcome.source.exit, Exit::Killed);
    assert_eq!(outcome.destination.exit, Exit::Killed);
    let verdict = judge(&outcome, Expect::Migrates);
    assert!(verdict.0[0].contains("no end within"), "{verdict:?}");
}

#[test]
fn a_cut_kills_the_destination_and_leaves_the_source_running() {
    // The source goes on once the destination's process is gone.
    let run = Run {
        cut: Some(Cut::InPreCopy),
        timeout: Span::seconds(20),
        ..Run::new("x")
    };
    let (_logs, outcome) = execute(
        run,
        r#"boot; event '{"event":"connected"}'; sleep 0.5
        event '{"event":"migration-failed","reason":"no answer"}'; content"#,
        "boot; exec sleep 1000",
    );
    let verdict = judge(&outcome, Expect::StaysOnSource);
    assert!(verdict.is_pass(), "{verdict:?}");
    assert_eq!(outcome.destination.exit, Exit::Killed);
}

#[test]
fn a_run_ends_soon_after_the_source_dies_before_it_has_migrated() {
    let (_logs, outcome) = execute(Run::new("x"), "boot; exit 35", "boot; exec sleep 1000");
    assert_eq!(outcome.timed_out, None);
    let verdict = judge(&outcome, Expect::Migrates).0.join("\n");
    assert!(verdict.contains("ended with code 0x11"), "{verdict}");
}

#[test]
fn what_an_emulator_cannot_start_with_is_kept() {
    let (_logs, outcome) = execute(Run::new("x"), "echo bad option >&2; exit 1", "exit 1");
    assert_eq!(outcome.source.exit, Exit::Emulator(1));
    assert!(xtask::report::logs_of(&outcome).contains("bad option"));
}
