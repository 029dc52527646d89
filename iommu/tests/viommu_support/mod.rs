//! A guest with an emulated VT-d unit, and a host side that keeps the promises of
//! `DmaSpace` and checks that nobody breaks their preconditions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unimplemented,
    reason = "a helper of tests fails its test"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by several test binaries, each of which uses a part"
)]

use hv_core::dirty::DirtyLog;
use hv_core::memory::{GuestMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, Hpa};
use iommu::layer::MapError;
use iommu::space::{
    Access, Attachment, DmaSpace, MAX_REPLACE, Mapping, Piece, Region, Replaced, SpaceError,
};
use iommu::unit::{DomainId, SourceId, UnitError};
use iommu::viommu::vtd::{VtdConfig, VtdViommu};
use iommu::viommu::{Passthrough, Passthroughs, Service, Viommu};
use iommu::vtd::registers::{GCMD, GSTS, IQA, IQH, IQT, RTADDR};
use iommu::vtd::{
    AddressWidth, ContextEntry, Descriptor, Global, IotlbScope, RootEntry, StatusWrite,
    TranslationType,
};
use iommu::{Iova, IovaRange};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of guest frames; guest memory starts at 0.
pub const FRAMES: u64 = 64;
pub const ROOT: u64 = 0x1000;
pub const CONTEXT: u64 = 0x2000;
pub const QUEUE: u64 = 0x9000;
pub const STATUS: u64 = 0xa000;
/// The roots of two three-level tables; the other two levels follow each.
pub const TABLE_A: u64 = 0x3000;
pub const TABLE_B: u64 = 0x6000;
/// The first frame that is no table.
pub const DATA: u64 = 16;

pub const NIC: Passthrough = device(0x18, 0x0310);
pub const DISK: Passthrough = device(0x20, 0x0400);

const fn device(guest: u16, host: u16) -> Passthrough {
    Passthrough {
        guest: SourceId::new(guest),
        host: SourceId::new(host),
    }
}

/// What a domain maps: page number to mapping.
pub type Pages = BTreeMap<u64, Mapping>;

/// The host side.
#[derive(Default)]
pub struct FakeSpace {
    pub domains: BTreeMap<u16, Pages>,
    pub devices: BTreeMap<u16, Attachment>,
    /// Calls that may each take a table's worth of work.
    pub calls: u64,
    pub attaches: u64,
    pub max_pages: usize,
    pub max_domains: usize,
    pub address_width: u8,
    /// There is room for more context entries.
    pub has_entries: bool,
    /// The unit does not answer any more.
    pub is_lost: bool,
    next: u16,
}

impl FakeSpace {
    pub fn new() -> Self {
        Self {
            max_pages: 4096,
            max_domains: 16,
            address_width: 48,
            has_entries: true,
            ..Self::default()
        }
    }

    fn call(&mut self) -> Result<(), SpaceError> {
        self.calls += 1;
        if self.is_lost {
            return Err(SpaceError::Unit(UnitError::NoAnswer));
        }
        Ok(())
    }

    fn pages(&mut self, domain: DomainId) -> &mut Pages {
        self.domains
            .get_mut(&domain.number())
            .expect("the domain exists")
    }
}

impl DmaSpace for FakeSpace {
    fn address_width(&self) -> u8 {
        self.address_width
    }

    fn create_domain(&mut self) -> Result<DomainId, SpaceError> {
        self.call()?;
        if self.domains.len() == self.max_domains {
            return Err(SpaceError::OutOfMemory);
        }
        self.next += 1;
        self.domains.insert(self.next, Pages::new());
        Ok(DomainId::new(self.next))
    }

    fn destroy_domain(&mut self, domain: DomainId) -> Result<(), SpaceError> {
        self.call()?;
        let in_use = self
            .devices
            .values()
            .any(|&to| to == Attachment::Domain(domain));
        assert!(!in_use, "a domain in use is not destroyed");
        self.domains
            .remove(&domain.number())
            .expect("the domain exists");
        Ok(())
    }

    fn replace(
        &mut self,
        domain: DomainId,
        start: Iova,
        wanted: &[Option<Mapping>],
    ) -> Result<Replaced, SpaceError> {
        self.call()?;
        assert!(start.is_page_aligned() && !wanted.is_empty() && wanted.len() <= MAX_REPLACE);
        let max_pages = self.max_pages;
        let pages = self.pages(domain);
        let mut done = Replaced::default();
        for (page, wanted) in (start.raw() >> 12..).zip(wanted) {
            if pages.get(&page) == wanted.as_ref() {
                continue;
            }
            done.unmapped += u64::from(pages.remove(&page).is_some());
            match *wanted {
                Some(_) if pages.len() >= max_pages => done.refused += 1,
                Some(mapping) => {
                    assert!(
                        mapping.gfn.number() < FRAMES,
                        "only guest frames are mapped"
                    );
                    pages.insert(page, mapping);
                    done.mapped += 1;
                }
                None => {}
            }
        }
        Ok(done)
    }

    fn unmap_range(&mut self, domain: DomainId, range: IovaRange) -> Result<u64, SpaceError> {
        self.call()?;
        let (first, last) = (range.start().raw() >> 12, range.last_page().raw() >> 12);
        let pages = self.pages(domain);
        let before = pages.len();
        pages.retain(|page, _| !(first..=last).contains(page));
        Ok((before - pages.len()) as u64)
    }

    fn map_part(&mut self, _: DomainId, _: &Region, _: IovaRange) -> Result<(), MapError> {
        unreachable!("a VT-d unit reads its guest's own tables")
    }

    fn unmap_part(&mut self, domain: DomainId, part: IovaRange) -> Result<u64, SpaceError> {
        self.unmap_range(domain, part)
    }

    fn bisects(&self, _: DomainId, _: IovaRange) -> bool {
        false
    }

    fn next_piece(&self, _: DomainId, _: Iova) -> Option<Piece> {
        unreachable!("a VT-d unit reads its guest's own tables")
    }

    fn attach(&mut self, device: SourceId, to: Attachment) -> Result<(), SpaceError> {
        self.call()?;
        self.attaches += 1;
        if !self.has_entries && to != Attachment::Blocked {
            return Err(SpaceError::Unit(UnitError::OutOfMemory));
        }
        if let Attachment::Domain(domain) = to {
            self.pages(domain);
        }
        self.devices.insert(device.raw(), to);
        Ok(())
    }
}

/// A guest, its unit, and the host side.
pub struct Machine {
    arena: &'static Arena,
    log: &'static DirtyLog<'static>,
    pub memory: GuestMemory<'static, Arena>,
    pub unit: VtdViommu,
    pub space: FakeSpace,
}

fn memory(arena: &'static Arena, log: &'static DirtyLog<'static>) -> GuestMemory<'static, Arena> {
    let mut memory = GuestMemory::new(arena, log);
    let slot = Slot {
        gfn: Gfn::new(0),
        hpa: arena.start(),
        frames: FRAMES,
    };
    memory.add_slot(slot).unwrap();
    memory
}

pub fn config() -> VtdConfig {
    let mut devices = Passthroughs::new();
    devices.push(NIC).unwrap();
    devices.push(DISK).unwrap();
    VtdConfig {
        width: AddressWidth::Bits39,
        devices,
        interrupt_remapping: true,
    }
}

impl Machine {
    /// As at power on.
    pub fn new() -> Self {
        Self::of_width(AddressWidth::Bits39)
    }

    /// As at power on, with IOVAs of that width.
    pub fn of_width(width: AddressWidth) -> Self {
        let base = Hpa::new(0x4000_0000);
        let arena: &'static Arena = Box::leak(Box::new(Arena::new(base, FRAMES as usize)));
        let words = Vec::from_iter((0..8).map(|_| AtomicU64::new(0)));
        let log = Box::leak(Box::new(DirtyLog::new(words.leak(), FRAMES)));
        Self {
            memory: memory(arena, log),
            arena,
            log,
            unit: VtdViommu::new(&VtdConfig { width, ..config() }),
            space: FakeSpace::new(),
        }
    }

    /// With the queue on, the network device in domain 5 at table A, translation
    /// on, and the disk without a context entry.
    pub fn translating() -> Self {
        let mut machine = Self::new();
        machine.start();
        machine
    }

    /// What a driver does to get there.
    pub fn start(&mut self) {
        let machine = self;
        machine.poke(
            ROOT,
            RootEntry {
                context_table: CONTEXT,
            }
            .encode() as u64,
        );
        machine.set_context(NIC, 5, TABLE_A);
        for table in [TABLE_A, TABLE_B] {
            machine.poke(table, table + 0x1003);
            machine.poke(table + 0x1000, table + 0x2003);
        }
        machine.write(RTADDR, ROOT);
        machine.command(Global::ROOT_TABLE);
        machine.write(IQA, QUEUE);
        machine.command(Global::QUEUED_INVALIDATION);
        machine.command(Global::QUEUED_INVALIDATION | Global::TRANSLATION);
    }

    /// The same memory once more, for a driver that holds on to it.
    pub fn view(&self) -> GuestMemory<'static, Arena> {
        memory(self.arena, self.log)
    }

    pub fn poke(&self, gpa: u64, value: u64) {
        let frame = self.memory.frame(Gfn::containing(Gpa::new(gpa))).unwrap();
        frame.words()[(gpa % 4096) as usize / 8].store(value, Ordering::Release);
    }

    pub fn peek(&self, gpa: u64) -> u64 {
        self.memory.read_u64(Gpa::new(gpa)).unwrap()
    }

    pub fn set_context_raw(&self, device: Passthrough, raw: u128) {
        let at = CONTEXT + u64::from(device.guest.devfn()) * 16;
        self.poke(at + 8, (raw >> 64) as u64);
        self.poke(at, raw as u64);
    }

    pub fn set_context(&self, device: Passthrough, domain: u16, table: u64) {
        let entry = ContextEntry {
            silent: false,
            translation: TranslationType::Untranslated,
            table,
            width: AddressWidth::Bits39,
            domain,
        };
        self.set_context_raw(device, entry.encode());
    }

    /// Sets the leaf of `page` (below 512) under a table.
    pub fn set_leaf(&self, table: u64, page: u64, leaf: u64) {
        self.poke(table + 0x2000 + page * 8, leaf);
    }

    pub fn read(&self, offset: usize) -> u64 {
        self.unit.read(offset as u64, 8)
    }

    pub fn read32(&self, offset: usize) -> u32 {
        self.unit.read(offset as u64, 4) as u32
    }

    pub fn write(&mut self, offset: usize, value: u64) {
        self.unit.write(offset as u64, 8, value);
    }

    pub fn write32(&mut self, offset: usize, value: u32) {
        self.unit.write(offset as u64, 4, value.into());
    }

    /// Gives a command and waits for it as a driver does.
    pub fn command(&mut self, command: Global) {
        self.write32(GCMD, command.bits());
        self.settle();
        assert!(self.status().contains(command));
    }

    pub fn status(&self) -> Global {
        Global::from_bits_truncate(self.read32(GSTS))
    }

    /// Services the unit until it is idle.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.unit.service(&self.memory, &mut self.space, 7) == Ok(Service::Idle) {
                return;
            }
        }
        panic!("the unit never comes to rest");
    }

    /// One step of work.
    pub fn step(&mut self) -> Service {
        self.unit.service(&self.memory, &mut self.space, 1).unwrap()
    }

    /// Puts a raw descriptor into the (one page) queue and rings.
    pub fn queue_raw(&mut self, raw: u128) {
        let tail = self.read(IQT);
        self.poke(QUEUE + tail, raw as u64);
        self.poke(QUEUE + tail + 8, (raw >> 64) as u64);
        self.write(IQT, (tail + 16) % 4096);
    }

    pub fn queue(&mut self, descriptor: Descriptor) {
        self.queue_raw(descriptor.encode());
    }

    pub fn queue_iotlb(&mut self, scope: IotlbScope) {
        self.queue(Descriptor::Iotlb {
            scope,
            drain_reads: true,
            drain_writes: true,
        });
    }

    /// An invalidation of 2^order pages and a wait that writes `data`.
    pub fn queue_pages(&mut self, domain: u16, page: u64, order: u8, data: u32) {
        self.queue_iotlb(IotlbScope::Pages {
            domain,
            address: page << 12,
            order,
            leaves_only: false,
        });
        self.queue_wait(data);
    }

    pub fn queue_wait(&mut self, data: u32) {
        self.queue(Descriptor::Wait {
            status: Some(StatusWrite {
                address: STATUS,
                data,
            }),
            interrupt: false,
            fence: true,
        });
    }

    pub fn wait_status(&self) -> u32 {
        self.peek(STATUS) as u32
    }

    pub fn head(&self) -> u64 {
        self.read(IQH)
    }

    pub fn place(&self, device: Passthrough) -> Attachment {
        self.space.devices[&device.host.raw()]
    }

    /// What a device reaches, if it goes through a domain.
    pub fn pages(&self, device: Passthrough) -> &Pages {
        match self.place(device) {
            Attachment::Domain(domain) => &self.space.domains[&domain.number()],
            other => panic!("{device:?} goes to {other:?}"),
        }
    }
}

/// A leaf of a data page with both rights.
pub fn leaf(gfn: u64) -> u64 {
    gfn << 12 | 3
}

pub fn mapping(gfn: u64, access: Access) -> Mapping {
    Mapping {
        gfn: Gfn::new(gfn),
        access,
    }
}
