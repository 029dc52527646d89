//! The four bytes a page has in the tracker.
//!
//! ```text
//!  31     29 28            24 23              13 12 11                0
//! [ copies  | emulated devices | read-only maps  | W | writable maps   ]  W = 1
//! [ copies  | emulated devices | read-only maps  | W | epoch           ]  W = 0
//! ```
//!
//! As long as a device can write the page (W), nobody asks when one last could: so
//! the number of mappings that let it and the epoch in which the last of them went
//! share their bits. Epoch 0 means that there never was one.
//!
//! Words are compared without branches, so that compilers do several at once.

use super::{Epoch, Holder, Holders, LastWritable};

/// W: some mapping permits writes.
const WRITABLE: u32 = 1 << 12;
/// Bits 11:0.
const VALUE: u32 = WRITABLE - 1;
/// W and the bits below it.
const WRITERS: u32 = WRITABLE | VALUE;
/// Of [`WRITERS`]: exactly one mapping permits writes.
const ONE_WRITER: u32 = WRITABLE | 1;

/// How many words are looked at as one, for they may well be equal.
const AS_ONE: usize = 64;

/// Where a word keeps one of the other counts.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    bits: u32,
}

impl Field {
    const READ_ONLY: Self = Self {
        shift: 13,
        bits: 11,
    };
    const EMULATED_DEVICES: Self = Self { shift: 24, bits: 5 };
    const COPIES: Self = Self { shift: 29, bits: 3 };

    /// Of a holder; `None` for a mapping that permits writes.
    const fn of(holder: Holder) -> Option<Self> {
        match holder {
            Holder::Mapping(access) if access.writes() => None,
            Holder::Mapping(_) => Some(Self::READ_ONLY),
            Holder::EmulatedDevice => Some(Self::EMULATED_DEVICES),
            Holder::Copy => Some(Self::COPIES),
        }
    }

    const fn mask(self) -> u32 {
        ((1 << self.bits) - 1) << self.shift
    }

    const fn count(self, word: u32) -> u32 {
        (word & self.mask()) >> self.shift
    }
}

/// Which of `words` cannot count `holder` once more: the index of the first one.
pub(super) fn first_full(words: &[u32], holder: Holder) -> Option<usize> {
    let full = Field::of(holder).map_or(WRITERS, Field::mask);
    let is_full = |word: &u32| word & full == full;
    // All are looked at in any case: without a way out, many are at once.
    let any = words.iter().fold(false, |any, word| any | is_full(word));
    any.then(|| words.iter().position(is_full)).flatten()
}

/// Counts `holder` once more in each of `words`, none of which is full. Returns how
/// many of the pages no device could write before, and one can now.
pub(super) fn add(words: &mut [u32], holder: Holder) -> u32 {
    match Field::of(holder) {
        Some(field) => change(words, |word| (word + (1 << field.shift), false)),
        None => change(words, |word| {
            let is_new = word & WRITABLE == 0;
            // The epoch makes way for the count.
            let counted = if is_new {
                word & !WRITERS | WRITABLE
            } else {
                word
            };
            (counted + 1, is_new)
        }),
    }
}

/// Counts `holder` once less in each of `words`; one without such a holder stays as it
/// is. Returns how many of the pages no device can write any more; `now` is noted in
/// their words.
#[inline(always)]
pub(super) fn remove(words: &mut [u32], holder: Holder, now: Epoch) -> u32 {
    let Some(field) = Field::of(holder) else {
        return change(words, |word| {
            let held = word & WRITABLE != 0;
            debug_assert!(held, "a page is unpinned more often than pinned");
            let is_last = word & WRITERS == ONE_WRITER;
            let noted = word & !WRITERS | u32::from(now.number());
            let less = word - u32::from(held);
            (if is_last { noted } else { less }, is_last)
        });
    };
    change(words, |word| {
        let held = word & field.mask() != 0;
        debug_assert!(held, "a page is unpinned more often than pinned");
        (word - (u32::from(held) << field.shift), false)
    })
}

/// Replaces each word by what `new` makes of it, and returns of how many it says that
/// they count.
///
/// Pages that are mapped together mostly have the same word. Whether they have is
/// quickly seen, and then `new` is asked once for all.
#[inline(always)]
fn change(words: &mut [u32], new: impl Fn(u32) -> (u32, bool)) -> u32 {
    if let [word] = words {
        let (changed, counts) = new(*word);
        *word = changed;
        return u32::from(counts);
    }
    let (whole, rest) = words.as_chunks_mut::<AS_ONE>();
    let counted: u32 = whole.iter_mut().map(|some| change_some(some, &new)).sum();
    counted + change_some(rest, &new)
}

#[inline(always)]
fn change_some(words: &mut [u32], new: impl Fn(u32) -> (u32, bool)) -> u32 {
    let Some(&first) = words.first() else {
        return 0;
    };
    if words.iter().fold(0, |any, word| any | (word ^ first)) == 0 {
        let (word, counts) = new(first);
        words.fill(word);
        return u32::from(counts) * words.len() as u32;
    }
    let mut counted = 0;
    for word in words {
        let (changed, counts) = new(*word);
        *word = changed;
        counted += u32::from(counts);
    }
    counted
}

/// Whether anybody holds the page.
pub(super) const fn is_held(word: u32) -> bool {
    word & !VALUE != 0
}

/// Whether a device can write the page.
pub(super) const fn is_writable(word: u32) -> bool {
    word & WRITABLE != 0
}

/// Who holds the page.
pub(super) const fn holders(word: u32) -> Holders {
    Holders {
        writable: if is_writable(word) { word & VALUE } else { 0 },
        read_only: Field::READ_ONLY.count(word),
        emulated_devices: Field::EMULATED_DEVICES.count(word),
        copies: Field::COPIES.count(word),
    }
}

/// When a device could last write the page.
pub(super) const fn last_writable(word: u32) -> LastWritable {
    match (is_writable(word), (word & VALUE) as u16) {
        (true, _) => LastWritable::Now,
        (false, 0) => LastWritable::Never,
        (false, epoch) => LastWritable::In(Epoch(epoch)),
    }
}
