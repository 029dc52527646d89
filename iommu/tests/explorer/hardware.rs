//! A remapping unit with dirty bits and the devices behind it, in steps as small
//! as what others can see of them.
//!
//! A request is translated by the cache, or by a walk that reads one entry a step
//! and may start below a cached pointer to the leaf table. A walk that ends at a
//! leaf sets its accessed and dirty bits in a step of its own, in the manner of the
//! [`Variant`]. A write that was let through lands in yet another step.

use hv_core::memory::Frame;
use hv_core::{Hpa, PAGE_SIZE};
use iommu::dirty_mode::{DirtyHardware, DirtyUpdate};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// How the unit conducts itself where specifications leave it open, or wrongly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Variant {
    /// The update is atomic and only if the whole entry is still the one walked.
    A,
    /// Like A, also for an entry from the cache that is not dirty yet.
    AInPlace,
    /// An atomic OR without looking again.
    B,
    /// Like B, also for an entry from the cache.
    BInPlace,
    /// No update if the entry is not present any more; the access goes on.
    C,
    /// The same if it lost the right to write.
    CWrite,
    /// The update is buffered, and drained by the wait.
    E,
    /// Not even by the wait.
    EUndrained,
    /// A plain store of the entry that was read, with the dirty bit.
    F,
    /// The same with the accessed bit, also by reads.
    FAccessed,
    /// A cached entry that is not dirty lets writes pass.
    G,
    /// QEMU's first-stage unit: like `FAccessed`, like `G`, and nothing is set in an
    /// entry that has either bit.
    Emulated,
    /// The wait does not wait for writes let through.
    N,
    /// The wait knows nothing of walks.
    M,
}

impl Variant {
    pub const ALL: [Self; 14] = [
        Self::A,
        Self::AInPlace,
        Self::B,
        Self::BInPlace,
        Self::C,
        Self::CWrite,
        Self::E,
        Self::EUndrained,
        Self::F,
        Self::FAccessed,
        Self::G,
        Self::Emulated,
        Self::N,
        Self::M,
    ];

    /// What a driver that knows its unit would say of it.
    pub fn facts(self) -> DirtyHardware {
        DirtyHardware {
            update: match self {
                Self::B | Self::BInPlace | Self::E | Self::EUndrained => DirtyUpdate::Atomic,
                Self::C | Self::CWrite => DirtyUpdate::Skipped,
                Self::F | Self::FAccessed | Self::Emulated => DirtyUpdate::PlainStore,
                _ => DirtyUpdate::Rechecked,
            },
            coherent: true,
            drains_updates: self != Self::EUndrained,
            read_hides_write: matches!(self, Self::G | Self::Emulated),
            spares_marked: self == Self::Emulated,
        }
    }
}

/// A table entry's place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    table: Hpa,
    index: usize,
}

/// A leaf as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Found {
    place: Place,
    entry: u64,
    /// How often its page had been unmapped then.
    generation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Waiting,
    Walking { table: Hpa, level: u8 },
    Found(Found),
    Posted(Found),
    Done,
}

/// One DMA of one page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    pub page: u64,
    pub write: bool,
    phase: Phase,
    /// Under way when the last invalidation came: it caches nothing.
    straddles: bool,
}

impl Request {
    pub const fn new(page: u64, write: bool) -> Self {
        Self {
            page,
            write,
            phase: Phase::Waiting,
            straddles: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }
}

/// What a step did that others must know.
pub enum Effect {
    Nothing,
    /// A device touched a page under a mapping of that generation.
    Access {
        page: u64,
        write: bool,
        generation: u32,
    },
    /// A walk read an entry of a table.
    Walk(Hpa),
}

/// Bits of second-stage entries.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[derive(Clone, Hash)]
pub struct Hardware {
    variant: Variant,
    root: Hpa,
    pub requests: Vec<Request>,
    translations: BTreeMap<u64, Found>,
    leaf_tables: BTreeMap<u64, Hpa>,
    /// Bits not yet set, and whether the wait under way is for them.
    buffered: Vec<(Place, u64, bool)>,
    /// Keeps pointers to tables when it invalidates.
    pub keeps_tables: bool,
}

/// One thing the hardware can do next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Request(usize),
    SetBuffered,
}

impl Hardware {
    pub fn new(variant: Variant, root: Hpa) -> Self {
        Self {
            variant,
            root,
            requests: Vec::new(),
            translations: BTreeMap::new(),
            leaf_tables: BTreeMap::new(),
            buffered: Vec::new(),
            keeps_tables: false,
        }
    }

    pub fn steps(&self) -> Vec<Step> {
        let requests = self.requests.iter().enumerate();
        let mut steps: Vec<_> = requests
            .filter(|(_, request)| !request.is_done())
            .map(|(index, _)| Step::Request(index))
            .collect();
        if !self.buffered.is_empty() {
            steps.push(Step::SetBuffered);
        }
        steps
    }

    /// What is cached goes; what is under way will cache nothing.
    pub fn invalidate(&mut self) {
        self.translations.clear();
        if !self.keeps_tables {
            self.leaf_tables.clear();
        }
        for request in &mut self.requests {
            let started = !matches!(request.phase, Phase::Waiting | Phase::Done);
            let walks = !matches!(request.phase, Phase::Posted(_));
            request.straddles = started && !(walks && self.variant == Variant::M);
        }
        for (_, _, waited) in &mut self.buffered {
            *waited = true;
        }
    }

    /// Whether the wait for the last invalidation is over.
    pub fn is_drained(&self) -> bool {
        let requests_are = self.requests.iter().all(|request| {
            let posted = matches!(request.phase, Phase::Posted(_));
            request.is_done() || !request.straddles || posted && self.variant == Variant::N
        });
        let bits_are = self.variant == Variant::EUndrained
            || self.buffered.iter().all(|(_, _, waited)| !waited);
        requests_are && bits_are
    }

    /// Does `step` on tables reached by `frame`.
    pub fn run<'m>(
        &mut self,
        step: Step,
        frame: &dyn Fn(Hpa) -> &'m Frame,
        generation: &dyn Fn(u64) -> u32,
    ) -> Effect {
        let index = match step {
            Step::SetBuffered => {
                let (place, bits, _) = self.buffered.remove(0);
                frame(place.table).words()[place.index].fetch_or(bits, Ordering::SeqCst);
                return Effect::Nothing;
            }
            Step::Request(index) => index,
        };
        let request = self.requests[index];
        match request.phase {
            Phase::Waiting => self.look_up(index, frame),
            Phase::Walking { table, level } => self.walk(index, table, level, frame, generation),
            Phase::Found(found) => self.update(index, found, frame),
            Phase::Posted(found) => {
                self.requests[index].phase = Phase::Done;
                Effect::Access {
                    page: request.page,
                    write: true,
                    generation: found.generation,
                }
            }
            Phase::Done => Effect::Nothing,
        }
    }

    fn look_up<'m>(&mut self, index: usize, frame: &dyn Fn(Hpa) -> &'m Frame) -> Effect {
        let request = self.requests[index];
        let Some(hit) = self.translations.get(&request.page).copied() else {
            self.start_walk(index);
            return Effect::Nothing;
        };
        let in_place = matches!(self.variant, Variant::AInPlace | Variant::BInPlace);
        if !request.write {
            return self.access_by_read(index, hit);
        }
        let lets_pass = matches!(self.variant, Variant::G | Variant::Emulated);
        if hit.entry & WRITE != 0 && (hit.entry & DIRTY != 0 || lets_pass) {
            self.requests[index].phase = Phase::Posted(hit);
            Effect::Nothing
        } else if hit.entry & WRITE != 0 && in_place {
            self.update(index, hit, frame)
        } else {
            self.start_walk(index);
            Effect::Nothing
        }
    }

    fn start_walk(&mut self, index: usize) {
        let region = self.requests[index].page >> 9;
        self.requests[index].phase = match self.leaf_tables.get(&region) {
            Some(table) => Phase::Walking {
                table: *table,
                level: 1,
            },
            None => Phase::Walking {
                table: self.root,
                level: 2,
            },
        };
    }

    fn walk<'m>(
        &mut self,
        index: usize,
        table: Hpa,
        level: u8,
        frame: &dyn Fn(Hpa) -> &'m Frame,
        generation: &dyn Fn(u64) -> u32,
    ) -> Effect {
        let request = self.requests[index];
        let slot = (request.page >> (9 * u32::from(level - 1))) as usize & 511;
        let entry = frame(table).words()[slot].load(Ordering::SeqCst);
        let right = if request.write { WRITE } else { READ };
        let phase = &mut self.requests[index].phase;
        if entry & right == 0 {
            *phase = Phase::Done;
        } else if level == 1 || entry & LARGE != 0 {
            *phase = Phase::Found(Found {
                place: Place { table, index: slot },
                entry,
                generation: generation(request.page),
            });
        } else {
            let table = Hpa::new(entry & ADDRESS);
            let level = level - 1;
            *phase = Phase::Walking { table, level };
            if !request.straddles {
                self.leaf_tables.insert(request.page >> 9, table);
            }
        }
        Effect::Walk(table)
    }

    /// Sets the bits that are missing in the leaf, and lets the access go on.
    fn update<'m>(
        &mut self,
        index: usize,
        found: Found,
        frame: &dyn Fn(Hpa) -> &'m Frame,
    ) -> Effect {
        let request = self.requests[index];
        let wanted = ACCESSED | if request.write { DIRTY } else { 0 };
        let missing = wanted & !found.entry;
        let slot = &frame(found.place.table).words()[found.place.index];
        if missing != 0 {
            let now = slot.load(Ordering::SeqCst);
            match self.variant {
                Variant::A | Variant::AInPlace | Variant::G | Variant::N | Variant::M => {
                    if now != found.entry {
                        self.start_walk(index);
                        return Effect::Nothing;
                    }
                    slot.store(now | missing, Ordering::SeqCst);
                }
                Variant::B | Variant::BInPlace => slot.store(now | missing, Ordering::SeqCst),
                Variant::C if now & (READ | WRITE) == 0 => {}
                Variant::CWrite if now & WRITE == 0 => {}
                Variant::C | Variant::CWrite => slot.store(now | missing, Ordering::SeqCst),
                Variant::E | Variant::EUndrained => {
                    self.buffered
                        .push((found.place, missing, request.straddles));
                }
                Variant::F if !request.write => slot.store(now | missing, Ordering::SeqCst),
                Variant::Emulated if found.entry & wanted != 0 => {}
                Variant::F | Variant::FAccessed | Variant::Emulated => {
                    slot.store(found.entry | missing, Ordering::SeqCst);
                }
            }
        }
        let entry = found.entry | missing;
        let found = Found { entry, ..found };
        if !request.straddles {
            self.translations.insert(request.page, found);
        }
        if request.write {
            self.requests[index].phase = Phase::Posted(found);
            Effect::Nothing
        } else {
            self.access_by_read(index, found)
        }
    }

    fn access_by_read(&mut self, index: usize, found: Found) -> Effect {
        self.requests[index].phase = Phase::Done;
        Effect::Access {
            page: self.requests[index].page,
            write: false,
            generation: found.generation,
        }
    }
}

/// The physical page number a leaf of the test's mappings points to.
pub const fn frame_of(page: u64, base: Hpa) -> Hpa {
    Hpa::new(base.raw() + page * PAGE_SIZE)
}
