//! Memory: frames of atomic words, the pool they come from, and the guest's view.

mod frame;
mod guest;
mod pool;

pub use frame::{Frame, WORDS_PER_FRAME};
pub use guest::{AddSlotError, GuestMemory, MAX_SLOTS, OutsideMemory, Slot};
pub use pool::FramePool;

use crate::Hpa;

/// Host physical memory.
///
/// The one trait through which tables, queues and guest pages are reached. It
/// hands out frames of atomic words, because devices, guests and other CPUs
/// write to the same memory at any time; that makes everything built on it safe
/// code.
pub trait PhysMemory {
    /// The frame at `hpa`, which must be page aligned; `None` where there is no
    /// memory that the hypervisor owns.
    fn frame(&self, hpa: Hpa) -> Option<&Frame>;
}

impl<T: PhysMemory + ?Sized> PhysMemory for &T {
    fn frame(&self, hpa: Hpa) -> Option<&Frame> {
        (**self).frame(hpa)
    }
}
