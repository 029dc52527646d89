//! What a guest of either vIOMMU has: memory from address 0 on, and two devices.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails its test")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by several test binaries, each of which uses a part"
)]

use hv_core::dirty::DirtyLog;
use hv_core::memory::{GuestMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Hpa, PAGE_SIZE};
use iommu::unit::SourceId;
use iommu::viommu::{Passthrough, Passthroughs};
use std::sync::atomic::AtomicU64;

pub const NIC: Passthrough = device(0x18, 0x0310);
pub const DISK: Passthrough = device(0x20, 0x0400);

const fn device(guest: u16, host: u16) -> Passthrough {
    Passthrough {
        guest: SourceId::new(guest),
        host: SourceId::new(host),
    }
}

pub fn devices() -> Passthroughs {
    let mut devices = Passthroughs::new();
    devices.push(NIC).unwrap();
    devices.push(DISK).unwrap();
    devices
}

/// The guest's memory, and what comes with it, for the life of the program.
#[derive(Clone, Copy)]
pub struct Memory {
    /// The host's memory: the guest's frames, then those of nobody yet.
    pub arena: &'static Arena,
    pub log: &'static DirtyLog<'static>,
    pub guest: &'static GuestMemory<'static, Arena>,
    /// The first frame of nobody.
    pub free: Hpa,
}

impl Memory {
    /// A guest with `frames` frames, and `more` of nobody.
    pub fn new(frames: u64, more: u64) -> Self {
        let base = Hpa::new(0x4000_0000);
        let arena = leak(Arena::new(base, (frames + more) as usize));
        let words = (0..DirtyLog::words_needed(frames)).map(|_| AtomicU64::new(0));
        let log = leak(DirtyLog::new(Vec::from_iter(words).leak(), frames));
        let mut memory = GuestMemory::new(arena, log);
        let slot = Slot {
            gfn: Gfn::new(0),
            hpa: base,
            frames,
        };
        memory.add_slot(slot).unwrap();
        Self {
            arena,
            log,
            guest: leak(memory),
            free: Hpa::new(base.raw() + frames * PAGE_SIZE),
        }
    }
}

fn leak<T>(it: T) -> &'static T {
    Box::leak(Box::new(it))
}
