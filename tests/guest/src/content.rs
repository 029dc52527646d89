//! What a page holds, as a rule rather than as bytes.

use crate::rng::mix;

/// The number of 64-bit words in a page.
pub const WORDS: usize = 512;

/// Names the pattern that one write put down; unique to that write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp(pub u32);

impl Stamp {
    /// The word at `index` of the pattern.
    pub const fn word(self, index: usize) -> u64 {
        mix(((self.0 as u64) << 16) | index as u64)
    }
}

/// A run of words that a device transfer put over a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Patch {
    /// The pattern in the device's buffer.
    pub stamp: Stamp,
    /// The first word of the buffer that was used.
    pub from: u16,
    /// The first word of the page that was written.
    pub to: u16,
    /// The number of words; 0 for no patch at all.
    pub len: u16,
}

impl Patch {
    /// No patch.
    pub const NONE: Self = Self {
        stamp: Stamp(0),
        from: 0,
        to: 0,
        len: 0,
    };
}

/// How many transfers one page's content can tell apart.
pub const PATCHES: usize = 2;

/// What a page must hold: a full pattern and the patches put over it since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// The pattern the whole page was written with.
    pub base: Stamp,
    /// What was put over it later, oldest first.
    patches: [Patch; PATCHES],
}

impl Content {
    /// A page written in full with one pattern.
    pub const fn full(base: Stamp) -> Self {
        Self {
            base,
            patches: [Patch::NONE; PATCHES],
        }
    }

    /// Whether nothing was put over the full pattern.
    pub const fn is_plain(&self) -> bool {
        self.patches[0].len == 0
    }

    /// Puts a patch over it; one over the whole page replaces all before it. The
    /// caller sees to it that there are no more than [`PATCHES`] others: one too
    /// many replaces the youngest, and the page would then be reported as lost.
    pub fn put(&mut self, patch: Patch) {
        if usize::from(patch.len) == WORDS {
            self.patches = [Patch::NONE; PATCHES];
        }
        let free = self.patches.iter().position(|patch| patch.len == 0);
        self.patches[free.unwrap_or(PATCHES - 1)] = patch;
    }

    /// The word at `index`, below [`WORDS`].
    pub fn word(&self, index: usize) -> u64 {
        for patch in self.patches.iter().rev() {
            let to = usize::from(patch.to);
            if (to..to + usize::from(patch.len)).contains(&index) {
                return patch.stamp.word(index - to + usize::from(patch.from));
            }
        }
        self.base.word(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_patch_wins_where_patches_overlap() {
        let mut content = Content::full(Stamp(1));
        let patch = |stamp, to| Patch {
            stamp: Stamp(stamp),
            from: 3,
            to,
            len: 10,
        };
        content.put(patch(2, 0));
        assert!(!content.is_plain());
        content.put(patch(3, 5));
        assert_eq!(content.word(4), Stamp(2).word(7));
        assert_eq!(content.word(5), Stamp(3).word(3));
        assert_eq!(content.word(15), Stamp(1).word(15));
    }
}
