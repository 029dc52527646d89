//! A VT-d unit for tests: registers, queue, context cache and IOTLB, caching all
//! that caching mode allows and dropping only what it is told to.

use crate::unit::SourceId;
use crate::vtd::registers::*;
use crate::vtd::{
    Capabilities, ContextCacheScope, ContextEntry, Descriptor, ExtendedCapabilities, FaultRecord,
    FaultStatus, Global, IotlbScope, QueueAddress, RootEntry,
};
use core::cell::{RefCell, RefMut};
use core::sync::atomic::Ordering;
use hv_core::Hpa;
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::testing::Arena;
use std::collections::HashMap;
use std::vec::Vec;

/// Something the unit was told, in order.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Event {
    /// A write to GCMD.
    Command(Global),
    /// A write to PMEN, with or without its enable bit.
    Protect(bool),
    /// A descriptor was carried out; and whether the watched device's context
    /// entry was present in memory at that moment.
    Carried(Descriptor, bool),
}

/// The domain and the second-stage table of a device.
pub(super) type Context = (u16, u64);

pub(super) struct State {
    pub(super) capabilities: Capabilities,
    pub(super) extended: ExtendedCapabilities,
    pub(super) version: u32,
    /// GSTS.
    pub(super) status: Global,
    /// FSTS.
    pub(super) faults: FaultStatus,
    pub(super) records: Vec<u128>,
    pub(super) pmen: u32,
    pub(super) events: Vec<Event>,
    /// Whether it carries out descriptors at all.
    pub(super) answers: bool,
    /// Whose entry the events tell about.
    pub(super) watched: SourceId,
    root: u64,
    queue: QueueAddress,
    head: u64,
    tail: u64,
    contexts: HashMap<SourceId, Option<Context>>,
    translations: HashMap<(u16, u64), u64>,
}

pub(super) struct FakeUnit<'a> {
    arena: &'a Arena,
    state: RefCell<State>,
}

impl<'a> FakeUnit<'a> {
    pub(super) fn new(arena: &'a Arena) -> Self {
        let state = State {
            capabilities: Capabilities {
                domains: 2,
                caching_mode: true,
                width_39: true,
                width_48: true,
                guest_width: 48,
                fault_offset: 0x220,
                fault_records: 2,
                page_selective: true,
                max_address_mask: 9,
                protected_low: true,
                drain_writes: true,
                drain_reads: true,
                ..Capabilities::default()
            },
            extended: ExtendedCapabilities {
                coherent: true,
                queued_invalidation: true,
                ..ExtendedCapabilities::default()
            },
            version: 0x10,
            status: Global::empty(),
            faults: FaultStatus::empty(),
            records: std::vec![0; 2],
            pmen: 0,
            events: Vec::new(),
            answers: true,
            watched: SourceId::new(0),
            root: 0,
            queue: QueueAddress { base: 0, order: 0 },
            head: 0,
            tail: 0,
            contexts: HashMap::new(),
            translations: HashMap::new(),
        };
        Self {
            arena,
            state: RefCell::new(state),
        }
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// A DMA of `device` to `page`: the table it is translated by, `None` where it
    /// is refused. What it needs on the way is cached.
    pub(super) fn dma(&self, device: SourceId, page: u64) -> Option<u64> {
        let mut state = self.state();
        assert!(state.status.contains(Global::TRANSLATION));
        let in_memory = state.context_in(self.arena, device);
        let (domain, table) = (*state.contexts.entry(device).or_insert(in_memory))?;
        let cached = state.translations.entry((domain, page)).or_insert(table);
        Some(*cached)
    }

    fn run_queue(&self) {
        let mut state = self.state();
        while state.answers
            && state.head != state.tail
            && !state.faults.contains(FaultStatus::QUEUE_ERROR)
        {
            let at = state.queue.base + state.head;
            let raw = read128(self.arena, at);
            let Ok(descriptor) = Descriptor::decode(raw) else {
                state.faults |= FaultStatus::QUEUE_ERROR;
                return;
            };
            let present = state.context_in(self.arena, state.watched).is_some();
            state.events.push(Event::Carried(descriptor, present));
            state.carry_out(self.arena, descriptor);
            state.head = state.queue.next(state.head);
        }
    }
}

impl State {
    /// The descriptors carried out so far, without the waits; forgets all events.
    pub(super) fn take_invalidations(&mut self) -> Vec<(Descriptor, bool)> {
        self.events
            .drain(..)
            .filter_map(|event| match event {
                Event::Carried(Descriptor::Wait { .. }, _) => None,
                Event::Carried(descriptor, present) => Some((descriptor, present)),
                _ => None,
            })
            .collect()
    }

    fn context_in(&self, arena: &Arena, device: SourceId) -> Option<Context> {
        let root = self.root + u64::from(device.bus()) * RootEntry::SIZE as u64;
        let root = RootEntry::decode(read128(arena, root), 48).ok()?;
        let entry = root.context_table + u64::from(device.devfn()) * ContextEntry::SIZE as u64;
        let entry = read128(arena, entry);
        let entry = ContextEntry::decode(entry, &self.capabilities, &self.extended, 48).ok()?;
        Some((entry.domain, entry.table))
    }

    fn carry_out(&mut self, arena: &Arena, descriptor: Descriptor) {
        match descriptor {
            Descriptor::ContextCache(ContextCacheScope::Global) => self.contexts.clear(),
            Descriptor::ContextCache(ContextCacheScope::Device { domain, source, .. }) => {
                let tag = |context: &Option<Context>| context.map_or(0, |(domain, _)| domain);
                if self.contexts.get(&source).map(tag) == Some(domain) {
                    self.contexts.remove(&source);
                }
            }
            Descriptor::Iotlb { scope, .. } => {
                self.translations.retain(|(tag, page), _| !match scope {
                    IotlbScope::Global => true,
                    IotlbScope::Domain { domain } => *tag == domain,
                    IotlbScope::Pages {
                        domain,
                        address,
                        order,
                        ..
                    } => *tag == domain && *page >> order == address >> 12 >> order,
                })
            }
            Descriptor::Wait { status, .. } => {
                let status = status.unwrap();
                let frame = arena.frame(Hpa::new(status.address & !0xfff)).unwrap();
                frame.write_bytes(status.address as usize & 0xfff, &status.data.to_le_bytes());
            }
            other => unreachable!("the driver has no use for {other:?}"),
        }
    }

    fn command(&mut self, command: Global) {
        self.events.push(Event::Command(command));
        let lasting = command.difference(Global::ONE_SHOT);
        let was_set = self.status & Global::ROOT_TABLE;
        self.status = lasting | was_set | command & Global::ROOT_TABLE;
    }
}

fn read128(arena: &Arena, at: u64) -> u128 {
    let words = arena.frame(Hpa::new(at & !0xfff)).unwrap().words();
    let index = (at & 0xfff) as usize / 8;
    let [low, high] = [index, index + 1].map(|i| u128::from(words[i].load(Ordering::Acquire)));
    low | high << 64
}

impl Mmio for FakeUnit<'_> {
    fn read32(&self, offset: usize) -> u32 {
        let state = self.state();
        match offset {
            VER => state.version,
            GSTS => state.status.bits(),
            PMEN => state.pmen,
            FSTS => {
                let pending = state.records.iter().any(|record| record >> 127 != 0);
                let mut status = state.faults;
                status.set(FaultStatus::PENDING, pending);
                status.bits()
            }
            _ => panic!("read32 at {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state();
        match offset {
            GCMD => state.command(Global::from_bits(value).unwrap()),
            PMEN => {
                state.events.push(Event::Protect(value & PMEN_ENABLE != 0));
                state.pmen = value & PMEN_ENABLE | value >> 31;
            }
            FSTS => state.faults &= !FaultStatus::from_bits_truncate(value),
            FECTL => assert_eq!(value, EVENT_MASK),
            _ => {
                let index = (offset - 0x220) / FaultRecord::SIZE;
                assert_eq!(offset % 16, FaultRecord::IN_USE_OFFSET);
                state.records[index] &= !(u128::from(value) << 96);
            }
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let state = self.state();
        match offset {
            CAP => state.capabilities.encode(),
            ECAP => state.extended.encode(),
            IQH => state.head,
            IQT => state.tail,
            _ => {
                let record = state.records[(offset - 0x220) / 16];
                (record >> (offset % 16 * 8)) as u64
            }
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        match offset {
            RTADDR => self.state().root = value,
            IQA => self.state().queue = QueueAddress::decode(value).unwrap(),
            IQT => {
                self.state().tail = value;
                if self.state().status.contains(Global::QUEUED_INVALIDATION) {
                    self.run_queue();
                } else {
                    self.state().head = 0;
                }
            }
            _ => panic!("write64 at {offset:#x}"),
        }
    }
}
