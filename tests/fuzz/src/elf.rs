//! A guest image from anywhere.

use hv_core::boot::{self, Payload};
use hv_core::dirty::DirtyLog;
use hv_core::memory::{GuestMemory, Slot};
use hv_core::testing::Arena;
use hv_core::{Gfn, Hpa};
use std::sync::atomic::AtomicU64;

/// The least memory that a guest can have.
const FRAMES: u64 = 512;

pub(crate) fn run(input: &[u8]) {
    let arena = Arena::new(Hpa::new(0x20_0000), FRAMES as usize);
    let words: [AtomicU64; 9] = Default::default();
    let log = DirtyLog::new(&words, FRAMES);
    let mut memory = GuestMemory::new(&arena, &log);
    let slot = Slot {
        gfn: Gfn::new(0),
        hpa: arena.start(),
        frames: FRAMES,
    };
    memory.add_slot(slot).unwrap();
    let _ = boot::load(
        &memory,
        &Payload {
            image: input,
            initramfs: &[],
            command_line: "seed=1",
            cpus: 1,
        },
        &[],
    );
}
