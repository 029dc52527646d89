//! A remapping unit with dirty bits and the devices behind it, in steps as small
//! as what others can see of them.
//!
//! A request is translated by the cache, or by a walk that reads one entry a step
//! and may start below a cached pointer to the leaf table. A walk that ends at a
//! leaf sets its accessed and dirty bits in a step of its own, in the manner of the
//! [`Variant`]. A write that was let through lands in yet another step.
//!
//! Devices with a TLB of their own ask for translations before they access, keep what
//! they are told, and what they send by it the unit lets pass as it is.

use super::layout::Layout;
use super::variant::Variant;
use hv_core::memory::Frame;
use hv_core::{Hpa, PAGE_SIZE};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

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
    Walking {
        table: Hpa,
        level: u8,
    },
    Found(Found),
    /// The device is being told.
    Told(Found),
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
    /// Under way when the devices were last told to forget: its device keeps nothing.
    recalled: bool,
}

impl Request {
    pub const fn new(page: u64, write: bool) -> Self {
        Self {
            page,
            write,
            phase: Phase::Waiting,
            straddles: false,
            recalled: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    fn is_under_way(&self) -> bool {
        !matches!(self.phase, Phase::Waiting | Phase::Done)
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

#[derive(Clone, Hash)]
pub struct Hardware {
    variant: Variant,
    layout: Layout,
    root: Hpa,
    pub requests: Vec<Request>,
    translations: BTreeMap<u64, Found>,
    /// What the devices keep.
    device_tlb: BTreeMap<u64, Found>,
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
    pub fn new(variant: Variant, layout: Layout, root: Hpa) -> Self {
        Self {
            variant,
            layout,
            root,
            requests: Vec::new(),
            translations: BTreeMap::new(),
            device_tlb: BTreeMap::new(),
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
            let walks = !matches!(request.phase, Phase::Posted(_));
            request.straddles = request.is_under_way() && !(walks && self.variant == Variant::M);
        }
        for (_, _, waited) in &mut self.buffered {
            *waited = true;
        }
    }

    /// The devices forget what they keep, and will keep nothing of what is under way.
    pub fn invalidate_devices(&mut self) {
        self.device_tlb.clear();
        for request in &mut self.requests {
            request.recalled = request.is_under_way();
        }
    }

    /// Whether the wait for the last invalidation is over.
    pub fn is_drained(&self) -> bool {
        let requests_are = self.requests.iter().all(|request| {
            let posted = matches!(request.phase, Phase::Posted(_));
            let awaited = request.straddles || request.recalled;
            request.is_done() || !awaited || posted && self.variant == Variant::N
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
            Phase::Told(found) => {
                if !request.recalled {
                    self.device_tlb.insert(request.page, found);
                }
                self.send(index, found)
            }
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
        let Layout { write, dirty, .. } = self.layout;
        // A translation that was asked for to read does not permit to write.
        if let Some(kept) = self.device_tlb.get(&request.page).copied()
            && (!request.write || kept.entry & write != 0 && kept.entry & dirty != 0)
        {
            return self.send(index, kept);
        }
        let Some(hit) = self.translations.get(&request.page).copied() else {
            self.start_walk(index);
            return Effect::Nothing;
        };
        let in_place = matches!(self.variant, Variant::AInPlace | Variant::BInPlace);
        if !request.write {
            return self.let_through(index, hit);
        }
        let lets_pass = matches!(self.variant, Variant::G | Variant::Emulated);
        if hit.entry & write != 0 && (hit.entry & dirty != 0 || lets_pass) {
            self.let_through(index, hit)
        } else if hit.entry & write != 0 && in_place {
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
        let phase = &mut self.requests[index].phase;
        if !self.layout.permits(entry, request.write) {
            *phase = Phase::Done;
        } else if self.layout.is_leaf(entry, level) {
            *phase = Phase::Found(Found {
                place: Place { table, index: slot },
                entry,
                generation: generation(request.page),
            });
        } else {
            let table = Layout::address(entry);
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
        let layout = self.layout;
        let wanted = layout.accessed | if request.write { layout.dirty } else { 0 };
        let missing = wanted & !found.entry;
        let slot = &frame(found.place.table).words()[found.place.index];
        if missing != 0 {
            let now = slot.load(Ordering::SeqCst);
            match self.variant {
                Variant::A
                | Variant::AInPlace
                | Variant::G
                | Variant::N
                | Variant::M
                | Variant::Ats => {
                    if now != found.entry {
                        self.start_walk(index);
                        return Effect::Nothing;
                    }
                    slot.store(now | missing, Ordering::SeqCst);
                }
                Variant::B | Variant::BInPlace | Variant::AtsAtomic => {
                    slot.store(now | missing, Ordering::SeqCst);
                }
                Variant::C if !layout.is_present(now) => {}
                Variant::CWrite if !layout.permits(now, true) => {}
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
        self.let_through(index, found)
    }

    /// Translated: the access goes on, or its device is told so that it may.
    fn let_through(&mut self, index: usize, found: Found) -> Effect {
        if self.variant.has_device_tlbs() {
            self.requests[index].phase = Phase::Told(found);
            return Effect::Nothing;
        }
        self.send(index, found)
    }

    /// The access itself: a write is posted, and lands later.
    fn send(&mut self, index: usize, found: Found) -> Effect {
        if self.requests[index].write {
            self.requests[index].phase = Phase::Posted(found);
            return Effect::Nothing;
        }
        self.access_by_read(index, found)
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
