//! Streams that are well formed record by record and wrong as a whole.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{TestClock, ToyDestination};
use hv_core::Gfn;
use migration::destination::{Destination, DestinationError, DestinationParams, Outcome, Status};
use migration::link::Pipe;
use migration::stream::{Kind, Outbox, RECORD_BYTES, Refusal, StreamError};

type Record = (Kind, Vec<u8>);

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A guest of frames `4..4 + frames`, with one section, id 9.
fn hello(frames: u64) -> Record {
    let mut bytes = b"STRDLINE".to_vec();
    for field in [1u16, 0, 1, 1] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(words(&[4096, 4, frames, 9]));
    (Kind::Hello, bytes)
}

fn page(gfn: u64) -> Record {
    (Kind::Pages, [words(&[gfn]), vec![7; 4096]].concat())
}

fn zeros(gfn: u64, frames: u64) -> Record {
    (Kind::ZeroPages, words(&[gfn, frames]))
}

fn round_end(round: u64, last: u64, pages: u64) -> Record {
    (Kind::RoundEnd, words(&[round | last << 32, pages]))
}

fn section(id: u64, length: u64, bytes: usize) -> Record {
    (
        Kind::Section,
        [words(&[id, length]), vec![1; bytes]].concat(),
    )
}

fn empty(kind: Kind) -> Record {
    (kind, Vec::new())
}

/// Feeds the records; returns the end, or `None` if it still waits.
fn feed(records: &[Record]) -> (Option<Outcome>, ToyDestination) {
    let clock = TestClock::default();
    let pipe = Box::new(Pipe::<100_000>::new());
    let (mut near, mut far) = pipe.ends();
    let mut vm = ToyDestination::default();
    let mut buffer = Box::new([0; RECORD_BYTES]);
    let mut received = [0; 1];
    let params = DestinationParams::default();
    let mut destination = Destination::new(params, &mut buffer, &mut received);
    let mut outbox = Outbox::new(vec![0; RECORD_BYTES]);
    for (kind, bytes) in records {
        outbox.vacant().unwrap().put_plain(*kind, |payload| {
            payload[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
        // A link that the destination has closed takes nothing more.
        let _ = outbox.flush(&mut near);
        loop {
            match destination.step(&mut vm, &mut far, &clock) {
                Status::Working => {}
                Status::WaitingForPeer => break,
                Status::Finished(outcome) => return (Some(outcome), vm),
            }
        }
    }
    (None, vm)
}

fn error(records: &[Record]) -> DestinationError {
    let (outcome, vm) = feed(records);
    assert!(!vm.running);
    assert_eq!(vm.prepared, vm.discarded);
    match outcome {
        Some(Outcome::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn whole() -> Vec<Record> {
    vec![
        hello(3),
        page(5),
        zeros(4, 1),
        page(6),
        round_end(1, 0, 3),
        page(5),
        round_end(2, 1, 1),
        section(9, 5, 8),
        empty(Kind::Final),
        empty(Kind::Go),
    ]
}

#[test]
fn a_correct_stream_runs_the_guest() {
    let (outcome, vm) = feed(&whole());
    assert_eq!(outcome, Some(Outcome::Running { announced: true }));
    assert!(vm.running);
    assert_eq!(vm.loaded[0].1, [1; 5]);
}

#[test]
fn leaving_out_or_repeating_any_record_never_runs_the_guest() {
    for index in 0..whole().len() {
        let mut records = whole();
        records.remove(index);
        let (outcome, vm) = feed(&records);
        // Without the last one it waits; without a page of the second round, whose
        // content came before, the count is wrong.
        assert!(!vm.running, "without record {index}: {outcome:?}");

        let mut records = whole();
        records.insert(index, records[index].clone());
        let last = index == records.len() - 2;
        let (outcome, vm) = feed(&records);
        assert_eq!(vm.running, last, "record {index} twice: {outcome:?}");
    }
}

#[test]
fn swapping_any_two_records_of_different_kind_never_runs_a_wrong_guest() {
    let records = whole();
    for a in 0..records.len() {
        for b in a + 1..records.len() {
            let both_memory = |kind| matches!(kind, Kind::Pages | Kind::ZeroPages);
            if both_memory(records[a].0) && both_memory(records[b].0) {
                continue;
            }
            let mut records = records.clone();
            records.swap(a, b);
            let (outcome, vm) = feed(&records);
            assert!(!vm.running, "{a} and {b} swapped: {outcome:?}");
        }
    }
}

#[test]
fn each_rule_has_its_error() {
    let stream = DestinationError::Stream;
    let outside = |gfn| stream(StreamError::OutsideMemory(Gfn::new(gfn)));
    assert_eq!(error(&[hello(3), page(3)]), outside(3));
    assert_eq!(error(&[hello(3), page(7)]), outside(7));
    assert_eq!(error(&[hello(3), zeros(4, u64::MAX - 4)]), outside(7));
    assert_eq!(error(&[hello(3), zeros(4, u64::MAX)]), outside(4));
    assert_eq!(
        error(&[hello(3), page(4), page(6), round_end(1, 0, 2)]),
        stream(StreamError::MissingPage(Gfn::new(5)))
    );
    assert_eq!(
        error(&[hello(3), zeros(4, 3), round_end(1, 0, 4)]),
        stream(StreamError::PageCount {
            announced: 4,
            received: 3
        })
    );
    assert_eq!(
        error(&[hello(3), zeros(4, 3), zeros(4, 3)]),
        stream(StreamError::LongRound(3))
    );
    assert_eq!(
        error(&[hello(3), zeros(4, 3), round_end(2, 0, 3)]),
        stream(StreamError::Order(Kind::RoundEnd))
    );
    let at_sections = || vec![hello(3), zeros(4, 3), round_end(1, 1, 3)];
    let after = |record| [at_sections(), vec![record]].concat();
    assert_eq!(
        error(&after(section(8, 8, 8))),
        stream(StreamError::Order(Kind::Section))
    );
    for (length, bytes) in [(9, 8), (0, 8), (u64::from(u32::MAX), 8), (8, 0)] {
        assert!(matches!(
            error(&after(section(9, length, bytes))),
            DestinationError::Stream(StreamError::Length { .. })
        ));
    }
    assert_eq!(
        error(&after(empty(Kind::Final))),
        stream(StreamError::Order(Kind::Final))
    );
    assert_eq!(
        error(&after(page(4))),
        stream(StreamError::Order(Kind::Pages))
    );
    assert_eq!(
        error(&[empty(Kind::Go)]),
        stream(StreamError::Order(Kind::Go))
    );
    for kind in [Kind::Accept, Kind::Ready, Kind::Running] {
        assert_eq!(error(&[empty(kind)]), stream(StreamError::Order(kind)));
    }
}

#[test]
fn another_stream_another_version_and_too_much_memory_are_refused() {
    let mut other = hello(3);
    other.1[0] = b'X';
    assert!(matches!(
        error(&[other]),
        DestinationError::Stream(StreamError::BadMagic(_))
    ));
    let mut newer = hello(3);
    newer.1[8] = 2;
    assert_eq!(error(&[newer]), DestinationError::Refused(Refusal::Version));
    assert_eq!(
        error(&[hello(65)]),
        DestinationError::Refused(Refusal::Memory)
    );
}
