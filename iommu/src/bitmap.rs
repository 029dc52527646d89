//! The dirty bitmap an unmap can be asked for.

use hv_core::dirty::bit_runs;
use zerocopy::IntoBytes;

/// One bit a page: bit `i` stands for the page at the request's IOVA + `i` pages.
///
/// Lowest bit of the lowest byte first. That is VFIO's layout on a little-endian
/// machine, where it is an array of 64-bit words too. Bits are only ever set, so a
/// caller who wants an exact result passes zeroed memory, and may collect several
/// results in the same memory.
#[derive(Debug)]
pub struct DirtyBitmap<'b> {
    bytes: &'b mut [u8],
}

impl<'b> DirtyBitmap<'b> {
    /// A bitmap in `words`, with whatever is in them.
    pub fn new(words: &'b mut [u64]) -> Self {
        Self::from_bytes(words.as_mut_bytes())
    }

    /// A bitmap in `bytes`, of any alignment, with whatever is in them.
    pub fn from_bytes(bytes: &'b mut [u8]) -> Self {
        Self { bytes }
    }

    /// How many 64-bit words a range of `pages` takes.
    pub const fn words_needed(pages: u64) -> u64 {
        pages.div_ceil(64)
    }

    /// How many pages it has bits for.
    pub fn pages(&self) -> u64 {
        self.bytes.len() as u64 * 8
    }

    /// Sets the bits of `count` pages from page `first` on. Pages without a bit
    /// are left out; the layer has checked that there are none.
    pub(crate) fn set(&mut self, first: u64, count: u64) {
        self.change(first, count, |word, bits| word | bits);
    }

    /// Sets the bit of `page`.
    #[inline]
    pub(crate) fn set_one(&mut self, page: u64) {
        let index = usize::try_from(page / 8).ok();
        if let Some(byte) = index.and_then(|index| self.bytes.get_mut(index)) {
            *byte |= 1 << (page % 8);
        }
    }

    /// Clears the bits of `count` pages from page `first` on.
    pub(crate) fn clear(&mut self, first: u64, count: u64) {
        self.change(first, count, |word, bits| word & !bits);
    }

    /// Replaces each word that has bits of these pages by what `change` makes of it
    /// and those bits.
    fn change(&mut self, first: u64, count: u64, change: impl Fn(u64, u64) -> u64) {
        let end = first.saturating_add(count).min(self.pages());
        let (words, rest) = self.bytes.as_chunks_mut::<8>();
        for (index, bits) in bit_runs(first, end) {
            match words.get_mut(index) {
                Some(word) => *word = change(u64::from_le_bytes(*word), bits).to_le_bytes(),
                // The last bytes, if they make no word.
                None => {
                    for (byte, bits) in rest.iter_mut().zip(bits.to_le_bytes()) {
                        *byte = change(u64::from(*byte), u64::from(bits)) as u8;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_lowest_first_and_the_others_stay() {
        let mut words = [1 << 63, 0];
        let mut bitmap = DirtyBitmap::new(&mut words);
        assert_eq!(bitmap.pages(), 128);
        bitmap.set(0, 2);
        bitmap.set_one(64);
        bitmap.set_one(128);
        bitmap.set(127, 5);
        bitmap.set(128, 1);
        assert_eq!(words, [(1 << 63) | 3, (1 << 63) | 1]);
        assert_eq!(DirtyBitmap::words_needed(65), 2);
    }

    #[test]
    fn bits_are_cleared_where_asked_and_nowhere_else() {
        let mut words = [u64::MAX; 2];
        let mut bitmap = DirtyBitmap::new(&mut words);
        bitmap.clear(63, 2);
        bitmap.clear(128, 64);
        bitmap.clear(u64::MAX, u64::MAX);
        assert_eq!(words, [u64::MAX >> 1, u64::MAX - 1]);
    }
}
