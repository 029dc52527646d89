//! Random sequences of what guests, devices and migration do, on a model of the
//! hardware: no device write is lost, and none comes late.
//!
//! `MODEL_CASES=100 cargo test --release -p iommu --test model` tries a hundred times
//! as many, some millions of operations.

// A bad setting ends the test.
#![allow(clippy::expect_used)]

mod common;

use common::format::{FORMATS, Format};
use common::unit::Fault;
use common::world::{Config, LARGE, Violation, World, device, with_world};
use iommu::space::{Access, Attachment};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestError, TestRunner};
use std::cell::Cell;

#[derive(Clone, Debug)]
enum Step {
    Map {
        domain: usize,
        page: u64,
        pages: u64,
        gfn: u64,
        access: Access,
    },
    Unmap {
        domain: usize,
        page: u64,
        pages: u64,
        bitmap: bool,
    },
    UnmapRange {
        domain: usize,
        page: u64,
        pages: u64,
    },
    Replace {
        domain: usize,
        page: u64,
        wanted: Vec<Option<(u64, Access)>>,
    },
    Attach {
        device: u16,
        to: usize,
    },
    Write {
        device: u16,
        page: u64,
    },
    Read {
        device: u16,
        page: u64,
    },
    Land,
    Send,
    Harvest,
}

/// Pages on both sides of a leaf table's edges.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0..6u64, 3 => 508..516u64, 1 => 1022..1026u64]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        1 => Just(Access::Read),
        1 => Just(Access::Write),
        3 => Just(Access::ReadWrite)
    ]
}

fn gfn() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..8u64, 1 => 30..42u64]
}

fn step() -> impl Strategy<Value = Step> {
    let domain = || 0..2usize;
    let device = || 1..3u16;
    prop_oneof![
        4 => (domain(), page(), 1..6u64, gfn(), access()).prop_map(
            |(domain, page, pages, gfn, access)| Step::Map { domain, page, pages, gfn, access }),
        1 => (domain(), prop_oneof![Just(512u64), Just(1024), Just(511)], 0..3u64, access()).prop_map(
            |(domain, page, more, access)| {
                Step::Map { domain, page, pages: 512, gfn: LARGE.start + more, access }
            }),
        3 => (domain(), page(), 1..8u64, any::<bool>()).prop_map(
            |(domain, page, pages, bitmap)| Step::Unmap { domain, page, pages, bitmap }),
        2 => (domain(), prop_oneof![Just(0u64), Just(512)], 500..2000u64, any::<bool>()).prop_map(
            |(domain, page, pages, bitmap)| Step::Unmap { domain, page, pages, bitmap }),
        1 => (domain(), page(), prop_oneof![1..8u64, Just(2000)]).prop_map(
            |(domain, page, pages)| Step::UnmapRange { domain, page, pages }),
        4 => (domain(), page(), prop::collection::vec(prop::option::of((gfn(), access())), 0..6))
            .prop_map(|(domain, page, wanted)| Step::Replace { domain, page, wanted }),
        1 => (device(), 0..4usize).prop_map(|(device, to)| Step::Attach { device, to }),
        10 => (device(), page()).prop_map(|(device, page)| Step::Write { device, page }),
        3 => (device(), page()).prop_map(|(device, page)| Step::Read { device, page }),
        1 => Just(Step::Land),
        2 => Just(Step::Send),
        1 => Just(Step::Harvest),
    ]
}

fn run(world: &mut World<'_>, steps: &[Step]) -> Result<(), Violation> {
    let domains = world.domains.clone();
    for step in steps.iter().cloned() {
        match step {
            Step::Map {
                domain,
                page,
                pages,
                gfn,
                access,
            } => world.map(domains[domain], page, pages, gfn, access)?,
            Step::Unmap {
                domain,
                page,
                pages,
                bitmap,
            } => world.unmap(domains[domain], page, pages, bitmap)?,
            Step::UnmapRange {
                domain,
                page,
                pages,
            } => world.unmap_range(domains[domain], page, pages)?,
            Step::Replace {
                domain,
                page,
                wanted,
            } => world.replace(domains[domain], page, &wanted)?,
            Step::Attach { device: number, to } => {
                let to = match to {
                    0 => Attachment::Blocked,
                    1 => Attachment::Identity,
                    index => Attachment::Domain(domains[index - 2]),
                };
                world.attach(device(number), to)?;
            }
            Step::Write {
                device: number,
                page,
            } => world.device_write(device(number), page)?,
            Step::Read {
                device: number,
                page,
            } => world.device_read(device(number), page)?,
            Step::Land => world.hardware.land(),
            Step::Send => world.migration.send_dirty(),
            Step::Harvest => world.harvest()?,
        }
        world.check_landed()?;
        world.check_pins()?;
        world.check_last_writable()?;
    }
    world.switch_over()?;
    world.tear_down()
}

/// Searches for a sequence that goes wrong; the same ones in every run.
fn search(
    cases: u32,
    config: Config,
    spoil: impl Fn(&mut World<'_>),
) -> Result<(), TestError<Vec<Step>>> {
    let more = std::env::var("MODEL_CASES").map_or(1, |times| times.parse().expect("a number"));
    let operations = Cell::new(0);
    let cases = Cases {
        cases: cases * more,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Cases::default()
    };
    let rng = proptest::test_runner::TestRng::deterministic_rng(cases.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(cases, rng);
    let result = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
        operations.set(operations.get() + steps.len() as u64);
        with_world(config, |mut world| {
            spoil(&mut world);
            run(&mut world, &steps).map_err(TestCaseError::fail)
        })
    });
    println!("{} operations", operations.get());
    result
}

#[test]
fn no_device_write_is_lost_or_late() {
    for format in FORMATS {
        for levels in [3, 4] {
            let config = Config {
                format,
                levels,
                ..Config::default()
            };
            search(1000, config, |_| {}).unwrap();
        }
    }
}

#[test]
fn nor_on_a_unit_that_caches_missing_pages() {
    for format in FORMATS {
        let config = Config {
            format,
            caches_absent: true,
            ..Config::default()
        };
        search(500, config, |_| {}).unwrap();
    }
}

/// The model is worth something only if it sees what goes wrong.
fn assert_noticed(as_what: &[&str], spoil: impl Fn(&mut World<'_>)) {
    for format in FORMATS {
        let config = Config {
            format,
            ..Config::default()
        };
        assert_noticed_in(config, as_what, &spoil);
    }
}

#[allow(clippy::panic)]
fn assert_noticed_in(config: Config, as_what: &[&str], spoil: impl Fn(&mut World<'_>)) {
    match search(3000, config, spoil) {
        Err(TestError::Fail(reason, _)) => {
            let noticed = as_what.iter().any(|what| reason.message().contains(what));
            assert!(noticed, "noticed as something else: {reason}");
        }
        other => panic!("not noticed: {other:?}"),
    }
}

#[test]
fn a_unit_that_keeps_translations_is_noticed() {
    for fault in [Fault::KeepsTranslations, Fault::KeepsTablePointers] {
        let astray = ["late or astray", "reaches what it should not", "reads what"];
        assert_noticed(&astray, |world| world.hardware.fault.set(fault));
    }
}

#[test]
fn a_unit_that_does_not_drain_is_noticed() {
    assert_noticed(&["late or astray", "were lost"], |world| {
        world.hardware.fault.set(Fault::DoesNotDrain);
    });
}

#[test]
fn a_report_that_is_dropped_is_noticed_as_a_lost_write() {
    assert_noticed(&["were lost"], |world| world.drops_unmap_reports = true);
}

/// Why an AMD entry loses PR when it is detached: the unit would cache the absence
/// of rights, and deny what is mapped there next.
#[test]
fn a_detached_entry_that_stays_present_is_noticed() {
    let config = Config {
        format: Format {
            keeps_present: true,
            ..FORMATS[1]
        },
        ..Config::default()
    };
    let denied = ["should not, or the reverse"];
    assert_noticed_in(config, &denied, |_| {});
}
