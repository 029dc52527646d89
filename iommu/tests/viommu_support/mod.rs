//! A guest with an emulated VT-d unit over a host side that watches it.
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
    unused_imports,
    reason = "shared by several test binaries, each of which uses a part"
)]

#[path = "../guest_support/mod.rs"]
mod guest;
mod space;

pub use guest::{DISK, Memory, NIC};
pub use space::{FakeSpace, Pages};

use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use hv_core::{Gfn, Gpa};
use iommu::space::{Access, Attachment, Mapping};
use iommu::viommu::vtd::{VtdConfig, VtdViommu};
use iommu::viommu::{Passthrough, Service, Viommu};
use iommu::vtd::registers::{GCMD, GSTS, IQA, IQH, IQT, RTADDR};
use iommu::vtd::{
    AddressWidth, ContextEntry, Descriptor, Global, IotlbScope, RootEntry, StatusWrite,
    TranslationType,
};
use std::sync::atomic::Ordering;

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

/// A guest, its unit, and the host side.
pub struct Machine {
    pub memory: &'static GuestMemory<'static, Arena>,
    pub unit: VtdViommu,
    pub space: FakeSpace,
}

pub fn config() -> VtdConfig {
    VtdConfig {
        width: AddressWidth::Bits39,
        devices: guest::devices(),
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
        Self {
            memory: Memory::new(FRAMES, 0).guest,
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
            if self.unit.service(self.memory, &mut self.space, 7) == Ok(Service::Idle) {
                return;
            }
        }
        panic!("the unit never comes to rest");
    }

    /// One step of work.
    pub fn step(&mut self) -> Service {
        self.unit.service(self.memory, &mut self.space, 1).unwrap()
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
