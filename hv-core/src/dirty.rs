//! The dirty log: which guest frames were written since they were last sent.
//!
//! This is where the layers meet. CPU writes (harvested from nested paging),
//! device writes (harvested from the IOMMU or reported by an unmap) and writes by
//! the hypervisor's own emulation are all marked here by guest frame, and the
//! migration engine drains it.
//!
//! ```text
//!  summary   1 bit per leaf word      [....1.............]
//!                                          |
//!  leaves    1 bit per guest frame    [..1.|.1...........]   64 frames a word
//! ```
//!
//! Clean regions cost one summary bit per 64 frames, and one load per 4,096.
//!
//! # Ordering
//! [`DirtyLog::mark`] sets the leaf bit first, then the summary bit.
//! [`DirtyLog::drain`] clears the summary word first, then each leaf word. Were
//! either the other way round, a mark between the two steps of a drain could
//! leave a leaf bit under a clear summary bit, and the frame would never be sent.
//! As it is, the worst case is a summary bit over an empty leaf word, which costs
//! one load at the next drain.
//!
//! A marker marks *after* the write it reports is visible, and the engine reads
//! the page *after* it drained the bit; both sides use acquire-release operations
//! on the leaf word, so a page is never read older than its mark.

use crate::Gfn;
use crate::sabotage::{Sabotage, is_active};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Who found out that a frame was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtySource {
    /// A guest CPU, seen in the nested page tables.
    Cpu,
    /// A device that could still write the page when it was harvested.
    Mapped,
    /// A device that could write the page until an unmap took it away.
    Unmap,
    /// The hypervisor, on behalf of an emulated device.
    Hypervisor,
}

impl DirtySource {
    /// Every source, in the order of its counters.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Mapped, Self::Unmap, Self::Hypervisor];
}

/// A two-level bitmap of guest frames, safe to mark from several CPUs.
///
/// It records only between [`DirtyLog::start`] and [`DirtyLog::stop`]; at other
/// times a mark costs one load.
pub struct DirtyLog<'m> {
    leaves: &'m [AtomicU64],
    summary: &'m [AtomicU64],
    frames: u64,
    recording: AtomicBool,
    marks: [AtomicU64; DirtySource::ALL.len()],
}

impl<'m> DirtyLog<'m> {
    /// How many words of memory a log of `frames` frames takes: one bit a frame
    /// and one bit for each 64 of them.
    pub const fn words_needed(frames: u64) -> u64 {
        let leaves = frames.div_ceil(64);
        leaves + leaves.div_ceil(64)
    }

    /// A log for guest frames `0..frames` in `memory`. Frames for which `memory`
    /// is too small are left out; [`DirtyLog::frames`] says how many there are.
    pub fn new(memory: &'m [AtomicU64], frames: u64) -> Self {
        let wanted = frames.div_ceil(64);
        let fits = memory.len() as u64 * 64 / 65;
        let leaf_words = wanted.min(fits) as usize;
        let (leaves, rest) = memory.split_at(leaf_words);
        let summary = &rest[..leaf_words.div_ceil(64).min(rest.len())];
        for word in memory {
            word.store(0, Ordering::Relaxed);
        }
        Self {
            leaves,
            summary,
            frames: frames
                .min(summary.len() as u64 * 4096)
                .min(leaf_words as u64 * 64),
            recording: AtomicBool::new(false),
            marks: Default::default(),
        }
    }

    /// The number of frames that can be marked, from frame 0 on.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Starts recording with an empty log and counters at zero. The caller makes
    /// sure that the first full copy is made, and other trackers are started,
    /// after this returns.
    pub fn start(&self) {
        for word in self.summary.iter().chain(self.leaves) {
            word.store(0, Ordering::Relaxed);
        }
        for count in &self.marks {
            count.store(0, Ordering::Relaxed);
        }
        self.recording.store(true, Ordering::SeqCst);
    }

    /// Stops recording. What is marked stays until the next start.
    pub fn stop(&self) {
        self.recording.store(false, Ordering::SeqCst);
    }

    /// Whether marks are recorded at present.
    pub fn is_recording(&self) -> bool {
        self.recording.load(Ordering::SeqCst)
    }

    /// Records that `gfn` was written. Call it after the write can be seen.
    /// A frame outside the log is ignored: it is not guest memory.
    #[inline]
    pub fn mark(&self, gfn: Gfn, source: DirtySource) {
        let number = gfn.number();
        if number < self.frames && self.records(source) {
            self.mark_word((number / 64) as usize, 1 << (number % 64));
            self.marks[source as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that `count` frames from `first` on were written: like
    /// [`DirtyLog::mark`] of each, at the cost of one mark for 64 of them.
    pub fn mark_run(&self, first: Gfn, count: u64, source: DirtySource) {
        let first = first.number();
        let end = first.saturating_add(count).min(self.frames);
        if first < end && self.records(source) {
            for (word, bits) in bit_runs(first, end) {
                self.mark_word(word, bits);
            }
            self.marks[source as usize].fetch_add(end - first, Ordering::Relaxed);
        }
    }

    /// Whether what `source` marks is recorded at present.
    #[inline]
    fn records(&self, source: DirtySource) -> bool {
        let is_lost = source == DirtySource::Hypervisor && is_active(Sabotage::EmulationDirty);
        self.is_recording() && !is_lost
    }

    /// Marks frames of one leaf word.
    #[inline]
    fn mark_word(&self, word: usize, bits: u64) {
        // Leaf before summary: see the module's section on ordering.
        self.leaves[word].fetch_or(bits, Ordering::AcqRel);
        self.summary[word / 64].fetch_or(1 << (word % 64), Ordering::AcqRel);
    }

    /// Takes up to 64 marked frames at or after `from` out of the log, or `None`
    /// when nothing is marked from there on.
    ///
    /// The frames are no longer marked when this returns, so the caller must read
    /// and send each of them afterwards, or mark it again. To drain the log, call
    /// it with [`Batch::resume_at`] of each batch until it returns `None`.
    pub fn drain(&self, from: Gfn) -> Option<Batch> {
        let first_word = usize::try_from(from.number() / 64).ok()?;
        let mut word = first_word;
        while word < self.leaves.len() {
            let summary = &self.summary[word / 64];
            let below = (1u64 << (word % 64)) - 1;
            let candidates = summary.load(Ordering::Acquire) & !below;
            if candidates == 0 {
                word = (word / 64 + 1) * 64;
                continue;
            }
            word = word / 64 * 64 + candidates.trailing_zeros() as usize;
            let wanted = if word == first_word {
                u64::MAX << (from.number() % 64)
            } else {
                u64::MAX
            };
            let summary_bit = 1 << (word % 64);
            // Summary before leaf: see the module's section on ordering. Bits of
            // the leaf that are not wanted keep their summary bit.
            summary.fetch_and(!summary_bit, Ordering::AcqRel);
            let bits = self.leaves[word].fetch_and(!wanted, Ordering::AcqRel);
            if bits & !wanted != 0 {
                summary.fetch_or(summary_bit, Ordering::AcqRel);
            }
            if bits & wanted != 0 {
                return Some(Batch {
                    base: word as u64 * 64,
                    bits: bits & wanted,
                });
            }
            word += 1;
        }
        None
    }

    /// Whether `gfn` is marked.
    pub fn is_marked(&self, gfn: Gfn) -> bool {
        let bit = 1 << (gfn.number() % 64);
        gfn.number() < self.frames
            && self.leaves[(gfn.number() / 64) as usize].load(Ordering::Acquire) & bit != 0
    }

    /// Whether nothing is marked. Exact only while nobody marks.
    pub fn is_clean(&self) -> bool {
        self.count() == 0
    }

    /// How many frames are marked. Exact only while nobody marks.
    pub fn count(&self) -> u64 {
        let mut count = 0;
        for (index, summary) in self.summary.iter().enumerate() {
            let mut words = summary.load(Ordering::Acquire);
            while words != 0 {
                let leaf = index * 64 + words.trailing_zeros() as usize;
                count += u64::from(self.leaves[leaf].load(Ordering::Acquire).count_ones());
                words &= words - 1;
            }
        }
        count
    }

    /// How often `source` marked a frame since the last start. A frame marked
    /// twice between two drains counts twice.
    pub fn marks_by(&self, source: DirtySource) -> u64 {
        self.marks[source as usize].load(Ordering::Relaxed)
    }
}

/// The bits from number `first` up to `end`, which is greater, in words of 64: the
/// index of each word and its bits.
#[inline]
pub fn bit_runs(first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut at = first;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let word = at / 64;
        let stop = end.min((word + 1) * 64);
        // Bits from `at` on, less those from `stop` on; 64 is no shift of 64 bits.
        let bits = u64::MAX << (at % 64) & u64::MAX >> (stop.wrapping_neg() % 64);
        at = stop;
        Some((word as usize, bits))
    })
}

/// Up to 64 frames taken out of the log, in ascending order when iterated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    base: u64,
    bits: u64,
}

impl Batch {
    /// Where the next call of [`DirtyLog::drain`] goes on.
    pub fn resume_at(&self) -> Gfn {
        Gfn::new(self.base + 64)
    }

    /// The number of frames left in the batch.
    pub fn len(&self) -> u32 {
        self.bits.count_ones()
    }

    /// Whether no frame is left in the batch.
    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }
}

impl Iterator for Batch {
    type Item = Gfn;

    fn next(&mut self) -> Option<Gfn> {
        if self.bits == 0 {
            return None;
        }
        let bit = self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        Some(Gfn::new(self.base + u64::from(bit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn storage(frames: u64) -> Vec<AtomicU64> {
        core::iter::repeat_with(|| AtomicU64::new(0))
            .take(DirtyLog::words_needed(frames) as usize)
            .collect()
    }

    fn drain_all(log: &DirtyLog<'_>) -> Vec<u64> {
        let mut from = Gfn::new(0);
        let mut frames = Vec::new();
        while let Some(batch) = log.drain(from) {
            from = batch.resume_at();
            frames.extend(batch.map(Gfn::number));
        }
        frames
    }

    #[test]
    fn memory_for_n_frames_holds_n_frames() {
        for frames in [1, 63, 64, 65, 4096, 4097, 100_000] {
            let memory = storage(frames);
            assert_eq!(DirtyLog::new(&memory, frames).frames(), frames);
        }
        assert_eq!(DirtyLog::new(&[], 10).frames(), 0);
    }

    #[test]
    fn marks_are_drained_once_and_counted_by_source() {
        let memory = storage(10_000);
        let log = DirtyLog::new(&memory, 10_000);
        log.mark(Gfn::new(1), DirtySource::Cpu);
        assert!(log.is_clean(), "not recording yet");
        log.start();
        for gfn in [9_999, 0, 64, 64, 4_097] {
            log.mark(Gfn::new(gfn), DirtySource::Unmap);
        }
        log.mark(Gfn::new(10_000), DirtySource::Cpu);
        assert_eq!(log.count(), 4);
        assert_eq!(drain_all(&log), [0, 64, 4_097, 9_999]);
        assert!(log.is_clean());
        assert_eq!(log.marks_by(DirtySource::Unmap), 5);
        assert_eq!(log.marks_by(DirtySource::Cpu), 0);
    }

    #[test]
    fn a_run_marks_each_of_its_frames_and_no_other() {
        let memory = storage(300);
        let log = DirtyLog::new(&memory, 300);
        for (first, count) in [(0, 1), (63, 2), (60, 140), (64, 64), (290, 20), (299, 1)] {
            log.start();
            log.mark_run(Gfn::new(first), count, DirtySource::Unmap);
            let end = (first + count).min(300);
            assert_eq!(drain_all(&log), (first..end).collect::<Vec<_>>());
            assert_eq!(log.marks_by(DirtySource::Unmap), end - first);
        }
        log.start();
        log.mark_run(Gfn::new(5), 0, DirtySource::Unmap);
        log.mark_run(Gfn::new(300), u64::MAX, DirtySource::Unmap);
        assert!(log.is_clean());
    }

    #[test]
    fn a_drain_from_the_middle_of_a_word_leaves_what_is_before_it() {
        let memory = storage(128);
        let log = DirtyLog::new(&memory, 128);
        log.start();
        log.mark(Gfn::new(3), DirtySource::Cpu);
        log.mark(Gfn::new(5), DirtySource::Cpu);
        let batch = log.drain(Gfn::new(4)).unwrap();
        assert_eq!(batch.map(Gfn::number).collect::<Vec<_>>(), [5]);
        assert_eq!(drain_all(&log), [3]);
    }

    #[test]
    fn concurrent_marks_are_never_lost() {
        const FRAMES: u64 = 5_000;
        let memory = storage(FRAMES);
        let log = DirtyLog::new(&memory, FRAMES);
        log.start();
        let mut seen = BTreeSet::new();
        std::thread::scope(|scope| {
            let markers: Vec<_> = (0..2)
                .map(|offset| {
                    let log = &log;
                    scope.spawn(move || {
                        for gfn in (offset..FRAMES).step_by(2) {
                            log.mark(Gfn::new(gfn), DirtySource::Cpu);
                        }
                    })
                })
                .collect();
            while !markers.iter().all(|marker| marker.is_finished()) {
                seen.extend(drain_all(&log));
            }
        });
        seen.extend(drain_all(&log));
        assert_eq!(seen.len() as u64, FRAMES);
    }
}
