//! Frames for tables, given once at construction.

use super::PhysMemory;
use crate::{Hpa, PAGE_SIZE};
use core::sync::atomic::Ordering;

/// A pool of zeroed frames out of one contiguous range of host memory.
///
/// Free frames are chained through their own first word, so the pool needs no
/// memory beside them. A frame handed out is always zero.
#[derive(Debug)]
pub struct FramePool {
    /// The next frame that was never handed out.
    fresh: u64,
    /// The end of the range.
    end: u64,
    /// The first frame of the chain of returned ones; 0 ends the chain.
    returned: u64,
    free: u64,
    /// How often a frame came back.
    returns: u64,
}

impl FramePool {
    /// A pool of `frames` frames from `start` on. `start` is page aligned and not
    /// zero (zero ends the free chain); a range past 2^64 is cut short.
    pub fn new(start: Hpa, frames: u64) -> Self {
        let fresh = start.page_base().raw().max(PAGE_SIZE);
        let frames = frames.min((u64::MAX - fresh) / PAGE_SIZE);
        Self {
            fresh,
            end: fresh + frames * PAGE_SIZE,
            returned: 0,
            free: frames,
            returns: 0,
        }
    }

    /// How many frames can still be taken.
    pub fn available(&self) -> u64 {
        self.free
    }

    /// How often a frame came back so far. As long as this stays the same, every frame
    /// that was in use still is.
    pub fn returns(&self) -> u64 {
        self.returns
    }

    /// Takes a zeroed frame, or `None` when the pool is empty.
    pub fn take(&mut self, mem: &impl PhysMemory) -> Option<Hpa> {
        let hpa = if self.returned != 0 {
            let hpa = Hpa::new(self.returned);
            let link = &mem.frame(hpa)?.words()[0];
            self.returned = link.load(Ordering::Relaxed);
            link.store(0, Ordering::Relaxed);
            hpa
        } else if self.fresh < self.end {
            let hpa = Hpa::new(self.fresh);
            mem.frame(hpa)?.clear();
            self.fresh += PAGE_SIZE;
            hpa
        } else {
            return None;
        };
        self.free -= 1;
        Some(hpa)
    }

    /// Takes `frames` zeroed frames that lie one behind the other, or `None` when
    /// fewer than that were never handed out. For structures that are kept for good.
    pub fn take_run(&mut self, mem: &impl PhysMemory, frames: u64) -> Option<Hpa> {
        let start = self.fresh;
        let bytes = frames.checked_mul(PAGE_SIZE)?;
        let after = start.checked_add(bytes).filter(|it| *it <= self.end)?;
        for index in 0..frames {
            mem.frame(Hpa::new(start + index * PAGE_SIZE))?.clear();
        }
        self.fresh = after;
        self.free -= frames;
        Some(Hpa::new(start))
    }

    /// Gives a frame back that [`FramePool::take`] returned and that nothing,
    /// hardware included, refers to any more.
    pub fn give_back(&mut self, mem: &impl PhysMemory, hpa: Hpa) {
        if let Some(frame) = mem.frame(hpa) {
            frame.clear();
            self.give_back_zero(mem, hpa);
        }
    }

    /// Like [`FramePool::give_back`], of a frame that the caller left all zeros, as
    /// it was handed out.
    pub fn give_back_zero(&mut self, mem: &impl PhysMemory, hpa: Hpa) {
        if let Some(frame) = mem.frame(hpa) {
            debug_assert!(frame.is_zero(), "{hpa} is given back as zeros");
            frame.words()[0].store(self.returned, Ordering::Relaxed);
            self.returned = hpa.raw();
            self.free += 1;
            self.returns += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Arena;

    #[test]
    fn a_run_is_contiguous_zero_and_taken_whole_or_not_at_all() {
        let arena = Arena::new(Hpa::new(0x10000), 4);
        let mut pool = FramePool::new(arena.start(), 4);
        let one = pool.take(&arena).unwrap();
        pool.give_back(&arena, one);
        arena.frame(Hpa::new(0x12000)).unwrap().words()[7].store(1, Ordering::Relaxed);
        assert_eq!(pool.take_run(&arena, 4), None, "one is not fresh");
        assert_eq!(pool.take_run(&arena, u64::MAX), None);
        assert_eq!(pool.take_run(&arena, 3), Some(Hpa::new(0x11000)));
        assert!(arena.frame(Hpa::new(0x12000)).unwrap().is_zero());
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.take(&arena), Some(one));
    }

    #[test]
    fn frames_are_zero_distinct_and_limited() {
        let arena = Arena::new(Hpa::new(0x10000), 3);
        let mut pool = FramePool::new(arena.start(), 3);
        let frames: [Hpa; 3] = core::array::from_fn(|_| pool.take(&arena).unwrap());
        assert_eq!(pool.take(&arena), None);
        assert!(frames[0] != frames[1] && frames[1] != frames[2]);
        for hpa in frames {
            assert!(arena.frame(hpa).unwrap().is_zero());
            arena.frame(hpa).unwrap().words()[7].store(1, Ordering::Relaxed);
        }
        pool.give_back(&arena, frames[1]);
        pool.give_back(&arena, frames[0]);
        assert_eq!(pool.available(), 2);
        for _ in 0..2 {
            let hpa = pool.take(&arena).unwrap();
            assert!(arena.frame(hpa).unwrap().is_zero());
        }
        assert_eq!(pool.available(), 0);
    }
}
