//! An ordered list in memory that the caller gave.
//!
//! Insertion and removal move what lies behind: a copy of memory, in return for
//! which a look-up is a binary search and a run of entries is a slice.

use core::ops::{Deref, DerefMut, Range};

/// The list is as long as its memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A list whose order is the user's concern.
#[derive(Debug)]
pub(super) struct List<'c, T> {
    slots: &'c mut [T],
    len: usize,
}

impl<'c, T: Copy> List<'c, T> {
    pub(super) fn new(slots: &'c mut [T]) -> Self {
        Self { slots, len: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Inserts before the entry at `index`, which is at most the length.
    pub(super) fn insert(&mut self, index: usize, entry: T) -> Result<(), Full> {
        if self.len == self.slots.len() || index > self.len {
            return Err(Full);
        }
        self.slots.copy_within(index..self.len, index + 1);
        self.slots[index] = entry;
        self.len += 1;
        Ok(())
    }

    /// Removes a run of entries; what of it does not exist is left out.
    pub(super) fn remove(&mut self, run: Range<usize>) {
        let end = run.end.min(self.len);
        let start = run.start.min(end);
        self.slots.copy_within(end..self.len, start);
        self.len -= end - start;
    }
}

impl<T> Deref for List<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.slots[..self.len]
    }
}

impl<T> DerefMut for List<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.slots[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_move_apart_and_together() {
        let mut memory = [0; 4];
        let mut list = List::new(&mut memory);
        for (index, entry) in [(0, 3), (0, 1), (1, 2), (3, 4)] {
            list.insert(index, entry).unwrap();
        }
        assert_eq!(*list, [1, 2, 3, 4]);
        assert_eq!(list.insert(0, 9), Err(Full));
        list.remove(1..3);
        assert_eq!(*list, [1, 4]);
        list.remove(1..9);
        list.remove(7..9);
        assert_eq!(*list, [1]);
        assert_eq!(list.insert(2, 9), Err(Full), "no gap is left");
    }
}
