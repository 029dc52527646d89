//! The tracker of pins against a list of who holds what, and what would be noticed.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hv_core::Gfn;
use iommu::pins::{CannotPin, Epoch, Holder, LastWritable, PinTracker};
use iommu::space::Access;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRng, TestRunner};

const PAGES: u64 = 3;
const WRITER: Holder = Holder::Mapping(Access::ReadWrite);
const READER: Holder = Holder::Mapping(Access::Read);
/// Each kind of holder, and how many of it a page may have.
const KINDS: [(Holder, usize); 4] = [
    (WRITER, 4095),
    (READER, 2047),
    (Holder::EmulatedDevice, 31),
    (Holder::Copy, 7),
];

/// One promise of the tracker's, broken in between it and who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutation {
    None,
    /// A pin that cannot be counted is let pass.
    OverflowPasses,
    /// The last one that can be counted is refused too.
    OverflowTooSoon,
    /// A page that only a copy holds may move.
    CopiesDoNotHold,
    /// Epochs do not begin.
    EpochsStandStill,
    /// When the last device lost the right to write is forgotten.
    LastWritableForgotten,
    /// Mappings that only read count as if they wrote.
    ReadersWrite,
}

struct Tracker<'m> {
    pins: PinTracker<'m>,
    mutation: Mutation,
}

impl Tracker<'_> {
    fn pin(&mut self, gfn: Gfn, holder: Holder) -> Result<(), CannotPin> {
        if self.mutation == Mutation::OverflowTooSoon {
            self.pins.pin(gfn, 1, holder)?;
            let full = self.pins.check(gfn, 1, holder);
            if full.is_err() {
                self.pins.unpin(gfn, 1, holder);
            }
            return full;
        }
        match self.pins.pin(gfn, 1, holder) {
            Err(_) if self.mutation == Mutation::OverflowPasses => Ok(()),
            pinned => pinned,
        }
    }

    fn is_pinned(&self, gfn: Gfn) -> bool {
        let holders = self.pins.holders(gfn);
        let others = holders.writable + holders.read_only + holders.emulated_devices;
        match self.mutation {
            Mutation::CopiesDoNotHold => others > 0,
            _ => self.pins.is_pinned(gfn),
        }
    }

    fn last_writable(&self, gfn: Gfn) -> LastWritable {
        match (self.mutation, self.pins.last_writable(gfn)) {
            (Mutation::LastWritableForgotten, LastWritable::In(_)) => LastWritable::Never,
            (Mutation::ReadersWrite, _) if self.pins.holders(gfn).read_only > 0 => {
                LastWritable::Now
            }
            (_, told) => told,
        }
    }

    fn begin_epoch(&mut self) {
        if self.mutation != Mutation::EpochsStandStill {
            self.pins.begin_epoch();
        }
    }
}

/// What is known of one page, in lists.
#[derive(Clone, Default)]
struct Page {
    holders: Vec<Holder>,
    last_writable: Option<u64>,
}

impl Page {
    fn count(&self, kind: Holder) -> usize {
        self.holders.iter().filter(|held| **held == kind).count()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many more holders of a kind.
    Pin(u64, usize, usize),
    /// So many less, as far as there are.
    Unpin(u64, usize, usize),
    BeginEpoch,
}

fn step() -> impl Strategy<Value = Step> {
    let many = || prop_oneof![4 => 1..4usize, 1 => Just(40usize), 1 => Just(2500)];
    prop_oneof![
        5 => (0..PAGES, 0..KINDS.len(), many()).prop_map(|(page, kind, n)| Step::Pin(page, kind, n)),
        5 => (0..PAGES, 0..KINDS.len(), many()).prop_map(|(page, kind, n)| Step::Unpin(page, kind, n)),
        2 => Just(Step::BeginEpoch),
    ]
}

fn run(mutation: Mutation, steps: &[Step]) -> Result<(), String> {
    let mut memory = [0; PAGES as usize];
    let pins = PinTracker::new(&mut memory);
    let mut tracker = Tracker { pins, mutation };
    let mut pages = vec![Page::default(); PAGES as usize];
    let mut epoch = u64::from(Epoch::FIRST.number());
    for step in steps {
        match *step {
            Step::BeginEpoch => {
                tracker.begin_epoch();
                epoch += 1;
            }
            Step::Pin(page, kind, count) => {
                let (holder, limit) = KINDS[kind];
                for _ in 0..count {
                    let page_held = &mut pages[page as usize];
                    let fits = page_held.count(holder) < limit;
                    let pinned = tracker.pin(Gfn::new(page), holder).is_ok();
                    check(pinned == fits, "a counter's limit")?;
                    if fits {
                        page_held.holders.push(holder);
                    } else {
                        break;
                    }
                }
            }
            Step::Unpin(page, kind, count) => {
                let (holder, _) = KINDS[kind];
                let known = &mut pages[page as usize];
                for _ in 0..count {
                    let Some(at) = known.holders.iter().position(|held| *held == holder) else {
                        break;
                    };
                    known.holders.swap_remove(at);
                    tracker.pins.unpin(Gfn::new(page), 1, holder);
                    if holder == WRITER && known.count(WRITER) == 0 {
                        known.last_writable = Some(epoch);
                    }
                }
            }
        }
        for (number, page) in (0..).zip(&pages) {
            let gfn = Gfn::new(number);
            let is_held = !page.holders.is_empty();
            check(tracker.is_pinned(gfn) == is_held, "may it move")?;
            let told = match tracker.last_writable(gfn) {
                LastWritable::Never => None,
                LastWritable::In(epoch) => Some(u64::from(epoch.number())),
                LastWritable::Now => Some(u64::MAX),
            };
            let known = match page.count(WRITER) {
                0 => page.last_writable,
                _ => Some(u64::MAX),
            };
            check(told == known, "when was it writable")?;
        }
    }
    Ok(())
}

fn check(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

fn search(mutation: Mutation) -> Result<(), TestError<Vec<Step>>> {
    let config = Config {
        cases: 200,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner.run(&prop::collection::vec(step(), 1..30), |steps| {
        run(mutation, &steps).map_err(TestCaseError::fail)
    })
}

#[test]
fn the_tracker_says_what_a_list_of_holders_says() {
    search(Mutation::None).unwrap();
}

fn assert_noticed(mutation: Mutation, as_what: &str) {
    match search(mutation) {
        Err(TestError::Fail(reason, _)) => assert_eq!(reason.message(), as_what, "{mutation:?}"),
        other => panic!("{mutation:?} is not noticed: {other:?}"),
    }
}

#[test]
fn a_counter_that_overflows_without_an_error_is_noticed() {
    assert_noticed(Mutation::OverflowPasses, "a counter's limit");
    assert_noticed(Mutation::OverflowTooSoon, "a counter's limit");
}

#[test]
fn a_page_that_moves_under_a_copy_is_noticed() {
    assert_noticed(Mutation::CopiesDoNotHold, "may it move");
}

#[test]
fn a_wrong_answer_when_a_page_was_last_writable_is_noticed() {
    for mutation in [
        Mutation::EpochsStandStill,
        Mutation::LastWritableForgotten,
        Mutation::ReadersWrite,
    ] {
        assert_noticed(mutation, "when was it writable");
    }
}
