//! A VT-d unit for tests, of either mode: registers, queue, caches of context and
//! PASID entries and IOTLB, caching all that caching mode allows and dropping only
//! what it is told to.

mod devices;
mod memory;

pub(super) use devices::DeviceConduct;

use crate::host::testing::read128;
use crate::unit::SourceId;
use crate::vtd::registers::*;
use crate::vtd::{
    Capabilities, ContextCacheScope, Descriptor, ExtendedCapabilities, FaultRecord, FaultStatus,
    Global, InterruptCacheScope, IotlbScope, PasidCacheScope, PasidDescriptor, PasidIotlbScope,
    QueueAddress,
};
use core::cell::{RefCell, RefMut};
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::testing::Arena;
use hv_core::{Hpa, PAGE_SIZE};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::vec::Vec;

/// Something the unit was told, in order.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Event {
    /// A write to GCMD.
    Command(Global),
    /// A write to PMEN, with or without its enable bit.
    Protect(bool),
    /// A descriptor was carried out; and whether the watched device's entries were
    /// present in memory at that moment.
    Carried(u128, bool),
}

/// The domain and the paging table of a device.
pub(super) type Context = (u16, u64);

pub(super) struct State {
    pub(super) capabilities: Capabilities,
    pub(super) extended: ExtendedCapabilities,
    pub(super) version_register: u32,
    /// GSTS.
    pub(super) status: Global,
    /// FSTS.
    pub(super) faults: FaultStatus,
    pub(super) records: Vec<u128>,
    pub(super) pmen: u32,
    pub(super) events: Vec<Event>,
    /// Whether it carries out descriptors at all.
    pub(super) answers: bool,
    /// How often FSTS is read after a doorbell before it carries out anything.
    pub(super) delay: u32,
    /// Whether it answers waits at once and does the rest later.
    pub(super) answers_too_early: bool,
    looks: u32,
    /// Whose entry the events tell about.
    pub(super) watched: SourceId,
    /// What is in the domains' tables: a translation changes with it.
    pub(super) version: u64,
    pub(super) devices: DeviceConduct,
    root: u64,
    queue: QueueAddress,
    wide: bool,
    head: u64,
    tail: u64,
    /// In legacy mode the whole context, in scalable mode the PASID directory.
    contexts: HashMap<SourceId, Option<Context>>,
    /// By PASID directory.
    pasids: HashMap<u64, Option<Context>>,
    translations: HashMap<(u16, u64), u64>,
    /// Whose entry, as it is cached, permits a TLB.
    with_tlb: HashSet<SourceId>,
    device_tlbs: HashMap<(SourceId, u64), u64>,
    /// What devices with TLBs used.
    used: BTreeSet<(u16, u64)>,
    /// IRTA, and what is cached of the table, absent entries too.
    interrupt_table: u64,
    interrupts: HashMap<u32, u128>,
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
            version_register: 0x10,
            status: Global::empty(),
            faults: FaultStatus::empty(),
            records: std::vec![0; 2],
            pmen: 0,
            events: Vec::new(),
            answers: true,
            delay: 0,
            answers_too_early: false,
            looks: 0,
            watched: SourceId::new(0),
            version: 0,
            devices: DeviceConduct::Obey,
            root: 0,
            queue: QueueAddress { base: 0, order: 0 },
            wide: false,
            head: 0,
            tail: 0,
            contexts: HashMap::new(),
            pasids: HashMap::new(),
            translations: HashMap::new(),
            with_tlb: HashSet::new(),
            device_tlbs: HashMap::new(),
            used: BTreeSet::new(),
            interrupt_table: 0,
            interrupts: HashMap::new(),
        };
        Self {
            arena,
            state: RefCell::new(state),
        }
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    fn ring_doorbell(&self, tail: u64) {
        let mut state = self.state();
        state.tail = tail;
        state.looks = state.delay;
        if state.answers_too_early {
            let wait = (tail + PAGE_SIZE - Descriptor::SIZE as u64) % PAGE_SIZE;
            let wait = Descriptor::decode(read128(self.arena, state.queue.base + wait));
            state.carry_out(self.arena, wait.unwrap());
        }
    }

    fn run_queue(&self) {
        let mut state = self.state();
        if state.looks > 0 {
            state.looks -= 1;
            return;
        }
        while state.answers
            && state.head != state.tail
            && !state.faults.contains(FaultStatus::QUEUE_ERROR)
        {
            let at = state.queue.base + state.head;
            let raw = read128(self.arena, at);
            let present = state.context_in(self.arena, state.watched).is_some();
            state.ask_anew(self.arena);
            state.events.push(Event::Carried(raw, present));
            match (Descriptor::decode(raw), PasidDescriptor::decode(raw)) {
                (Ok(Descriptor::DeviceTlb { .. }), _)
                    if state.devices == DeviceConduct::KeepSilent =>
                {
                    state.faults |= FaultStatus::TIMEOUT_ERROR;
                    return;
                }
                (Ok(descriptor), _) => state.carry_out(self.arena, descriptor),
                (_, Some(descriptor)) if state.wide => state.carry_out_pasid(descriptor),
                _ => {
                    state.events.pop();
                    state.faults |= FaultStatus::QUEUE_ERROR;
                    return;
                }
            }
            state.ask_anew(self.arena);
            state.head = state.queue.next(state.head);
            if state.wide {
                assert_eq!(
                    read128(self.arena, at + 16),
                    0,
                    "the upper half is reserved"
                );
                state.head = state.queue.next(state.head);
            }
        }
    }
}

impl State {
    /// The descriptors carried out so far, without the waits; forgets all events.
    pub(super) fn take_invalidations(&mut self) -> Vec<(u128, bool)> {
        self.events
            .drain(..)
            .filter_map(|event| match event {
                Event::Carried(raw, present) if !is_wait(raw) => Some((raw, present)),
                _ => None,
            })
            .collect()
    }

    fn is_scalable(&self) -> bool {
        self.root & RTADDR_SCALABLE != 0
    }

    fn carry_out_pasid(&mut self, descriptor: PasidDescriptor) {
        match descriptor {
            PasidDescriptor::Cache(PasidCacheScope::Global) => self.pasids.clear(),
            PasidDescriptor::Cache(PasidCacheScope::Domain { domain }) => {
                self.pasids.retain(|_, entry| tag_of(entry) != domain);
            }
            PasidDescriptor::Iotlb {
                domain,
                pasid,
                scope,
            } => {
                assert_eq!(pasid, 0, "requests have no PASID");
                self.translations.retain(|(tag, page), _| match scope {
                    PasidIotlbScope::All => *tag != domain,
                    PasidIotlbScope::Pages { address, order, .. } => {
                        *tag != domain || *page >> order != address >> 12 >> order
                    }
                });
            }
        }
    }

    fn carry_out(&mut self, arena: &Arena, descriptor: Descriptor) {
        if matches!(descriptor, Descriptor::Iotlb { .. })
            && self.devices == DeviceConduct::ObeyTooEarly
        {
            self.device_tlbs.clear();
            self.ask_anew(arena);
        }
        match descriptor {
            Descriptor::ContextCache(ContextCacheScope::Global) => self.contexts.clear(),
            Descriptor::ContextCache(ContextCacheScope::Device { domain, source, .. }) => {
                // Entries of scalable mode have no domain to be told apart by.
                let is_tagged = |entry| self.is_scalable() || tag_of(entry) == domain;
                if self.contexts.get(&source).is_some_and(is_tagged) {
                    self.contexts.remove(&source);
                }
            }
            // First-stage translations are not its business.
            Descriptor::Iotlb { scope, .. }
                if scope != IotlbScope::Global && self.first_stage() => {}
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
            Descriptor::DeviceTlb { source, block, .. } => {
                if self.devices == DeviceConduct::Obey {
                    self.device_tlbs
                        .retain(|(of, page), _| *of != source || !block.contains(*page));
                }
            }
            Descriptor::InterruptCache(scope) => {
                self.interrupts.retain(|index, _| match scope {
                    InterruptCacheScope::Global => false,
                    InterruptCacheScope::Entries {
                        index: first,
                        order,
                    } => index >> order != u32::from(first) >> order,
                });
            }
            Descriptor::Wait { status, .. } => {
                let status = status.unwrap();
                let frame = arena.frame(Hpa::new(status.address & !0xfff)).unwrap();
                frame.write_bytes(status.address as usize & 0xfff, &status.data.to_le_bytes());
            }
            other => unreachable!("the driver has no use for {other:?}"),
        }
    }

    fn first_stage(&self) -> bool {
        self.is_scalable() && !self.extended.second_stage_dirty
    }

    fn command(&mut self, command: Global) {
        self.events.push(Event::Command(command));
        let lasting = command.difference(Global::ONE_SHOT);
        let tables = Global::ROOT_TABLE | Global::INTERRUPT_TABLE;
        self.status = lasting | (self.status | command) & tables;
    }
}

pub(super) fn is_wait(raw: u128) -> bool {
    matches!(Descriptor::decode(raw), Ok(Descriptor::Wait { .. }))
}

/// The domain by which a cached entry is found; 0 for an absent one.
fn tag_of(entry: &Option<Context>) -> u16 {
    entry.map_or(0, |(domain, _)| domain)
}

impl Mmio for FakeUnit<'_> {
    fn read32(&self, offset: usize) -> u32 {
        if offset == FSTS {
            self.run_queue();
        }
        let state = self.state();
        match offset {
            VER => state.version_register,
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
            IRTA => self.state().interrupt_table = value,
            IQA => {
                let mut state = self.state();
                state.wide = value & QueueAddress::WIDE != 0;
                state.queue = QueueAddress::decode(value & !QueueAddress::WIDE).unwrap();
            }
            IQT => {
                self.ring_doorbell(value);
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
