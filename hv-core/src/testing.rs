//! Host-side stand-ins for hardware, for the tests of every crate.

use crate::memory::{Frame, PhysMemory};
use crate::{Hpa, PAGE_SIZE};
use std::vec::Vec;

/// Physical memory out of the test's heap.
pub struct Arena {
    start: Hpa,
    frames: Vec<Frame>,
}

impl Arena {
    /// `frames` zeroed frames that appear from `start` (page aligned) on.
    pub fn new(start: Hpa, frames: usize) -> Self {
        Self {
            start,
            frames: core::iter::repeat_with(Frame::zeroed)
                .take(frames)
                .collect(),
        }
    }

    /// The address of the first frame.
    pub fn start(&self) -> Hpa {
        self.start
    }
}

impl PhysMemory for Arena {
    fn frame(&self, hpa: Hpa) -> Option<&Frame> {
        if !hpa.is_page_aligned() {
            return None;
        }
        let index = hpa.raw().checked_sub(self.start.raw())? / PAGE_SIZE;
        self.frames.get(usize::try_from(index).ok()?)
    }
}
