//! A guest with a virtio-iommu, over the real layer on a unit that notes what it is
//! asked, and a small driver written from the specification.
//!
//! - `host`: the host side. `queue`, `requests`: what the specification lays out.
//! - `driver`: what a driver does.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of tests fails its test"
)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "shared by several test binaries, each of which uses a part"
)]

mod driver;
#[path = "../guest_support/mod.rs"]
mod guest;
mod host;
mod queue;
mod requests;

pub use guest::{DISK, Memory, NIC};
pub use host::{Call, Layer, Willing, layer};
pub use queue::{Buffer, Queue};
pub use requests::*;

use hv_core::dirty::DirtyLog;
use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use hv_core::{Gfn, PAGE_SIZE};
use iommu::Iova;
use iommu::space::{Attachment, DmaSpace, Piece};
use iommu::unit::HostUnit;
use iommu::viommu::virtio::{Cursor, Features, VirtioConfig, VirtioIommu, VirtioState};
use iommu::viommu::{Passthrough, Service, StateError, Viommu};
use zerocopy::{FromBytes, IntoBytes};

/// The number of guest frames; guest memory starts at 0.
pub const FRAMES: u64 = 1536;
/// Frames for the host's tables.
pub const TABLES: u64 = 24;
/// The most frames for them that a test can ask for.
const MAX_TABLES: u64 = 64;
/// The first frame that is not the driver's.
pub const DATA: u64 = 16;

/// Descriptors of each queue.
pub const SIZE: u16 = 16;
pub const REQUESTS: u32 = 0;
pub const EVENTS: u32 = 1;

/// A guest, its unit, and the host side.
pub struct Machine<U = Willing> {
    whole: Memory,
    tables: u64,
    pub memory: &'static GuestMemory<'static, Arena>,
    pub log: &'static DirtyLog<'static>,
    pub unit: VirtioIommu,
    pub space: Layer<U>,
    pub host: U,
    pub requests: Queue,
    pub events: Queue,
}

pub fn config() -> VirtioConfig {
    VirtioConfig {
        width: 39,
        devices: guest::devices(),
    }
}

impl Machine {
    /// As at power on, with `tables` frames for the host's tables.
    pub fn with_tables(tables: u64) -> Self {
        let memory = Memory::new(FRAMES, MAX_TABLES);
        Self::over(memory, Willing::default(), tables)
    }

    pub fn at_power_on() -> Self {
        Self::with_tables(TABLES)
    }

    /// With a driver that took all features, endpoints bypassing nothing.
    pub fn new() -> Self {
        let mut machine = Self::at_power_on();
        machine.take_over();
        machine
    }
}

impl<U: HostUnit + Clone> Machine<U> {
    /// As at power on, over that unit of the host.
    pub fn over(memory: Memory, host: U, tables: u64) -> Self {
        memory.log.start();
        Self {
            space: layer(memory, host.clone(), tables),
            whole: memory,
            tables,
            memory: memory.guest,
            log: memory.log,
            unit: VirtioIommu::new(&config()),
            host,
            requests: Queue::new(REQUESTS, 0x1000),
            events: Queue::new(EVENTS, 0x2000),
        }
    }

    /// A driver takes all features and ends the bypass.
    pub fn take_over(&mut self) {
        self.settle();
        self.start(Features::all().bits());
        self.set_bypass(false);
        // Until then all could be written.
        self.clean();
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
            from = piece.range.behind();
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
        let portions = self.portions(portion);
        self.arrive(state.as_bytes(), &portions)
    }

    /// The mappings, in portions of up to `portion` bytes.
    pub fn portions(&self, portion: usize) -> Vec<Vec<u8>> {
        let mut portions = Vec::new();
        let mut cursor = Cursor::default();
        while self.unit.has_mappings(&self.space, cursor) {
            let mut bytes = vec![0; portion];
            let (unit, space) = (&self.unit, &self.space);
            let length = unit.save_mappings(space, &mut cursor, &mut bytes);
            bytes.truncate(length);
            portions.push(bytes);
        }
        portions
    }

    /// A new machine takes these over.
    pub fn arrive(&mut self, state: &[u8], portions: &[Vec<u8>]) -> Result<(), StateError> {
        self.space = layer(self.whole, self.host.clone(), self.tables);
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
