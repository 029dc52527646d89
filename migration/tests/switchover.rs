//! Whole migrations that succeed, or fail for reasons other than a bad link.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::machines::SECTIONS;
use common::*;
use hv_core::dirty::DirtySource;
use migration::destination::{self, DestinationError, OnMismatch};
use migration::link::{Pipe, Ring, Role, ring};
use migration::source::{self, NonConvergence, Source, SourceError, SourceParams};
use migration::stream::{AbortReason, RECORD_BYTES, Refusal, SectionId};
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;

const RUNS: [(u64, u64); 2] = [(0, 40), (100, 30)];

fn migrate_by_pipe(from: &mut ToySource, to: &mut ToyDestination, drive: Drive) -> Report {
    let pipe = Box::new(Pipe::<50_000>::new());
    let (near, far) = pipe.ends();
    migrate(from, to, drive, near, far)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_destination_equals_the_source_at_switchover(
        seed: u64,
        frames in 1u64..90,
        writes in 0u64..30,
        fragment in 1usize..20_000,
        pages_per_step in 1u32..40,
        bandwidth in prop::sample::select(vec![0u64, 20_000_000]),
    ) {
        let mut from = ToySource::new(seed, &[(7, frames), (400, 20)]);
        let mut to = ToyDestination::default();
        let pipe = Box::new(Pipe::<30_000>::new());
        let (near, far) = pipe.ends();
        // At least a page takes few calls, or the run takes for ever.
        near.fragment(fragment + 500);
        far.fragment(fragment % 9 + 1);
        let mut drive = Drive { writes, ..Drive::default() };
        drive.source.pages_per_step = pages_per_step;
        drive.source.max_bandwidth = bandwidth;
        let report = migrate(&mut from, &mut to, drive, near, far);
        prop_assert!(report.succeeded(), "{:?} {:?}", report.source, report.destination);
        prop_assert_eq!(differing(&from, &to), Vec::<u64>::new());
        let loaded: Vec<_> = SECTIONS.into_iter().zip(from.state.clone()).collect();
        prop_assert_eq!(&to.loaded, &loaded);
        prop_assert_eq!(report.received.audited, frames + 20);
    }

    #[test]
    fn the_same_holds_over_shared_memory(seed: u64, words in ring::MIN_WORDS..20_000) {
        let memory: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let far = Ring::new(&memory, Role::Destination).unwrap();
        let near = Ring::new(&memory, Role::Source).unwrap();
        let mut from = ToySource::new(seed, &RUNS);
        let mut to = ToyDestination::default();
        let report = migrate(&mut from, &mut to, Drive::default(), near, far);
        prop_assert!(report.succeeded(), "{:?} {:?}", report.source, report.destination);
        prop_assert_eq!(differing(&from, &to), Vec::<u64>::new());
    }
}

#[test]
fn lost_marks_are_found_and_refused_and_the_source_runs_on() {
    let mut from = ToySource::new(11, &RUNS);
    let mut to = ToyDestination::default();
    from.lose_every = 3;
    let report = migrate_by_pipe(&mut from, &mut to, Drive::default());
    let failed = source::Outcome::Failed(SourceError::Aborted(AbortReason::Audit));
    assert_eq!(report.source, failed);
    let destination::Outcome::Failed(DestinationError::Audit { pages, first }) = report.destination
    else {
        panic!("{:?}", report.destination);
    };
    assert_eq!(pages, to.mismatches.len() as u64);
    assert_eq!(first.number(), to.mismatches[0]);
    assert!(from.running && to.discarded);
}

#[test]
fn in_report_mode_lost_marks_are_named_and_the_pages_differ() {
    let mut from = ToySource::new(11, &RUNS);
    let mut to = ToyDestination::default();
    from.lose_every = 3;
    let mut drive = Drive::default();
    drive.destination.on_mismatch = OnMismatch::Report;
    let report = migrate_by_pipe(&mut from, &mut to, drive);
    assert!(report.succeeded());
    assert!(!to.mismatches.is_empty());
    assert_eq!(differing(&from, &to), to.mismatches);
}

#[test]
fn rounds_and_totals_agree_and_name_every_dirty_source() {
    let mut from = ToySource::new(5, &RUNS);
    let mut to = ToyDestination::default();
    let report = migrate_by_pipe(&mut from, &mut to, Drive::default());
    let sum = |of: fn(&source::RoundStats) -> u64| report.rounds.iter().map(of).sum::<u64>();
    assert!(report.succeeded());
    assert_eq!(report.rounds[0].pages, 70);
    assert!(report.rounds.len() >= 3);
    assert_eq!(report.totals.rounds as usize, report.rounds.len());
    assert_eq!(report.totals.rounds, report.received.rounds);
    assert_eq!(report.totals.pages, sum(|round| round.pages));
    assert_eq!(report.totals.pages, report.received.pages);
    assert_eq!(report.totals.zero_pages, report.received.zero_pages);
    assert!(report.totals.zero_pages > 0);
    for source in DirtySource::ALL {
        let by_round: u64 = report.rounds.iter().map(|r| r.dirty.by(source)).sum();
        assert_eq!(report.totals.dirty.by(source), by_round);
        assert_eq!(from.log.marks_by(source), by_round);
        assert!(by_round > 0, "{source:?}");
    }
    assert!(report.totals.downtime.quiesce_us > 0);
    assert!(report.totals.downtime.total_us() < report.totals.elapsed_us);
}

#[test]
fn a_guest_that_outruns_the_link_fails_or_is_forced_as_told() {
    for (policy, succeeds) in [(NonConvergence::Fail, false), (NonConvergence::Force, true)] {
        let mut from = ToySource::new(5, &RUNS);
        let mut to = ToyDestination::default();
        let mut drive = Drive {
            writes: 40,
            ..Drive::default()
        };
        drive.source.max_rounds = 0;
        drive.source.precopy_timeout_ms = 300;
        drive.source.on_non_convergence = policy;
        let report = migrate_by_pipe(&mut from, &mut to, drive);
        assert_eq!(report.succeeded(), succeeds, "{:?}", report.source);
        assert!(report.totals.elapsed_us >= 300_000);
        if !succeeds {
            let failed = source::Outcome::Failed(SourceError::NoConvergence);
            assert_eq!(report.source, failed);
            assert!(from.running && to.discarded);
        }
    }
}

#[test]
fn a_quiet_guest_converges_after_the_rounds_asked_for() {
    for min_rounds in [1, 4] {
        let mut from = ToySource::new(5, &RUNS);
        let mut to = ToyDestination::default();
        let mut drive = Drive {
            writes: 0,
            ..Drive::default()
        };
        drive.source.downtime_limit_ms = 300;
        drive.source.min_rounds = min_rounds;
        let report = migrate_by_pipe(&mut from, &mut to, drive);
        assert!(report.succeeded());
        assert_eq!(report.totals.rounds, min_rounds + 1);
    }
}

#[test]
fn the_throttle_keeps_pre_copy_at_its_bandwidth() {
    let mut from = ToySource::new(5, &[(0, 300)]);
    let mut to = ToyDestination::default();
    let mut drive = Drive {
        writes: 0,
        ..Drive::default()
    };
    drive.source.max_bandwidth = 2_000_000;
    let report = migrate_by_pipe(&mut from, &mut to, drive);
    assert!(report.succeeded());
    let round = report.rounds[0];
    let rate = round.bytes * 1_000_000 / round.duration_us;
    assert!((1_700_000..2_100_000).contains(&rate), "{rate} bytes/s");
}

#[test]
fn a_refusal_reaches_the_source_with_its_reason() {
    let mut from = ToySource::new(5, &RUNS);
    let mut to = ToyDestination {
        refuse: Some(Refusal::Policy),
        ..ToyDestination::default()
    };
    let report = migrate_by_pipe(&mut from, &mut to, Drive::default());
    let failed = source::Outcome::Failed(SourceError::Refused(Refusal::Policy));
    assert_eq!(report.source, failed);
    assert!(from.running && !from.tracking && !to.discarded);
}

#[test]
fn a_failure_to_save_lets_the_source_run_on() {
    let mut from = ToySource::new(5, &RUNS);
    let mut to = ToyDestination::default();
    from.fail_save = true;
    let report = migrate_by_pipe(&mut from, &mut to, Drive::default());
    assert!(matches!(
        report.source,
        source::Outcome::Failed(SourceError::Vm(_))
    ));
    let aborted = DestinationError::Aborted(AbortReason::Machine);
    assert_eq!(report.destination, destination::Outcome::Failed(aborted));
    assert!(from.running && to.discarded);
}

#[test]
fn a_guest_that_takes_too_long_to_build_runs_on_at_the_source() {
    let mut from = ToySource::new(5, &RUNS);
    let mut to = ToyDestination {
        never_completes: true,
        ..ToyDestination::default()
    };
    let report = migrate_by_pipe(&mut from, &mut to, Drive::default());
    assert_eq!(report.source, source::Outcome::Failed(SourceError::Timeout));
    let aborted = DestinationError::Aborted(AbortReason::Timeout);
    assert_eq!(report.destination, destination::Outcome::Failed(aborted));
    assert!(from.running && to.discarded && !to.running);
}

#[test]
fn devices_that_do_not_rest_are_given_up() {
    let mut from = ToySource::new(5, &RUNS);
    let mut to = ToyDestination::default();
    from.quiesce_polls = u32::MAX;
    let mut drive = Drive::default();
    drive.source.quiesce_timeout_ms = 30;
    let report = migrate_by_pipe(&mut from, &mut to, drive);
    let failed = source::Outcome::Failed(SourceError::QuiesceTimeout);
    assert_eq!(report.source, failed);
    assert!(from.running && to.discarded);
}

#[test]
fn a_guest_that_cannot_be_described_fails_before_anything_is_sent() {
    let mut from = ToySource::new(5, &RUNS);
    let mut to = ToyDestination::default();
    let info = SECTIONS[0];
    from.sections = (0..17)
        .map(|id| migration::stream::SectionInfo {
            id: SectionId(id),
            ..info
        })
        .collect();
    let report = migrate_by_pipe(&mut from, &mut to, Drive::default());
    assert_eq!(report.source, source::Outcome::Failed(SourceError::Config));
    assert!(from.running && !to.prepared);
}

#[test]
fn a_silent_peer_is_a_timeout_on_either_side() {
    let clock = TestClock::default();
    let pipe = Box::new(Pipe::<50_000>::new());
    let (mut near, _far) = pipe.ends();
    let mut buffer = Box::new([0; RECORD_BYTES]);
    let mut from = ToySource::new(5, &RUNS);
    let mut source = Source::new(Drive::default().source, &mut buffer);
    let status = loop {
        match source.step(&mut from, &mut near, &clock).status {
            source::Status::WaitingForPeer => clock.0.set(clock.0.get() + 1_000),
            status => break status,
        }
    };
    let failed = source::Outcome::Failed(SourceError::Timeout);
    assert_eq!(status, source::Status::Finished(failed));
    assert_eq!(clock.0.get(), 50_000);

    let mut buffer = Box::new([0; RECORD_BYTES]);
    let mut to = ToyDestination::default();
    let other = Box::new(Pipe::<50_000>::new());
    let (_silent, mut listening) = other.ends();
    let params = Drive::default().destination;
    let mut received = [0; 2];
    let mut destination = destination::Destination::new(params, &mut buffer, &mut received);
    let status = loop {
        match destination.step(&mut to, &mut listening, &clock) {
            destination::Status::WaitingForPeer => clock.0.set(clock.0.get() + 1_000),
            status => break status,
        }
    };
    let failed = destination::Outcome::Failed(DestinationError::Timeout);
    assert_eq!(status, destination::Status::Finished(failed));
}

#[test]
fn a_cancel_at_any_step_leaves_exactly_one_guest() {
    let mut cancelled = 0;
    for at in 0.. {
        let clock = TestClock::default();
        let pipe = Box::new(Pipe::<50_000>::new());
        let (mut near, mut far) = pipe.ends();
        let (mut out, mut into) = (Box::new([0; RECORD_BYTES]), Box::new([0; RECORD_BYTES]));
        let mut from = ToySource::new(5, &[(0, 9)]);
        let mut to = ToyDestination::default();
        let drive = Drive::default();
        let mut received = [0; 2];
        let params = SourceParams {
            max_rounds: 3,
            ..drive.source
        };
        let mut source = Source::new(params, &mut out);
        let mut destination =
            destination::Destination::new(drive.destination, &mut into, &mut received);
        let mut done = None;
        for step in 0.. {
            if step == at && source.cancel(&mut from, &mut near) {
                cancelled += 1;
                assert!(from.running);
            }
            let here = source.step(&mut from, &mut near, &clock).status;
            from.run(1);
            let there = destination.step(&mut to, &mut far, &clock);
            clock.0.set(clock.0.get() + 100);
            assert!(!(from.running && to.running));
            if let (source::Status::Finished(_), destination::Status::Finished(_)) = (here, there) {
                done = Some((step, here));
                break;
            }
        }
        let (steps, here) = done.unwrap();
        assert_ne!(from.running, to.running);
        assert_eq!(to.prepared && !to.running, to.discarded);
        if at > steps {
            assert_eq!(here, source::Status::Finished(source::Outcome::Done));
            break;
        }
    }
    assert!(cancelled > 10);
}
