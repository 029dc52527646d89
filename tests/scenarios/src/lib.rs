//! What the whole-machine tests share.
//!
//! Each test in `tests/` boots two hypervisors in QEMU, lets a guest move (or
//! fail to), and judges what was seen. The logs of each run stay in
//! `logs/<scenario>` in the target directory.

// This package is all test: a run that cannot take place or fails ends the test.
#![allow(clippy::panic, clippy::expect_used)]

use xtask::events::Migrated;
use xtask::ledger::Account;
use xtask::report::{Report, logs_of};
use xtask::run::{Outcome, Run};
use xtask::verdict::{Expect, Verdict, judge};

/// A run in which the guest moved and lost nothing.
pub struct Moved {
    /// The source's figures.
    pub migrated: Migrated,
    /// What counted on the source as evidence of a device's write.
    pub dirty_mode: String,
    /// The guest's account of its pages, given on the destination.
    pub account: Account,
    /// Faults that the hardware of both machines recorded.
    pub dma_faults: u64,
    /// Interrupt requests that the hardware of each machine refused, the source first.
    pub interrupt_faults: [u64; 2],
}

/// Runs it to its end. The images are built once per test process.
///
/// # Panics
/// The run could not take place.
#[track_caller]
pub fn execute(run: &Run) -> Outcome {
    match run.execute(&mut |_, _| {}) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{}: {error:#}", run.scenario),
    }
}

/// Runs it; the guest must move and find every page right on the destination.
///
/// # Panics
/// It does not; the message has the table and the ends of the logs.
#[track_caller]
pub fn migrates(run: &Run) -> Moved {
    let outcome = succeeds(run, Expect::Migrates);
    Moved {
        interrupt_faults: [
            outcome.source.interrupt_faults,
            outcome.destination.interrupt_faults,
        ],
        dma_faults: outcome.source.dma_faults + outcome.destination.dma_faults,
        dirty_mode: outcome.source.dirty_mode.unwrap_or_default().0,
        migrated: outcome.source.migrated.expect("a part of the verdict"),
        account: outcome.destination.account.expect("a part of the verdict"),
    }
}

/// Runs it; the migration must be called off, and the guest must run on at the
/// source and find every page right there.
///
/// # Panics
/// It does not; the message has the table and the ends of the logs.
#[track_caller]
pub fn stays_on_source(run: &Run) -> Outcome {
    succeeds(run, Expect::StaysOnSource)
}

/// The table and the ends of the logs.
pub fn explain(run: &Run, outcome: &Outcome, verdict: &Verdict) -> String {
    logs_and_table(outcome, &Report::new(run, outcome, verdict))
}

/// The same of a run that was summed up.
pub fn logs_and_table(outcome: &Outcome, report: &Report) -> String {
    format!("\n{report}\n{}", logs_of(outcome))
}

#[track_caller]
fn succeeds(run: &Run, expect: Expect) -> Outcome {
    let outcome = execute(run);
    let verdict = judge(&outcome, expect);
    assert!(verdict.is_pass(), "{}", explain(run, &outcome, &verdict));
    outcome
}
