//! The guest's physical memory: slots of host memory, and logged writes to it.

use super::{Frame, PhysMemory};
use crate::dirty::{DirtyLog, DirtySource};
use crate::{Gfn, Gpa, Hpa, PAGE_SHIFT, PAGE_SIZE};
use core::sync::atomic::Ordering;
use heapless::Vec;

/// How many slots a guest's memory may have.
pub const MAX_SLOTS: usize = 8;

/// A run of guest frames backed by as many contiguous host frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The first guest frame.
    pub gfn: Gfn,
    /// Where it lies in host memory, page aligned.
    pub hpa: Hpa,
    /// The number of frames.
    pub frames: u64,
}

/// The access lies, in whole or in part, where the guest has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest physical address {0} is outside the guest's memory")]
pub struct OutsideMemory(pub Gpa);

/// Why [`GuestMemory::add_slot`] refused a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddSlotError {
    /// There are [`MAX_SLOTS`] slots already.
    #[error("a guest has at most {MAX_SLOTS} memory slots")]
    TooMany,
    /// Empty, not page aligned, not backed by memory, or past the address space.
    #[error("the slot is empty, misaligned or not backed by memory")]
    Malformed,
    /// It shares a guest or a host frame with a slot that is there.
    #[error("the slot overlaps another one")]
    Overlap,
    /// The dirty log is too small to have a bit for each of its frames.
    #[error("the slot ends beyond the dirty log's last frame")]
    BeyondDirtyLog,
}

/// The memory of one guest.
///
/// Reads and writes go through here for everything that acts on the guest's
/// behalf (emulated devices, the vIOMMU's status writes). A write is marked in
/// the dirty log by the write itself, after the data, so no emulation can forget
/// it.
pub struct GuestMemory<'m, M> {
    mem: &'m M,
    log: &'m DirtyLog<'m>,
    slots: Vec<Slot, MAX_SLOTS>,
}

impl<'m, M: PhysMemory> GuestMemory<'m, M> {
    /// A guest without memory yet, whose writes are marked in `log`.
    pub fn new(mem: &'m M, log: &'m DirtyLog<'m>) -> Self {
        Self {
            mem,
            log,
            slots: Vec::new(),
        }
    }

    /// Gives the guest a run of memory. On an error nothing changes.
    pub fn add_slot(&mut self, slot: Slot) -> Result<(), AddSlotError> {
        let last = slot.frames.checked_sub(1).ok_or(AddSlotError::Malformed)?;
        let last_hpa = last
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| slot.hpa.checked_add(bytes))
            .ok_or(AddSlotError::Malformed)?;
        let last_gfn = slot
            .gfn
            .number()
            .checked_add(last)
            .ok_or(AddSlotError::Malformed)?;
        if !slot.hpa.is_page_aligned()
            || self.mem.frame(slot.hpa).is_none()
            || self.mem.frame(last_hpa).is_none()
        {
            return Err(AddSlotError::Malformed);
        }
        if last_gfn >= self.log.frames() {
            return Err(AddSlotError::BeyondDirtyLog);
        }
        let overlaps = self.slots.iter().any(|other| {
            let runs_meet = |a: u64, a_len: u64, b: u64, b_len: u64| a < b + b_len && b < a + a_len;
            runs_meet(
                slot.gfn.number(),
                slot.frames,
                other.gfn.number(),
                other.frames,
            ) || runs_meet(
                slot.hpa.raw() >> PAGE_SHIFT,
                slot.frames,
                other.hpa.raw() >> PAGE_SHIFT,
                other.frames,
            )
        });
        if overlaps {
            return Err(AddSlotError::Overlap);
        }
        self.slots.push(slot).map_err(|_| AddSlotError::TooMany)
    }

    /// The slots, in the order they were added.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The number of frames the guest has.
    pub fn frames(&self) -> u64 {
        self.slots.iter().map(|slot| slot.frames).sum()
    }

    /// The log that writes to this memory are marked in.
    pub fn log(&self) -> &'m DirtyLog<'m> {
        self.log
    }

    /// Where `gpa` lies in host memory.
    pub fn translate(&self, gpa: Gpa) -> Result<Hpa, OutsideMemory> {
        let gfn = Gfn::containing(gpa).number();
        self.slots
            .iter()
            .find_map(|slot| {
                let index = gfn.checked_sub(slot.gfn.number())?;
                (index < slot.frames)
                    .then(|| Hpa::new(slot.hpa.raw() + index * PAGE_SIZE + gpa.page_offset()))
            })
            .ok_or(OutsideMemory(gpa))
    }

    /// The guest frame backed by the host frame that holds `hpa`, if any.
    #[inline(always)]
    pub fn gfn_of(&self, hpa: Hpa) -> Option<Gfn> {
        let frame = hpa.raw() >> PAGE_SHIFT;
        self.slots.iter().find_map(|slot| {
            // Below the slot, it wraps around to more than any slot has.
            let index = frame.wrapping_sub(slot.hpa.raw() >> PAGE_SHIFT);
            (index < slot.frames).then(|| Gfn::new(slot.gfn.number() + index))
        })
    }

    /// The guest frames backed by `count` host frames from the one that holds `hpa`
    /// on: runs of them, each its first and how many. Host frames that back none are
    /// left out.
    pub fn runs_of(&self, hpa: Hpa, count: u64) -> impl Iterator<Item = (Gfn, u64)> {
        let mut at = hpa.raw() >> PAGE_SHIFT;
        let end = at.saturating_add(count);
        core::iter::from_fn(move || {
            while at < end {
                let index = |slot: &Slot| at.wrapping_sub(slot.hpa.raw() >> PAGE_SHIFT);
                if let Some(slot) = self.slots.iter().find(|slot| index(slot) < slot.frames) {
                    let gfn = Gfn::new(slot.gfn.number() + index(slot));
                    let count = (slot.frames - index(slot)).min(end - at);
                    at += count;
                    return Some((gfn, count));
                }
                at += 1;
            }
            None
        })
    }

    /// The frame `gfn`, to read. Whoever writes through it marks the log itself;
    /// prefer the write methods, which do.
    pub fn frame(&self, gfn: Gfn) -> Result<&'m Frame, OutsideMemory> {
        let hpa = self.translate(gfn.gpa())?;
        self.mem.frame(hpa).ok_or(OutsideMemory(gfn.gpa()))
    }

    /// Reads bytes; the range may cross frames. On an error some of `to` may have
    /// been filled.
    pub fn read(&self, gpa: Gpa, to: &mut [u8]) -> Result<(), OutsideMemory> {
        let mut at = gpa;
        let mut rest = to;
        while !rest.is_empty() {
            let frame = self.frame(Gfn::containing(at))?;
            let done = frame.read_bytes(at.page_offset() as usize, rest);
            rest = &mut rest[done..];
            at = at.checked_add(done as u64).ok_or(OutsideMemory(gpa))?;
        }
        Ok(())
    }

    /// Writes bytes and marks every frame touched as written by the hypervisor.
    /// The whole range is checked first: on an error nothing was written.
    pub fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), OutsideMemory> {
        let Some(last) = (from.len() as u64).checked_sub(1) else {
            return Ok(());
        };
        let last = gpa.checked_add(last).ok_or(OutsideMemory(gpa))?;
        for gfn in Gfn::containing(gpa).number()..=Gfn::containing(last).number() {
            self.frame(Gfn::new(gfn))?;
        }
        let mut at = gpa;
        let mut rest = from;
        while !rest.is_empty() {
            let gfn = Gfn::containing(at);
            let done = self
                .frame(gfn)?
                .write_bytes(at.page_offset() as usize, rest);
            // After the data: a drain between the two would send the old content
            // and clear the mark.
            self.log.mark(gfn, DirtySource::Hypervisor);
            rest = &rest[done..];
            at = Gpa::new(at.raw().wrapping_add(done as u64));
        }
        Ok(())
    }

    /// Reads the naturally aligned 64-bit word at `gpa` at once, with acquire
    /// order. A misaligned address counts as outside.
    pub fn read_u64(&self, gpa: Gpa) -> Result<u64, OutsideMemory> {
        if !gpa.raw().is_multiple_of(8) {
            return Err(OutsideMemory(gpa));
        }
        let frame = self.frame(Gfn::containing(gpa))?;
        Ok(frame.words()[gpa.page_offset() as usize / 8].load(Ordering::Acquire))
    }

    /// Writes a little-endian 32-bit word, logged.
    pub fn write_u32(&self, gpa: Gpa, value: u32) -> Result<(), OutsideMemory> {
        self.write(gpa, &value.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Arena;
    use core::sync::atomic::AtomicU64;

    const BASE: Hpa = Hpa::new(0x40_0000);

    fn with_guest(test: impl FnOnce(&mut GuestMemory<'_, Arena>)) {
        let arena = Arena::new(BASE, 16);
        let words: [AtomicU64; 8] = Default::default();
        let log = DirtyLog::new(&words, 64);
        log.start();
        let mut guest = GuestMemory::new(&arena, &log);
        guest
            .add_slot(Slot {
                gfn: Gfn::new(2),
                hpa: BASE,
                frames: 4,
            })
            .unwrap();
        test(&mut guest);
    }

    #[test]
    fn translation_goes_both_ways_and_ends_with_the_slot() {
        with_guest(|guest| {
            let hpa = guest.translate(Gpa::new(0x3123)).unwrap();
            assert_eq!(hpa.raw(), BASE.raw() + 0x1123);
            assert_eq!(guest.gfn_of(hpa), Some(Gfn::new(3)));
            for outside in [0x1fff, 0x6000, u64::MAX] {
                assert!(guest.translate(Gpa::new(outside)).is_err());
            }
            assert_eq!(guest.gfn_of(Hpa::new(BASE.raw() + 0x4000)), None);
        });
    }

    #[test]
    fn a_write_marks_every_frame_it_touches() {
        with_guest(|guest| {
            guest.write(Gpa::new(0x2ffe), &[1, 2, 3, 4]).unwrap();
            let mut back = [0; 4];
            guest.read(Gpa::new(0x2ffe), &mut back).unwrap();
            assert_eq!(back, [1, 2, 3, 4]);
            assert!(guest.log().is_marked(Gfn::new(2)));
            assert!(guest.log().is_marked(Gfn::new(3)));
            assert!(!guest.log().is_marked(Gfn::new(4)));
        });
    }

    #[test]
    fn a_write_that_ends_outside_changes_nothing() {
        with_guest(|guest| {
            assert!(guest.write(Gpa::new(0x5ffe), &[1; 4]).is_err());
            let mut back = [0; 2];
            guest.read(Gpa::new(0x5ffe), &mut back).unwrap();
            assert_eq!(back, [0, 0]);
            assert!(guest.log().is_clean());
        });
    }

    #[test]
    fn overlapping_and_unbacked_slots_are_refused() {
        with_guest(|guest| {
            let slot = |gfn, hpa, frames| Slot {
                gfn: Gfn::new(gfn),
                hpa: Hpa::new(hpa),
                frames,
            };
            let free = BASE.raw() + 0x8000;
            assert_eq!(guest.add_slot(slot(5, free, 1)), Err(AddSlotError::Overlap));
            assert_eq!(
                guest.add_slot(slot(9, BASE.raw(), 1)),
                Err(AddSlotError::Overlap)
            );
            assert_eq!(
                guest.add_slot(slot(9, free, 99)),
                Err(AddSlotError::Malformed)
            );
            assert_eq!(
                guest.add_slot(slot(63, free, 2)),
                Err(AddSlotError::BeyondDirtyLog)
            );
            assert_eq!(guest.add_slot(slot(9, free, 2)), Ok(()));
            assert_eq!(guest.frames(), 6);
        });
    }
}
