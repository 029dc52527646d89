//! Blocks that were read, kept where the device wrote them.
//!
//! Nobody writes there afterwards but the device, and the guest's kernel unmapped the
//! page when the read was complete. If the hypervisor loses such a write on the way to
//! another machine, nothing in the guest puts it right: the block here is an old one.

use crate::block::Block;

/// How many blocks are kept: for longer than a migration takes.
const PLACES: usize = 256;

/// What a block was when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) place: u64,
    pub(crate) generation: u64,
}

/// Some blocks, the oldest of which is replaced.
pub(crate) struct Shelf {
    blocks: Vec<Box<Block>>,
    labels: Vec<Option<Label>>,
    next: usize,
}

impl Shelf {
    /// An empty one. Its pages are all written once: the kernel would clear each at
    /// its first use, and the processor's write would hide the device's.
    pub(crate) fn new() -> Self {
        let blocks = (0..PLACES as u64).map(|place| {
            let mut block = Block::new();
            block.fill(u64::MAX, place);
            block
        });
        Self {
            blocks: blocks.collect(),
            labels: vec![None; PLACES],
            next: 0,
        }
    }

    /// The place to read into next.
    pub(crate) fn place(&mut self) -> &mut Block {
        &mut self.blocks[self.next]
    }

    /// What is in that place, if anything was kept there.
    pub(crate) fn oldest(&self) -> Option<(Label, &Block)> {
        Some((self.labels[self.next]?, &self.blocks[self.next]))
    }

    /// Keeps what was read there, if it is worth keeping, and goes on to the next.
    pub(crate) fn keep(&mut self, label: Option<Label>) {
        self.labels[self.next] = label;
        self.next = (self.next + 1) % PLACES;
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back_when_all_others_were_kept_after_it() {
        let mut shelf = Shelf::new();
        let label = Label {
            place: 7,
            generation: 3,
        };
        assert!(shelf.oldest().is_none());
        shelf.place().fill(7, 3);
        shelf.keep(Some(label));
        for _ in 1..shelf.places() {
            assert!(shelf.oldest().is_none());
            shelf.keep(None);
        }
        let (found, block) = shelf.oldest().unwrap();
        assert_eq!((found, block.fault(7, 3)), (label, None));
    }
}
