//! Links that break or lie: at every byte of a whole migration.

mod common;

use common::*;
use migration::link::Pipe;
use migration::link::pipe::Fault;
use migration::{destination, source};

/// A guest small enough to try every byte of its stream.
const RUNS: [(u64, u64); 1] = [(3, 3)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// Migrates the small guest with one fault in what `side` sends; returns the
/// number of bytes that side sent.
fn migrate_with(side: Side, fault: Option<Fault>) -> (ToySource, ToyDestination, Report, u64) {
    let pipe = Box::new(Pipe::<5_000>::new());
    let (near, far) = pipe.ends();
    if let Some(fault) = fault {
        match side {
            Side::Source => near.inject(fault),
            Side::Destination => far.inject(fault),
        }
    }
    let mut from = ToySource::new(77, &RUNS);
    let mut to = ToyDestination::default();
    let mut drive = Drive {
        tick_us: 1_000,
        ..Drive::default()
    };
    drive.source.max_rounds = 2;
    let (near_again, far_again) = pipe.ends();
    let report = migrate(&mut from, &mut to, drive, near_again, far_again);
    let sent = match side {
        Side::Source => near.sent(),
        Side::Destination => far.sent(),
    };
    (from, to, report, sent)
}

#[test]
fn a_cut_at_any_byte_leaves_exactly_one_guest_or_doubt() {
    for side in [Side::Source, Side::Destination] {
        let (_, _, report, total) = migrate_with(side, None);
        assert!(report.succeeded());
        let mut in_doubt = 0;
        for (lose_in_flight, stride) in [(false, 1), (true, 5)] {
            for after in (0..total).step_by(stride) {
                let fault = Fault::Cut {
                    after,
                    lose_in_flight,
                };
                let (from, to, report, _) = migrate_with(side, Some(fault));
                assert_exactly_one_or_in_doubt(&from, &to, &report);
                assert!(!report.succeeded() || lose_in_flight, "{side:?} {after}");
                let doubt = matches!(report.source, source::Outcome::InDoubt(_));
                in_doubt += u32::from(doubt);
                // The source's last record is Go: no cut before its end is in doubt.
                assert!(!doubt || side == Side::Destination, "{after}");
            }
        }
        assert_eq!(in_doubt > 0, side == Side::Destination);
    }
}

#[test]
fn a_link_that_loses_a_sent_go_leaves_both_guests_stopped() {
    let (_, _, _, total) = migrate_with(Side::Source, None);
    let fault = Fault::Cut {
        after: total,
        lose_in_flight: true,
    };
    let (from, to, report, _) = migrate_with(Side::Source, Some(fault));
    assert!(matches!(report.source, source::Outcome::InDoubt(_)));
    assert!(!from.running && !to.running && to.discarded);
}

#[test]
fn a_flip_in_any_byte_never_starts_a_wrong_guest() {
    for side in [Side::Source, Side::Destination] {
        let (_, _, _, total) = migrate_with(side, None);
        for byte in 0..total {
            let fault = Fault::Flip {
                byte,
                bit: (byte % 8) as u32,
            };
            let (from, to, report, _) = migrate_with(side, Some(fault));
            assert_exactly_one_or_in_doubt(&from, &to, &report);
            assert!(!report.succeeded(), "{side:?} {byte}");
            if side == Side::Source {
                assert!(from.running, "{byte}: {:?}", report.source);
                assert!(matches!(
                    report.destination,
                    destination::Outcome::Failed(_)
                ));
            }
        }
    }
}
