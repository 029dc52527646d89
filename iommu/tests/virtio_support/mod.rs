//! A guest with a virtio-iommu, over the real layer on a unit that notes what it is
//! asked, and a small driver written from the specification.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests fails its test"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by several test binaries, each of which uses a part"
)]

use hv_core::dirty::DirtyLog;
use hv_core::memory::{FramePool, GuestMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa, Hpa, PAGE_SIZE};
use iommu::space::{Attachment, DmaSpace, Piece};
use iommu::tables::VtdSecondStage;
use iommu::unit::{DmaFault, DomainId, HostUnit, Scope, SourceId, UnitError};
use iommu::viommu::virtio::{Cursor, Features, VirtioConfig, VirtioIommu, VirtioState};
use iommu::viommu::{Passthrough, Passthroughs, Service, StateError, Viommu};
use iommu::{Iommu, Iova, Parts};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use zerocopy::{FromBytes, IntoBytes};

/// The number of guest frames; guest memory starts at 0.
pub const FRAMES: u64 = 1536;
/// Frames for the host's tables.
pub const TABLES: u64 = 24;
/// The first frame that is not the driver's.
pub const DATA: u64 = 16;

/// Descriptors of each queue.
pub const SIZE: u16 = 16;
pub const REQUESTS: u32 = 0;
pub const EVENTS: u32 = 1;

pub const NIC: Passthrough = device(0x18, 0x0310);
pub const DISK: Passthrough = device(0x20, 0x0400);

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;
pub const INVAL: u8 = 4;
pub const RANGE: u8 = 5;
pub const NOENT: u8 = 6;
pub const FAULT: u8 = 7;
pub const NOMEM: u8 = 8;

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
/// `VIRTIO_IOMMU_ATTACH_F_BYPASS`
pub const BYPASS: u32 = 1;

const fn device(guest: u16, host: u16) -> Passthrough {
    Passthrough {
        guest: SourceId::new(guest),
        host: SourceId::new(host),
    }
}

/// What the host's unit was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Attach(SourceId),
    Block(SourceId),
    Invalidate,
}

/// A unit that does what it is asked.
#[derive(Clone, Default)]
pub struct Willing(Rc<RefCell<Vec<Call>>>);

impl Willing {
    pub fn take(&self) -> Vec<Call> {
        self.0.take()
    }
}

impl HostUnit for Willing {
    fn levels(&self) -> u8 {
        3
    }
    fn has_large_leaves(&self) -> bool {
        true
    }
    fn caches_absent(&self) -> bool {
        false
    }
    fn attach(&mut self, device: SourceId, _: DomainId, _: Hpa) -> Result<(), UnitError> {
        self.0.borrow_mut().push(Call::Attach(device));
        Ok(())
    }
    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        self.0.borrow_mut().push(Call::Block(device));
        Ok(())
    }
    fn invalidate(&mut self, _: DomainId, _: Scope) -> Result<(), UnitError> {
        self.0.borrow_mut().push(Call::Invalidate);
        Ok(())
    }
    fn take_fault(&mut self) -> Option<DmaFault> {
        None
    }
}

pub type Layer = Iommu<'static, Arena, Willing>;

/// A queue as the driver sees it: one page for it all.
#[derive(Clone, Copy)]
pub struct Queue {
    pub index: u32,
    pub page: u64,
    /// How many chains were made available.
    pub sent: u16,
    /// How many were taken back.
    pub seen: u16,
}

impl Queue {
    const fn new(index: u32, page: u64) -> Self {
        Self {
            index,
            page,
            sent: 0,
            seen: 0,
        }
    }
    pub const fn driver(&self) -> u64 {
        self.page + 0x400
    }
    pub const fn device(&self) -> u64 {
        self.page + 0x800
    }
}

/// One buffer: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// A guest, its unit, and the host side.
pub struct Machine {
    arena: &'static Arena,
    pub memory: &'static GuestMemory<'static, Arena>,
    pub log: &'static DirtyLog<'static>,
    pub unit: VirtioIommu,
    pub space: Layer,
    pub calls: Willing,
    pub requests: Queue,
    pub events: Queue,
}

pub fn config() -> VirtioConfig {
    let mut devices = Passthroughs::new();
    devices.push(NIC).unwrap();
    devices.push(DISK).unwrap();
    VirtioConfig { width: 39, devices }
}

/// Where requests and answers go; one page each.
const REQUEST: u64 = 0x3000;
const ANSWER: u64 = 0x4000;

fn layer(
    arena: &'static Arena,
    memory: &'static GuestMemory<'static, Arena>,
    calls: &Willing,
    tables: u64,
) -> Layer {
    let pool = Hpa::new(arena.start().raw() + FRAMES * PAGE_SIZE);
    for frame in 0..TABLES {
        let at = Hpa::new(pool.raw() + frame * PAGE_SIZE);
        hv_core::memory::PhysMemory::frame(arena, at)
            .unwrap()
            .clear();
    }
    let mut layer = Iommu::new(Parts {
        mem: arena,
        format: VtdSecondStage,
        unit: calls.clone(),
        guest: memory,
        pool: FramePool::new(pool, tables),
        pins: vec![0; FRAMES as usize].leak(),
    })
    .unwrap();
    layer.start_tracking().unwrap();
    layer
}

impl Machine {
    /// As at power on, with `tables` frames for the host's tables.
    pub fn with_tables(tables: u64) -> Self {
        let base = Hpa::new(0x4000_0000);
        let arena: &'static Arena =
            Box::leak(Box::new(Arena::new(base, (FRAMES + TABLES) as usize)));
        let words = Vec::from_iter((0..64).map(|_| AtomicU64::new(0)));
        let log = Box::leak(Box::new(DirtyLog::new(words.leak(), FRAMES)));
        let mut memory = GuestMemory::new(arena, log);
        let slot = Slot {
            gfn: Gfn::new(0),
            hpa: base,
            frames: FRAMES,
        };
        memory.add_slot(slot).unwrap();
        let memory = Box::leak(Box::new(memory));
        let calls = Willing::default();
        log.start();
        Self {
            space: layer(arena, memory, &calls, tables),
            arena,
            memory,
            log,
            unit: VirtioIommu::new(&config()),
            calls,
            requests: Queue::new(REQUESTS, 0x1000),
            events: Queue::new(EVENTS, 0x2000),
        }
    }

    pub fn at_power_on() -> Self {
        Self::with_tables(TABLES)
    }

    /// With a driver that took all features, endpoints bypassing nothing.
    pub fn new() -> Self {
        let mut machine = Self::at_power_on();
        machine.settle();
        machine.start(Features::all().bits());
        machine.set_bypass(false);
        // Until then all could be written.
        machine.clean();
        machine
    }

    /// What a driver does to get there.
    pub fn start(&mut self, features: u64) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.settle();
        let mut status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        self.write(VIRTIO_MMIO_STATUS, status);
        for half in 0..2 {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(
                VIRTIO_MMIO_DRIVER_FEATURES,
                (features >> (32 * half)) as u32,
            );
        }
        status |= VIRTIO_CONFIG_S_FEATURES_OK;
        self.write(VIRTIO_MMIO_STATUS, status);
        self.requests = Queue::new(REQUESTS, 0x1000);
        self.events = Queue::new(EVENTS, 0x2000);
        for queue in [self.requests, self.events] {
            self.memory
                .frame(Gfn::containing(Gpa::new(queue.page)))
                .unwrap()
                .clear();
            self.set_up(queue, SIZE);
        }
        self.write(VIRTIO_MMIO_STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    pub fn set_up(&mut self, queue: Queue, size: u16) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue.index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        let addresses = [
            (
                VIRTIO_MMIO_QUEUE_DESC_LOW,
                VIRTIO_MMIO_QUEUE_DESC_HIGH,
                queue.page,
            ),
            (
                VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                queue.driver(),
            ),
            (
                VIRTIO_MMIO_QUEUE_USED_LOW,
                VIRTIO_MMIO_QUEUE_USED_HIGH,
                queue.device(),
            ),
        ];
        for (low, high, address) in addresses {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn read(&self, register: u32) -> u32 {
        self.unit.read(register.into(), 4) as u32
    }

    pub fn write(&mut self, register: u32, value: u32) {
        self.unit.write(register.into(), 4, value.into());
    }

    /// Sets `bypass` of the configuration.
    pub fn set_bypass(&mut self, bypass: bool) {
        self.unit.write(0x100 + 36, 1, bypass.into());
        self.settle();
    }

    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.unit.service(self.memory, &mut self.space, 3) == Ok(Service::Idle) {
                return;
            }
        }
        panic!("the unit never comes to rest");
    }

    /// One step of work.
    pub fn step(&mut self) -> Service {
        self.unit.service(self.memory, &mut self.space, 1).unwrap()
    }

    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(gpa), bytes).unwrap();
    }

    pub fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(Gpa::new(gpa), &mut bytes).unwrap();
        bytes
    }

    pub fn descriptor(&self, queue: Queue, index: u16, buffer: Buffer, next: Option<u16>) {
        let (address, length, write) = buffer;
        let mut flags = 0;
        if write {
            flags |= VRING_DESC_F_WRITE as u16;
        }
        if next.is_some() {
            flags |= VRING_DESC_F_NEXT as u16;
        }
        self.raw_descriptor(queue, index, (address, length), flags, next.unwrap_or(0));
    }

    pub fn raw_descriptor(
        &self,
        queue: Queue,
        index: u16,
        (address, length): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let at = queue.page + 16 * u64::from(index);
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &length.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(&mut self, events: bool, head: u16) {
        let queue = if events {
            &mut self.events
        } else {
            &mut self.requests
        };
        let slot = u64::from(queue.sent % SIZE);
        queue.sent = queue.sent.wrapping_add(1);
        let queue = *queue;
        self.poke(queue.driver() + 4 + 2 * slot, &head.to_le_bytes());
        self.poke(queue.driver() + 2, &queue.sent.to_le_bytes());
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue.index);
    }

    /// Makes a chain of these buffers available; at most 4 of them, 4 at a time.
    pub fn submit(&mut self, buffers: &[Buffer]) {
        let queue = self.requests;
        let head = queue.sent % 4 * 4;
        for (index, buffer) in (head..).zip(buffers) {
            let is_last = usize::from(index - head) == buffers.len() - 1;
            self.descriptor(queue, index, *buffer, (!is_last).then_some(index + 1));
        }
        self.offer(false, head);
    }

    /// The length of the next chain given back, if there is one.
    pub fn used(&mut self, events: bool) -> Option<u32> {
        let queue = if events {
            &mut self.events
        } else {
            &mut self.requests
        };
        let seen = queue.seen;
        let at = *queue;
        if u16::from_le_bytes(self.peek(at.device() + 2)) == seen {
            return None;
        }
        let queue = if events {
            &mut self.events
        } else {
            &mut self.requests
        };
        queue.seen = seen.wrapping_add(1);
        let element = at.device() + 4 + 8 * u64::from(seen % SIZE);
        Some(u32::from_le_bytes(self.peek(element + 4)))
    }

    /// Submits a request with room for its answer.
    pub fn submit_request(&mut self, request: &[u8], room: u32) {
        // Four can be on their way.
        let place = u64::from(self.requests.sent % 4) * 0x200;
        self.poke(REQUEST + place, request);
        self.poke(ANSWER + place, &[0xee; 0x80]);
        self.submit(&[
            (REQUEST + place, request.len() as u32, false),
            (ANSWER + place, room, true),
        ]);
    }

    /// Sends a request and returns what was written of its answer.
    pub fn ask(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        let place = u64::from(self.requests.sent % 4) * 0x200;
        self.submit_request(request, room);
        self.settle();
        let length = self.used(false).unwrap() as usize;
        self.peek::<0x80>(ANSWER + place)[..length].to_vec()
    }

    /// The status of the youngest request, all having been answered.
    pub fn last_status(&mut self) -> u8 {
        while self.used(false).is_some() {}
        assert_eq!(self.requests.seen, self.requests.sent);
        let place = u64::from(self.requests.sent.wrapping_sub(1) % 4) * 0x200;
        let [status] = self.peek(ANSWER + place);
        status
    }

    /// Sends a request whose answer is a status.
    pub fn status_of(&mut self, request: &[u8]) -> u8 {
        let answer = self.ask(request, 4);
        assert_eq!(answer.len(), 4, "{request:x?}");
        assert_eq!(answer[1..], [0; 3]);
        answer[0]
    }

    pub fn attach(&mut self, domain: u32, device: Passthrough, flags: u32) -> u8 {
        self.status_of(&attach(domain, device.guest.raw().into(), flags))
    }

    pub fn detach(&mut self, domain: u32, device: Passthrough) -> u8 {
        self.status_of(&detach(domain, device.guest.raw().into()))
    }

    /// Maps `pages` pages with both rights.
    pub fn map_pages(&mut self, domain: u32, page: u64, pages: u64, gfn: u64) -> u8 {
        let last = (page + pages) * PAGE_SIZE - 1;
        self.map(
            domain,
            page * PAGE_SIZE,
            last,
            gfn * PAGE_SIZE,
            READ | WRITE,
        )
    }

    pub fn map(&mut self, domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> u8 {
        self.status_of(&map(domain, first, last, physical, flags))
    }

    pub fn unmap(&mut self, domain: u32, first: u64, last: u64) -> u8 {
        self.status_of(&unmap(domain, first, last))
    }

    pub fn unmap_pages(&mut self, domain: u32, page: u64, pages: u64) -> u8 {
        let last = (page + pages) * PAGE_SIZE - 1;
        self.unmap(domain, page * PAGE_SIZE, last)
    }

    /// Takes all marks out of the dirty log.
    pub fn clean(&self) {
        self.log.start();
    }

    pub fn is_dirty(&self, gfn: u64) -> bool {
        self.log.is_marked(Gfn::new(gfn))
    }

    pub fn place(&self, device: Passthrough) -> Attachment {
        self.space.attachment(device.host)
    }

    pub fn pieces(&self, device: Passthrough) -> Vec<Piece> {
        let Attachment::Domain(domain) = self.place(device) else {
            panic!("{device:?} goes to {:?}", self.place(device));
        };
        let mut pieces = Vec::new();
        let mut from = Some(Iova::new(0));
        while let Some(piece) = from.and_then(|from| self.space.next_piece(domain, from)) {
            from = piece.range.last_page().checked_add(PAGE_SIZE);
            pieces.push(piece);
        }
        pieces
    }

    /// The pages a device reaches: IOVA page, guest frame, and rights as flags.
    pub fn pages(&self, device: Passthrough) -> Vec<(u64, u64, u32)> {
        let page = |piece: &Piece, index| {
            let flags = u32::from(piece.access.reads()) | u32::from(piece.access.writes()) << 1;
            let first = piece.range.start().raw() / PAGE_SIZE;
            (first + index, piece.gfn.number() + index, flags)
        };
        let pieces = self.pieces(device);
        let pages = |piece: &Piece| {
            let piece = *piece;
            (0..piece.range.pages()).map(move |index| page(&piece, index))
        };
        pieces.iter().flat_map(pages).collect()
    }

    /// The same guest on another machine: a new unit and a new layer with what was
    /// saved, its mappings in portions of `portion` bytes.
    pub fn migrate(&mut self, portion: usize) -> Result<(), StateError> {
        let state = self.unit.save();
        let mut portions = Vec::new();
        let mut cursor = Cursor::default();
        loop {
            let mut bytes = vec![0; portion];
            let length = self
                .unit
                .save_mappings(&self.space, &mut cursor, &mut bytes);
            if length == 0 {
                break;
            }
            bytes.truncate(length);
            portions.push(bytes);
        }
        self.arrive(state.as_bytes(), &portions)
    }

    /// A new machine takes these over.
    pub fn arrive(&mut self, state: &[u8], portions: &[Vec<u8>]) -> Result<(), StateError> {
        self.calls = Willing::default();
        self.space = layer(self.arena, self.memory, &self.calls, TABLES);
        self.unit = VirtioIommu::new(&config());
        // A destination has its devices somewhere before the guest arrives.
        self.settle();
        let state = VirtioState::read_from_bytes(state).unwrap();
        self.unit.restore(&state)?;
        portions
            .iter()
            .try_for_each(|bytes| self.unit.restore_mappings(&mut self.space, bytes))
    }
}

fn request<const N: usize>(kind: u8, fields: &[&[u8]]) -> [u8; N] {
    // The head's reserved bytes are not zero: they do not matter.
    let mut bytes = vec![kind, 0xaa, 0xbb, 0xcc];
    fields.iter().for_each(|field| bytes.extend(*field));
    bytes.try_into().unwrap()
}

pub fn attach(domain: u32, endpoint: u32, flags: u32) -> [u8; 20] {
    let [domain, endpoint, flags] = [domain, endpoint, flags].map(u32::to_le_bytes);
    request(1, &[&domain, &endpoint, &flags, &[0; 4]])
}

pub fn detach(domain: u32, endpoint: u32) -> [u8; 20] {
    let [domain, endpoint] = [domain, endpoint].map(u32::to_le_bytes);
    request(2, &[&domain, &endpoint, &[0xdd; 8]])
}

pub fn map(domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> [u8; 36] {
    let [domain, flags] = [domain, flags].map(u32::to_le_bytes);
    let [first, last, physical] = [first, last, physical].map(u64::to_le_bytes);
    request(3, &[&domain, &first, &last, &physical, &flags])
}

pub fn unmap(domain: u32, first: u64, last: u64) -> [u8; 28] {
    let [first, last] = [first, last].map(u64::to_le_bytes);
    request(4, &[&domain.to_le_bytes(), &first, &last, &[0; 4]])
}

pub fn probe(endpoint: u32) -> [u8; 72] {
    request(5, &[&endpoint.to_le_bytes(), &[0x99; 64]])
}
