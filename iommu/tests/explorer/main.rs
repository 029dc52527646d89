//! The layer's real code against a model of the hardware, in every interleaving.
//!
//! The invariant: every device write that landed is in a report already made or in
//! this one, and none lands after the unmap returned. It is tried for each conduct
//! of hardware that specifications leave open, once where the layer cuts off a
//! whole leaf table and once where it takes single leaves out, with harvests and
//! without. And each step the layer takes is shown to be needed.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(unreachable_pub)]

mod amd;
mod device_tlb;
mod evidence;
mod hardware;
mod layout;
mod mutation;
mod search;
mod stage;
mod variant;

use hardware::Request;
use hv_core::dirty::{DirtyLog, DirtySource};
use hv_core::memory::{FramePool, GuestMemory, Slot};
use hv_core::{Gfn, Gpa, PAGE_SIZE};
use iommu::dirty_mode::{DirtyHardware, DirtyUpdate};
use iommu::space::{Access, Attachment, DmaSpace};
use iommu::tables::AnyFormat;
use iommu::unit::{DomainId, SourceId};
use iommu::{Iommu, Iova, IovaRange, Parts};
use mutation::Mutation;
use search::{Pruned, Search, next};
use stage::{Driver, GUEST, GUEST_FRAMES, Stage, TABLE_FRAMES, TABLES, Violation, Watched};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicU64;
use variant::Variant;

const DEVICE: SourceId = SourceId::new(8);

type Layer<'m> = Iommu<'m, Stage<'m>, Driver<'m>, Watched<'m>>;

/// What software does. Pages are mapped at the pages of the same number.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Starts tracking, which is then all that is left to do before the first copy.
    Start,
    Harvest,
    /// Unmaps so many pages from page 0 on.
    Unmap(u64),
    /// Maps so many pages from page 0 on.
    Map(u64),
}

/// A single leaf of two, so that its table stays.
const ONE_LEAF: Op = Op::Unmap(1);
/// All that a leaf table spans.
const WHOLE_TABLE: Op = Op::Unmap(512);

/// One case to be explored.
#[derive(Clone)]
struct Case {
    variant: Variant,
    facts: DirtyHardware,
    format: AnyFormat,
    mutation: Mutation,
    mapped: u64,
    ops: Vec<Op>,
    requests: Vec<Request>,
}

const READ: Request = Request::new(0, false);
const WRITE: Request = Request::new(0, true);

/// What a driver says that trusts its unit's dirty bits.
const TRUSTED: DirtyHardware = DirtyHardware {
    update: DirtyUpdate::Rechecked,
    coherent: true,
    drains_updates: true,
    read_hides_write: false,
    spares_marked: false,
};

impl Case {
    fn new(variant: Variant, facts: DirtyHardware, ops: &[Op]) -> Self {
        Self {
            variant,
            facts,
            format: AnyFormat::VtdSecondStageDirty,
            mutation: Mutation::None,
            mapped: 2,
            ops: ops.to_vec(),
            requests: vec![READ, WRITE, WRITE],
        }
    }

    fn mutated(self, mutation: Mutation) -> Self {
        Self { mutation, ..self }
    }

    /// Tries every interleaving; how many states there were, or what went wrong.
    fn explore(&self) -> Result<usize, &'static str> {
        let mut search = Search::exhaustive();
        loop {
            self.run(&mut search)?;
            if !search.advance() {
                return Ok(search.states());
            }
        }
    }

    /// One run, from the start to its end or to a state seen before.
    fn run(&self, search: &mut Search) -> Result<(), &'static str> {
        let run = || {
            with_layer(self, search, |layer, domain, stage| {
                stage.start(&self.requests);
                for op in &self.ops {
                    perform(layer, domain, stage, *op, self.mapped);
                }
                stage.settle();
                // The devices have stopped.
                layer.harvest_stopped().unwrap();
                stage.send();
                stage.check_nothing_lost();
            })
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(()) => Ok(()),
            Err(cause) if cause.is::<Pruned>() => Ok(()),
            Err(cause) => match cause.downcast::<Violation>() {
                Ok(violation) => Err(violation.0),
                Err(cause) => resume_unwind(cause),
            },
        }
    }
}

/// Runs `test` with a layer in which `case.mapped` pages are mapped and tracked.
fn with_layer(
    case: &Case,
    search: &mut Search,
    test: impl FnOnce(&mut Layer<'_>, DomainId, &Stage<'_>),
) {
    let words: [AtomicU64; 2] = Default::default();
    let log = DirtyLog::new(&words, GUEST_FRAMES);
    let stage = Stage::new(
        search,
        case.variant,
        case.facts,
        case.format,
        case.mutation,
        &log,
        &words,
    );
    let mut guest = GuestMemory::new(&stage, &log);
    guest
        .add_slot(Slot {
            gfn: Gfn::new(0),
            hpa: GUEST,
            frames: GUEST_FRAMES,
        })
        .unwrap();
    let mut pins = [0; GUEST_FRAMES as usize];
    let mut layer = Iommu::new(Parts {
        mem: &stage,
        format: Watched(&stage),
        unit: Driver(&stage),
        guest: &guest,
        pool: FramePool::new(TABLES, TABLE_FRAMES),
        pins: &mut pins,
    })
    .unwrap();
    let domain = layer.create_domain().unwrap();
    layer.attach(DEVICE, Attachment::Domain(domain)).unwrap();
    log.start();
    if !matches!(case.ops[..], [Op::Start, ..]) {
        layer.start_tracking().unwrap();
    }
    for page in 0..case.mapped {
        map(&mut layer, domain, page);
    }
    // Nothing was cached yet that a drain could have been put off for.
    stage.deferred.set(false);
    test(&mut layer, domain, &stage);
}

fn map(layer: &mut Layer<'_>, domain: DomainId, page: u64) {
    let range = IovaRange::new(Iova::new(page * PAGE_SIZE), 1).unwrap();
    let gpa = Gpa::new(page * PAGE_SIZE);
    layer.map(domain, range, gpa, Access::ReadWrite).unwrap();
}

fn perform(layer: &mut Layer<'_>, domain: DomainId, stage: &Stage<'_>, op: Op, mapped: u64) {
    if stage.mutation == Mutation::DrainFirst {
        stage.invalidate_and_wait();
    }
    stage.in_call.set(true);
    match op {
        Op::Start => {
            stage.starting.set(true);
            layer.start_tracking().unwrap();
            stage.starting.set(false);
            // The first copy, of everything.
            for gfn in (0..GUEST_FRAMES).map(Gfn::new) {
                stage.log.mark(gfn, DirtySource::Hypervisor);
            }
        }
        Op::Map(pages) => (0..pages).for_each(|page| map(layer, domain, page)),
        Op::Harvest => {
            layer.harvest().unwrap();
        }
        Op::Unmap(pages) => {
            let range = IovaRange::new(Iova::new(0), pages).unwrap();
            layer.unmap(domain, range, None).unwrap();
        }
    }
    if stage.mutation == Mutation::DrainLast && stage.deferred.take() {
        stage.invalidate_and_wait();
    }
    if stage.mutation == Mutation::ReportDropped {
        while stage.log.drain(Gfn::new(0)).is_some() {}
    }
    stage.in_call.set(false);
    if let Op::Unmap(pages) = op {
        for page in 0..pages.min(mapped) {
            stage.unmapped(page);
        }
    }
    stage.pause();
    if stage.deferred.take() {
        stage.invalidate_and_wait();
    }
}

/// Explores an unmap after a harvest. Among its interleavings are those in which
/// the hardware rests during the harvest, so the unmap alone is covered too.
fn verdict(
    variant: Variant,
    facts: DirtyHardware,
    mutation: Mutation,
    unmap: Op,
) -> Result<usize, &'static str> {
    Case::new(variant, facts, &[Op::Harvest, unmap])
        .mutated(mutation)
        .explore()
}

#[test]
fn dirty_bits_are_exactly_as_safe_as_the_protocols_say() {
    use Variant::*;
    for variant in Variant::ALL {
        let single_is_safe = matches!(variant, A | AInPlace | B | BInPlace | E | Ats | AtsAtomic);
        // Cutting a whole table off leaves its leaves as the walk found them.
        let table_is_safe = single_is_safe || matches!(variant, C | CWrite | F | FAccessed);
        for (unmap, is_safe) in [(ONE_LEAF, single_is_safe), (WHOLE_TABLE, table_is_safe)] {
            let found = verdict(variant, TRUSTED, Mutation::None, unmap);
            println!("{variant:?}, {unmap:?}: {found:?}");
            assert_eq!(found.is_ok(), is_safe, "{variant:?} {unmap:?}: {found:?}");
        }
    }
}

#[test]
fn the_mode_decided_on_is_safe_on_every_unit_that_drains() {
    for variant in Variant::ALL {
        // Without a drain no unmap is safe, whatever is reported.
        let is_safe = !matches!(variant, Variant::N | Variant::M);
        for facts in [variant.facts(), DirtyHardware::NONE] {
            for unmap in [ONE_LEAF, WHOLE_TABLE] {
                let found = verdict(variant, facts, Mutation::None, unmap);
                println!("{variant:?}, {facts:?}, {unmap:?}: {found:?}");
                assert_eq!(found.is_ok(), is_safe, "{variant:?} {unmap:?}: {found:?}");
            }
        }
    }
}

#[test]
fn several_pages_go_in_one_unmap_and_some_stay() {
    let requests = [
        vec![Request::new(0, true), Request::new(1, true)],
        vec![Request::new(0, false), Request::new(1, true), WRITE],
    ];
    for requests in requests {
        for variant in [Variant::A, Variant::B, Variant::E] {
            for ops in [
                &[Op::Unmap(2)][..],
                &[ONE_LEAF],
                &[Op::Harvest, Op::Unmap(2)],
                &[Op::Harvest, Op::Harvest],
            ] {
                let requests = requests.clone();
                let case = Case::new(variant, TRUSTED, ops);
                let states = Case { requests, ..case }.explore().unwrap();
                println!("{variant:?} {ops:?}: {states} states");
            }
        }
    }
}

#[test]
fn every_step_of_the_unmap_is_needed() {
    use Mutation::*;
    for mutation in [
        NoInvalidation,
        NoDrain,
        DrainFirst,
        DrainLast,
        DrainAfterReturn,
        ReportDropped,
    ] {
        for unmap in [ONE_LEAF, WHOLE_TABLE] {
            // In B the bit may be set in what was already detached.
            let found = verdict(Variant::B, TRUSTED, mutation, unmap);
            println!("{mutation:?}, {unmap:?}: {found:?}");
            assert!(found.is_err(), "{mutation:?} {unmap:?} is not noticed");
        }
    }
    let found = verdict(Variant::A, TRUSTED, LeavesOnly, WHOLE_TABLE);
    assert_eq!(found, Err("a walk in a freed table"));
}

#[test]
fn every_step_of_the_harvest_is_needed() {
    use Mutation::*;
    for mutation in [
        NoInvalidation,
        NoDrain,
        DrainFirst,
        DrainAfterReturn,
        ReportDropped,
    ] {
        let ops = [Op::Harvest, Op::Harvest];
        for (variant, facts) in [
            (Variant::A, TRUSTED),
            (Variant::Emulated, Variant::Emulated.facts()),
        ] {
            let case = Case::new(variant, facts, &ops).mutated(mutation);
            let found = case.explore();
            println!("{variant:?}, {mutation:?}: {found:?}");
            assert!(found.is_err(), "{variant:?}, {mutation:?} is not noticed");
        }
    }
}

#[test]
fn long_random_schedules_lose_nothing() {
    use Variant::*;
    for variant in [A, BInPlace, E, FAccessed, G, Emulated] {
        for seed in 0..300 {
            random(variant, Mutation::None, seed)
                .unwrap_or_else(|what| panic!("{variant:?}, seed {seed}: {what}"));
        }
    }
}

#[test]
fn long_random_schedules_notice_what_is_left_out() {
    for mutation in [
        Mutation::NoInvalidation,
        Mutation::NoDrain,
        Mutation::DrainFirst,
    ] {
        let noticed = (0..300).any(|seed| random(Variant::B, mutation, seed).is_err());
        assert!(noticed, "{mutation:?}");
    }
}

/// Maps, unmaps and harvests in random order while many requests are under way.
fn random(variant: Variant, mutation: Mutation, seed: u64) -> Result<(), &'static str> {
    let mut dice = seed;
    let mut draw = |below: u64| (next(&mut dice) >> 33) % below;
    let mut mapped = true;
    let ops = (0..40).map(|_| match draw(4) {
        0 if mapped => {
            mapped = false;
            if draw(2) == 0 {
                WHOLE_TABLE
            } else {
                Op::Unmap(2)
            }
        }
        1 | 2 if !mapped => {
            mapped = true;
            Op::Map(2)
        }
        _ => Op::Harvest,
    });
    let case = Case::new(variant, variant.facts(), &ops.collect::<Vec<_>>());
    let requests = (0..60).map(|_| Request::new(draw(2), draw(3) > 0));
    let requests = requests.collect();
    let case = Case { requests, ..case }.mutated(mutation);
    case.run(&mut Search::Random(seed))
}
