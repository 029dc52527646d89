//! One page of memory as atomic words.

use crate::PAGE_SIZE;
use core::sync::atomic::{AtomicU64, Ordering};

/// The number of 64-bit words in a [`Frame`].
pub const WORDS_PER_FRAME: usize = PAGE_SIZE as usize / 8;

/// One 4 KiB page of memory that others may write at any time.
///
/// Bulk accesses are relaxed word by word: the caller gets no snapshot, only
/// words that were each there at some moment, which is all that hardware offers
/// either. Whoever needs an order (a table entry before an invalidation, a status
/// word after the data) uses the atomics in [`Frame::words`] with the order it
/// needs.
#[repr(C, align(4096))]
pub struct Frame([AtomicU64; WORDS_PER_FRAME]);

impl Frame {
    /// A frame of zeros.
    pub const fn zeroed() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS_PER_FRAME])
    }

    /// The words, lowest address first.
    pub fn words(&self) -> &[AtomicU64; WORDS_PER_FRAME] {
        &self.0
    }

    /// Sets every word to zero.
    pub fn clear(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Whether every word is zero.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Copies the whole frame into `to`, in memory order.
    pub fn copy_to(&self, to: &mut [u64; WORDS_PER_FRAME]) {
        for (to, from) in to.iter_mut().zip(&self.0) {
            *to = from.load(Ordering::Relaxed);
        }
    }

    /// Copies `from` over the whole frame.
    pub fn copy_from(&self, from: &[u64; WORDS_PER_FRAME]) {
        for (to, from) in self.0.iter().zip(from) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    /// Reads bytes from `offset` on; each aligned word is read at once, so that what a
    /// device writes in one piece is never seen half. Bytes past the frame's end are
    /// not read: the count that was is returned.
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) -> usize {
        let room = (PAGE_SIZE as usize).saturating_sub(offset).min(to.len());
        let mut at = offset;
        let mut rest = &mut to[..room];
        while !rest.is_empty() {
            let within = at % 8;
            let (head, tail) = rest.split_at_mut(rest.len().min(8 - within));
            let word = self.0[at / 8].load(Ordering::Acquire).to_le_bytes();
            head.copy_from_slice(&word[within..within + head.len()]);
            at += head.len();
            rest = tail;
        }
        room
    }

    /// Writes bytes from `offset` on, without disturbing their neighbours; each
    /// aligned word changes at once. Returns how many fitted in the frame.
    pub fn write_bytes(&self, offset: usize, from: &[u8]) -> usize {
        let room = (PAGE_SIZE as usize).saturating_sub(offset);
        let from = &from[..from.len().min(room)];
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let within = at % 8;
            let (head, tail) = rest.split_at(rest.len().min(8 - within));
            let mut bytes = [0; 8];
            let mut mask = [0; 8];
            bytes[within..within + head.len()].copy_from_slice(head);
            mask[within..within + head.len()].fill(0xff);
            let (value, mask) = (u64::from_le_bytes(bytes), u64::from_le_bytes(mask));
            let word = &self.0[at / 8];
            if mask == u64::MAX {
                word.store(value, Ordering::Release);
            } else {
                // A compare-exchange loop, so that a neighbour written meanwhile
                // by a device or another CPU survives.
                let mut old = word.load(Ordering::Relaxed);
                while let Err(now) = word.compare_exchange_weak(
                    old,
                    (old & !mask) | value,
                    Ordering::Release,
                    Ordering::Relaxed,
                ) {
                    old = now;
                }
            }
            at += head.len();
            rest = tail;
        }
        from.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_at_any_offset_read_back_and_leave_neighbours() {
        let frame = Frame::zeroed();
        for word in frame.words() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        let data: [u8; 21] = core::array::from_fn(|i| i as u8);
        assert_eq!(frame.write_bytes(5, &data), 21);
        let mut back = [0; 23];
        assert_eq!(frame.read_bytes(4, &mut back), 23);
        assert_eq!(back[0], 0xff);
        assert_eq!(back[1..22], data);
        assert_eq!(back[22], 0xff);
    }

    /// A completion that was read byte by byte had its phase of now and its id of
    /// before.
    #[test]
    fn a_word_that_changes_meanwhile_is_read_before_or_after_but_never_half() {
        let frame = Frame::zeroed();
        let done = core::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..2_000_000u64 {
                    let value = 0u64.wrapping_sub(round & 1);
                    frame.words()[1].store(value, Ordering::Release);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let mut bytes = [0; 16];
                frame.read_bytes(4, &mut bytes);
                assert!(bytes[4..12].iter().all(|byte| *byte == bytes[4]));
            }
        });
    }

    #[test]
    fn accesses_stop_at_the_end_of_the_frame() {
        let frame = Frame::zeroed();
        assert_eq!(frame.write_bytes(4094, &[1, 2, 3]), 2);
        assert_eq!(frame.write_bytes(5000, &[1]), 0);
        let mut back = [9; 3];
        assert_eq!(frame.read_bytes(4094, &mut back), 2);
        assert_eq!(back, [1, 2, 9]);
    }
}
