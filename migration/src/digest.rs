//! The digest by which two copies of a page are compared in audit mode.

use core::sync::atomic::Ordering;
use hv_core::memory::Frame;

/// An odd constant with bits spread evenly (2^64 divided by the golden ratio).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A 64-bit digest of a page.
///
/// Each step is a bijection of the state for a given word and of the word for a
/// given state, so two pages that differ in exactly one word always differ in
/// digest. It guards against lost pages, not against a forger.
pub(crate) fn digest(frame: &Frame) -> u64 {
    frame.words().iter().fold(MULTIPLIER, |state, word| {
        (state ^ word.load(Ordering::Relaxed))
            .wrapping_mul(MULTIPLIER)
            .rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_single_bit_and_the_order_of_words_change_the_digest() {
        let frame = Frame::zeroed();
        let empty = digest(&frame);
        for (index, bit) in [(0, 0), (17, 63), (511, 31)] {
            frame.words()[index].store(1 << bit, Ordering::Relaxed);
            assert_ne!(digest(&frame), empty);
            frame.words()[index].store(0, Ordering::Relaxed);
        }
        frame.words()[0].store(1, Ordering::Relaxed);
        let first = digest(&frame);
        frame.words()[0].store(0, Ordering::Relaxed);
        frame.words()[1].store(1, Ordering::Relaxed);
        assert_ne!(digest(&frame), first);
    }
}
