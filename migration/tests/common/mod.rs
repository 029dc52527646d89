//! Drives whole migrations of toy machines, and what must hold of each.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a module of tests"
)]

pub mod machines;

pub use machines::{ToyDestination, ToySource};

use hv_core::clock::Clock;
use hv_core::memory::Frame;
use migration::destination::{self, Destination, DestinationParams};
use migration::link::Link;
use migration::source::{self, Event, RoundStats, Source, SourceParams};
use migration::stream::RECORD_BYTES;
use std::cell::Cell;
use std::sync::atomic::Ordering;

/// A clock that the test moves.
#[derive(Default)]
pub struct TestClock(pub Cell<u64>);

impl Clock for TestClock {
    fn now_us(&self) -> u64 {
        self.0.get()
    }
}

/// The frames on which the two machines differ.
pub fn differing(source: &ToySource, destination: &ToyDestination) -> Vec<u64> {
    let content = |frame: &Frame| frame.words().each_ref().map(|w| w.load(Ordering::Relaxed));
    source
        .memory
        .iter()
        .filter(|(gfn, frame)| {
            destination
                .memory
                .get(gfn)
                .is_none_or(|other| content(other) != content(frame))
        })
        .map(|(gfn, _)| *gfn)
        .collect()
}

/// What came of a migration.
pub struct Report {
    pub source: source::Outcome,
    pub destination: destination::Outcome,
    pub rounds: Vec<RoundStats>,
    pub totals: source::Totals,
    pub received: destination::Totals,
}

impl Report {
    pub fn succeeded(&self) -> bool {
        self.source == source::Outcome::Done
            && matches!(self.destination, destination::Outcome::Running { .. })
    }
}

/// How a migration is driven.
#[derive(Clone, Copy)]
pub struct Drive {
    pub source: SourceParams,
    pub destination: DestinationParams,
    /// Guest writes between two steps of the engine.
    pub writes: u64,
    /// Time between two steps, in microseconds.
    pub tick_us: u64,
}

impl Default for Drive {
    fn default() -> Self {
        Self {
            source: SourceParams {
                audit: true,
                downtime_limit_ms: 1,
                switchover_bandwidth: 10_000_000,
                on_non_convergence: source::NonConvergence::Force,
                max_rounds: 6,
                progress_timeout_ms: 50,
                connect_timeout_ms: 50,
                pages_per_step: 5,
                ..SourceParams::default()
            },
            destination: DestinationParams {
                connect_timeout_ms: 200,
                progress_timeout_ms: 200,
                records_per_step: 2,
                ..DestinationParams::default()
            },
            writes: 2,
            tick_us: 100,
        }
    }
}

/// Runs a whole migration and checks what must hold of every one: the engines
/// come to an end, and never do both machines run the guest.
pub fn migrate(
    from: &mut ToySource,
    to: &mut ToyDestination,
    drive: Drive,
    mut near: impl Link,
    mut far: impl Link,
) -> Report {
    let clock = TestClock::default();
    let mut out = Box::new([0; RECORD_BYTES]);
    let mut into = Box::new([0; RECORD_BYTES]);
    let frames = from.memory.len() as u64;
    let mut received = vec![0; Destination::words_needed(frames) as usize];
    let mut source = Source::new(drive.source, &mut out);
    let mut destination = Destination::new(drive.destination, &mut into, &mut received);
    let mut rounds = Vec::new();
    for _ in 0..1_000_000 {
        let step = source.step(from, &mut near, &clock);
        if let Some(Event::RoundDone(stats)) = step.event {
            rounds.push(stats);
        }
        from.run(drive.writes);
        let status = destination.step(to, &mut far, &clock);
        assert!(!(from.running && to.running), "split brain");
        clock.0.set(clock.0.get() + drive.tick_us);
        if let (source::Status::Finished(a), destination::Status::Finished(b)) =
            (step.status, status)
        {
            return Report {
                source: a,
                destination: b,
                rounds,
                totals: *source.progress(),
                received: *destination.progress(),
            };
        }
    }
    panic!("the engines do not come to an end");
}

/// What must hold after any failure, wherever it happened.
pub fn assert_exactly_one_or_in_doubt(from: &ToySource, to: &ToyDestination, result: &Report) {
    use destination::Outcome as D;
    use source::Outcome as S;
    match (result.source, result.destination) {
        (S::Done, D::Running { .. }) | (S::InDoubt(_), D::Running { .. }) => {
            assert!(!from.running && to.running);
            assert_eq!(differing(from, to), [0; 0]);
        }
        (S::Failed(_), D::Failed(_)) => {
            assert!(from.running && !to.running && !from.tracking);
            assert_eq!(to.prepared, to.discarded);
        }
        (S::InDoubt(_), D::Failed(_)) => assert!(!from.running && !to.running),
        other => panic!("impossible pair of outcomes: {other:?}"),
    }
}
