//! A migration that cannot end well: the guest runs on where it is.

use scenarios::stays_on_source;
use xtask::run::{Cut, Run};
use xtask::units::Size;

fn cut(scenario: &str, cut: Cut) -> Run {
    Run {
        cut: Some(cut),
        ..Run::new(scenario)
    }
}

#[test]
fn the_guest_runs_on_if_the_link_is_cut_in_pre_copy() {
    let run = cut("cut-in-pre-copy", Cut::InPreCopy);
    let outcome = stays_on_source(&run);
    assert!(outcome.source.rounds.is_empty(), "the cut came too late");
}

#[test]
fn the_guest_runs_on_if_the_link_is_cut_in_switchover() {
    let run = cut("cut-in-switchover", Cut::AtSwitchover);
    let outcome = stays_on_source(&run);
    assert!(outcome.source.switchover);
}

#[test]
fn the_guest_runs_on_if_the_destination_refuses_it() {
    let run = Run {
        destination_memory: Some(Size::mib(32)),
        ..Run::new("destination-refuses")
    };
    let outcome = stays_on_source(&run);
    assert!(outcome.destination.refused.is_some(), "no reason was given");
}

/// The guest asked its CPU what it can do once and for all.
#[test]
fn the_guest_runs_on_if_the_destinations_cpu_can_do_less() {
    let run = Run {
        destination_lacks: Some("sha-ni"),
        ..Run::new("destination-lacks")
    };
    let outcome = stays_on_source(&run);
    assert!(outcome.source.switchover);
    assert!(!outcome.destination.resumed);
}
