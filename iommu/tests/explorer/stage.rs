//! Where the layer's real code meets the model of the hardware.
//!
//! The layer reaches tables through [`PhysMemory`], understands them through
//! [`EntryFormat`], and the unit through [`HostUnit`]. All three are ours here: at
//! each table looked at, entry understood and invalidation, and before each that
//! follows a change, the [`Search`] says what the hardware does before the layer
//! goes on. Software is sequentially consistent; what it knows is how far it is and
//! what it read.

use super::hardware::{Effect, Hardware, Request, Step, frame_of};
use super::layout::Layout;
use super::mutation::Mutation;
use super::search::{Search, hash};
use super::variant::Variant;
use hv_core::dirty::DirtyLog;
use hv_core::memory::{Frame, PhysMemory};
use hv_core::testing::Arena;
use hv_core::{Gfn, Hpa};
use iommu::dirty_mode::DirtyHardware;
use iommu::tables::{AnyFormat, Entry, EntryFormat, Leaf};
use iommu::unit::{DomainId, Fault, HostUnit, Scope, SourceId, UnitError};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

/// Guest frames that exist: the devices use no others.
pub const GUEST_FRAMES: u64 = 4;
pub const TABLE_FRAMES: u64 = 3;
pub const GUEST: Hpa = Hpa::new(0x10_0000);
pub const TABLES: Hpa = frame_of(GUEST_FRAMES, GUEST);
/// How many words of a frame a state is told apart by; no others change.
const WORDS: usize = GUEST_FRAMES as usize;

/// A run found something that must not be.
pub struct Violation(pub &'static str);

pub struct Stage<'m> {
    arena: Arena,
    search: RefCell<&'m mut Search>,
    variant: Variant,
    pub hardware: RefCell<Hardware>,
    pub log: &'m DirtyLog<'m>,
    log_words: &'m [AtomicU64],
    pub mutation: Mutation,
    /// What the driver says of its unit.
    facts: DirtyHardware,
    format: AnyFormat,
    /// Whether the hardware runs.
    running: Cell<bool>,
    /// How far software is, and a digest of what it read.
    position: Cell<u64>,
    knowledge: Cell<u128>,
    /// Memory at the last scheduling point.
    before: Cell<u64>,
    /// Whether an unmap is under way.
    pub in_call: Cell<bool>,
    /// Whether tracking is being started.
    pub starting: Cell<bool>,
    pub deferred: Cell<bool>,
    generations: [Cell<u32>; GUEST_FRAMES as usize],
    sent: [Cell<u64>; GUEST_FRAMES as usize],
    writes: Cell<u64>,
}

impl<'m> Stage<'m> {
    pub fn new(
        search: &'m mut Search,
        variant: Variant,
        facts: DirtyHardware,
        format: AnyFormat,
        mutation: Mutation,
        log: &'m DirtyLog<'m>,
        log_words: &'m [AtomicU64],
    ) -> Self {
        let mut hardware = Hardware::new(variant, Layout::of(format), TABLES);
        hardware.keeps_tables = mutation == Mutation::LeavesOnly;
        Self {
            arena: Arena::new(GUEST, (GUEST_FRAMES + TABLE_FRAMES) as usize),
            search: RefCell::new(search),
            variant,
            hardware: RefCell::new(hardware),
            log,
            log_words,
            mutation,
            facts,
            format,
            running: Cell::new(false),
            position: Cell::new(0),
            knowledge: Cell::new(0),
            before: Cell::new(0),
            in_call: Cell::new(false),
            starting: Cell::new(false),
            deferred: Cell::new(false),
            generations: Default::default(),
            sent: Default::default(),
            writes: Cell::new(0),
        }
    }

    /// From now on the hardware runs beside the software.
    pub fn start(&self, requests: &[Request]) {
        self.hardware.borrow_mut().requests = requests.to_vec();
        self.running.set(true);
    }

    /// Software goes on after the hardware did what it may do here.
    pub fn pause(&self) {
        if self.running.get() {
            self.schedule(&|| true);
        }
    }

    /// Lets hardware run until `is_over`, and then any time longer.
    fn schedule(&self, is_over: &dyn Fn() -> bool) {
        loop {
            let mut steps = self.hardware.borrow().steps();
            let may_send = !self.log.is_clean();
            let over = is_over();
            let options = steps.len() + usize::from(may_send) + usize::from(over);
            if options == 0 {
                break;
            }
            let mut taken = self
                .search
                .borrow_mut()
                .choose(options, || self.state(over));
            if over {
                if taken == 0 {
                    break;
                }
                taken -= 1;
            }
            if taken == steps.len() {
                self.send();
            } else {
                self.step(steps.swap_remove(taken));
            }
        }
        self.before.set(self.fingerprint());
    }

    /// Lets hardware run until it has nothing left to do.
    pub fn settle(&self) {
        self.schedule(&|| false);
        self.running.set(false);
        self.send();
    }

    fn step(&self, step: Step) {
        let frame = |hpa| self.arena.frame(hpa).expect("a walk beyond memory");
        let generation = |page: u64| self.generations[(page % 512) as usize].get();
        let effect = self.hardware.borrow_mut().run(step, &frame, &generation);
        match effect {
            Effect::Nothing => {}
            Effect::Walk(table) => {
                if !self.in_call.get() && !self.is_linked(table) {
                    violate("a walk in a freed table");
                }
            }
            Effect::Access {
                page,
                write,
                generation: of,
            } => {
                if of != generation(page) {
                    violate("an access after the unmap returned");
                }
                if write {
                    self.writes.set(self.writes.get() + 1);
                    let hpa = frame_of(page % 512, GUEST);
                    frame(hpa).words()[0].store(self.writes.get(), Ordering::SeqCst);
                }
            }
        }
    }

    /// Migration takes what the log has, then reads and sends it.
    pub fn send(&self) {
        let mut from = Gfn::new(0);
        while let Some(batch) = self.log.drain(from) {
            from = batch.resume_at();
            for gfn in batch {
                self.sent[gfn.number() as usize].set(self.content(gfn.number()));
            }
        }
    }

    /// The page was unmapped: nothing may be lost of it, and nothing come later.
    pub fn unmapped(&self, page: u64) {
        let index = (page % 512) as usize;
        let generation = &self.generations[index];
        generation.set(generation.get() + 1);
        let marked = self.log.is_marked(Gfn::new(index as u64));
        if !marked && self.sent[index].get() != self.content(index as u64) {
            violate("a write that no report covers");
        }
    }

    /// Every write of every device has been sent.
    pub fn check_nothing_lost(&self) {
        let lost =
            (0..GUEST_FRAMES).any(|page| self.sent[page as usize].get() != self.content(page));
        if lost {
            violate("a write that no report covers");
        }
    }

    /// Invalidates and waits, now.
    pub fn invalidate_and_wait(&self) {
        let mutation = match self.mutation {
            Mutation::StartKeepsCaches if self.starting.get() => Mutation::NoInvalidation,
            Mutation::StartDoesNotWait if self.starting.get() => Mutation::NoDrain,
            other => other,
        };
        let devices = || self.hardware.borrow_mut().invalidate_devices();
        match mutation {
            Mutation::NoInvalidation => {}
            Mutation::DevicesKeepTheirs => self.hardware.borrow_mut().invalidate(),
            Mutation::DevicesFirst => {
                devices();
                self.pause();
                self.hardware.borrow_mut().invalidate();
            }
            _ => {
                self.hardware.borrow_mut().invalidate();
                if self.variant.has_device_tlbs() {
                    self.pause();
                }
                devices();
            }
        }
        if self.running.get() && mutation != Mutation::NoDrain {
            self.schedule(&|| self.hardware.borrow().is_drained());
        } else {
            self.pause();
        }
    }

    fn content(&self, page: u64) -> u64 {
        let frame = self
            .arena
            .frame(frame_of(page, GUEST))
            .expect("a guest page");
        frame.words()[0].load(Ordering::SeqCst)
    }

    fn is_linked(&self, table: Hpa) -> bool {
        let root = self.arena.frame(TABLES).expect("the root");
        table == TABLES
            || root.words().iter().any(|slot| {
                let entry = slot.load(Ordering::SeqCst);
                self.format.is_attached(entry) && Layout::address(entry) == table
            })
    }

    /// Everything in memory that ever changes.
    fn words(&self) -> impl Iterator<Item = u64> {
        let frames = (0..GUEST_FRAMES + TABLE_FRAMES)
            .filter_map(|index| self.arena.frame(frame_of(index, GUEST)))
            .flat_map(|frame| &frame.words()[..WORDS]);
        frames
            .chain(self.log_words)
            .map(|word| word.load(Ordering::Relaxed))
    }

    /// Quick, since it is asked before each look at a table.
    fn fingerprint(&self) -> u64 {
        self.words().fold(0, |digest: u64, word| {
            (digest.rotate_left(7) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }

    fn state(&self, over: bool) -> u128 {
        let cells = |cells: &[Cell<u64>]| cells.iter().map(Cell::get).collect::<Vec<_>>();
        hash((
            (self.position.get(), self.knowledge.get()),
            self.words().collect::<Vec<_>>(),
            &*self.hardware.borrow(),
            self.generations.iter().map(Cell::get).collect::<Vec<_>>(),
            (cells(&self.sent), self.in_call.get(), over),
            self.deferred.get(),
        ))
    }

    fn looked(&self, entry: u64) {
        self.position.set(self.position.get() + 1);
        if entry != 0 && self.running.get() {
            self.knowledge.set(hash((self.knowledge.get(), entry)));
            self.pause();
        }
    }
}

fn violate(what: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(Violation(what)))
}

impl PhysMemory for Stage<'_> {
    fn frame(&self, hpa: Hpa) -> Option<&Frame> {
        self.position.set(self.position.get() + 1);
        if self.running.get() && self.before.get() != self.fingerprint() {
            self.pause();
        }
        self.arena.frame(hpa)
    }
}

/// The real format, watched.
#[derive(Clone, Copy)]
pub struct Watched<'m>(pub &'m Stage<'m>);

impl EntryFormat for Watched<'_> {
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        self.0.format.leaf(level, leaf)
    }

    fn table(self, level: u8, table: Hpa, live: u64) -> u64 {
        self.0.format.table(level, table, live)
    }

    fn decode(self, level: u8, entry: u64) -> Entry {
        self.0.looked(entry);
        self.0.format.decode(level, entry)
    }

    fn boundaries(self) -> [u64; 2] {
        self.0.format.boundaries()
    }

    fn live_bits(self, live: u64) -> u64 {
        self.0.format.live_bits(live)
    }

    fn live_wraps(self) -> u64 {
        self.0.format.live_wraps()
    }

    fn is_attached(self, entry: u64) -> bool {
        self.0.format.is_attached(entry)
    }

    fn revoked(self) -> u64 {
        self.0.format.revoked()
    }

    fn accessed(self) -> u64 {
        self.0.format.accessed()
    }

    fn dirty(self) -> u64 {
        self.0.format.dirty()
    }

    fn harvested(self) -> u64 {
        self.0.format.harvested()
    }
}

/// The driver of the model.
pub struct Driver<'m>(pub &'m Stage<'m>);

impl HostUnit for Driver<'_> {
    fn levels(&self) -> u8 {
        2
    }

    fn has_large_leaves(&self) -> bool {
        false
    }

    fn caches_absent(&self) -> bool {
        false
    }

    fn dirty_hardware(&self) -> DirtyHardware {
        self.0.facts
    }

    fn attach(&mut self, _: SourceId, _: DomainId, root: Hpa) -> Result<(), UnitError> {
        assert_eq!(root, TABLES, "the model knows one domain");
        Ok(())
    }

    fn block(&mut self, _: SourceId) -> Result<(), UnitError> {
        Ok(())
    }

    fn invalidate(&mut self, _: DomainId, _: Scope) -> Result<(), UnitError> {
        match self.0.mutation {
            Mutation::DrainFirst => {}
            Mutation::DrainLast | Mutation::DrainAfterReturn => self.0.deferred.set(true),
            _ => self.0.invalidate_and_wait(),
        }
        Ok(())
    }

    fn take_fault(&mut self) -> Option<Fault> {
        None
    }
}
