//! The mappings as the interface sees them, and their dirty bits.
//!
//! The native layer keeps mappings in the hardware's tables. What VFIO knows
//! beyond that is here: whether the caller's address is valid, and, while dirty
//! pages are tracked, a bit a page for what no table shows, which is the writes of
//! emulated devices. A mapping that devices may not write has no bits, so it
//! cannot be dirty.
//!
//! Mappings are in the order of their IOVAs, and so are their bits, back to back.
//! A request speaks of a run of mappings, so of a run of bits too, and removing
//! either is one move of what lies behind.

use super::VfioError;
use super::sorted::List;
use crate::DirtyBitmap;
use crate::space::Access;
use crate::tables::Pages;
use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;
use bitvec::view::BitView;
use core::ops::Range;
use hv_core::{Gfn, Gpa};

/// Memory for one mapping.
#[derive(Clone, Copy, Debug)]
pub struct MappingSlot {
    pub(super) pages: Pages,
    /// Behind the first page.
    pub(super) gfn: Gfn,
    pub(super) access: Access,
    pub(super) vaddr_is_valid: bool,
    /// Where its bits begin while dirty pages are tracked.
    first_word: usize,
}

impl Default for MappingSlot {
    fn default() -> Self {
        let page = Pages { first: 0, last: 0 };
        Self::new(page, Gpa::new(0), Access::Read)
    }
}

impl MappingSlot {
    pub(super) const fn new(pages: Pages, gpa: Gpa, access: Access) -> Self {
        Self {
            pages,
            gfn: Gfn::containing(gpa),
            access,
            vaddr_is_valid: true,
            first_word: 0,
        }
    }

    /// The guest frame behind `page`, which is one of this mapping.
    pub(super) const fn gfn_of(&self, page: u64) -> Gfn {
        Gfn::new(self.gfn.number() + (page - self.pages.first))
    }

    /// Whether devices may do all of that.
    pub(super) const fn permits(&self, access: Access) -> bool {
        (self.access.reads() || !access.reads()) && (self.access.writes() || !access.writes())
    }

    /// How many words its bits take, `None` if more than there can be.
    fn words(&self) -> Option<usize> {
        if !self.access.writes() {
            return Some(0);
        }
        usize::try_from(DirtyBitmap::words_needed(self.pages.count())).ok()
    }
}

/// All mappings of a container.
#[derive(Debug)]
pub(super) struct Mappings<'c> {
    list: List<'c, MappingSlot>,
    words: &'c mut [u64],
    used_words: usize,
    tracking: bool,
    invalid_vaddrs: usize,
}

impl<'c> Mappings<'c> {
    pub(super) fn new(slots: &'c mut [MappingSlot], words: &'c mut [u64]) -> Self {
        Self {
            list: List::new(slots),
            words,
            used_words: 0,
            tracking: false,
            invalid_vaddrs: 0,
        }
    }

    /// How many more there may be.
    pub(super) fn available(&self) -> usize {
        self.list.capacity() - self.list.len()
    }

    /// The bytes of memory for bits.
    pub(super) fn bitmap_bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    pub(super) fn all(&self) -> &[MappingSlot] {
        &self.list
    }

    /// Whether the caller's address of some mapping is invalid.
    pub(super) fn has_invalid_vaddr(&self) -> bool {
        self.invalid_vaddrs > 0
    }

    /// Says of a run of mappings whether the caller's addresses are valid.
    pub(super) fn set_vaddr_validity(&mut self, run: Range<usize>, is_valid: bool) {
        for mapping in &mut self.list[run] {
            self.invalid_vaddrs += usize::from(mapping.vaddr_is_valid);
            mapping.vaddr_is_valid = is_valid;
            self.invalid_vaddrs -= usize::from(is_valid);
        }
    }

    /// Which mappings `pages` touches.
    pub(super) fn touched(&self, pages: Pages) -> Range<usize> {
        let start = self
            .list
            .partition_point(|mapping| mapping.pages.last < pages.first);
        let end = self
            .list
            .partition_point(|mapping| mapping.pages.first <= pages.last);
        start..end.max(start)
    }

    /// The mapping `page` belongs to.
    pub(super) fn containing(&self, page: u64) -> Option<&MappingSlot> {
        let index = self.index_of(page)?;
        self.list.get(index)
    }

    fn index_of(&self, page: u64) -> Option<usize> {
        let index = self
            .list
            .partition_point(|mapping| mapping.pages.last < page);
        let mapping = self.list.get(index)?;
        (mapping.pages.first <= page).then_some(index)
    }

    /// Whether `pages` begins or ends inside a mapping.
    pub(super) fn bisects(&self, pages: Pages) -> bool {
        self.list[self.touched(pages)]
            .iter()
            .any(|mapping| mapping.pages.first < pages.first || pages.last < mapping.pages.last)
    }

    /// Whether there is memory for `mapping`.
    pub(super) fn check_room(&self, mapping: &MappingSlot) -> Result<(), VfioError> {
        let free = self.words.len() - self.used_words;
        if self.available() == 0 {
            return Err(VfioError::TooManyMappings);
        }
        if self.tracking && mapping.words().is_none_or(|words| words > free) {
            return Err(VfioError::OutOfMemory);
        }
        Ok(())
    }

    /// Adds a mapping that overlaps none, with clear bits. On an error nothing
    /// changes.
    pub(super) fn insert(&mut self, mut mapping: MappingSlot) -> Result<(), VfioError> {
        self.check_room(&mapping)?;
        let index = self.touched(mapping.pages).start;
        if self.tracking {
            let words = mapping.words().ok_or(VfioError::OutOfMemory)?;
            mapping.first_word = self.word_at(index);
            let end = mapping.first_word + words;
            self.words
                .copy_within(mapping.first_word..self.used_words, end);
            self.words[mapping.first_word..end].fill(0);
            self.used_words += words;
            for later in &mut self.list[index..] {
                later.first_word += words;
            }
        }
        self.list
            .insert(index, mapping)
            .map_err(|_| VfioError::TooManyMappings)
    }

    /// Forgets a run of mappings.
    pub(super) fn remove(&mut self, run: Range<usize>) {
        self.set_vaddr_validity(run.clone(), true);
        if self.tracking {
            let words = self.word_at(run.start)..self.word_at(run.end);
            self.words
                .copy_within(words.end..self.used_words, words.start);
            self.used_words -= words.len();
            for later in &mut self.list[run.end..] {
                later.first_word -= words.len();
            }
        }
        self.list.remove(run);
    }

    pub(super) fn is_tracking(&self) -> bool {
        self.tracking
    }

    /// Gives every mapping clear bits. On an error nothing changes.
    pub(super) fn start_tracking(&mut self) -> Result<(), VfioError> {
        let total = self
            .list
            .iter()
            .try_fold(0usize, |sum, mapping| sum.checked_add(mapping.words()?))
            .filter(|total| *total <= self.words.len())
            .ok_or(VfioError::OutOfMemory)?;
        let mut next = 0;
        for mapping in self.list.iter_mut() {
            mapping.first_word = next;
            next += mapping.words().unwrap_or(0);
        }
        self.words[..total].fill(0);
        self.used_words = total;
        self.tracking = true;
        Ok(())
    }

    /// Drops all bits.
    pub(super) fn stop_tracking(&mut self) {
        self.used_words = 0;
        self.tracking = false;
    }

    /// Sets the bit of `page`, if it can be dirty and that is tracked.
    pub(super) fn mark(&mut self, page: u64) {
        if let Some(index) = self.index_of(page) {
            let offset = page - self.list[index].pages.first;
            if let Some(bits) = self.bits(index) {
                bits.set(offset as usize, true);
            }
        }
    }

    /// Sets the bit of every page that can be dirty.
    pub(super) fn mark_all(&mut self) {
        for index in 0..self.list.len() {
            if let Some(bits) = self.bits(index) {
                bits.fill(true);
            }
        }
    }

    /// Sets in `bitmap`, which begins at `first`, the bits of a mapping.
    pub(super) fn report(&mut self, index: usize, first: u64, bitmap: &mut DirtyBitmap<'_>) {
        let at = self.list[index].pages.first - first;
        if let Some(bits) = self.bits(index) {
            for offset in bits.iter_ones() {
                bitmap.set(at + offset as u64, 1);
            }
        }
    }

    /// Clears the bits of a mapping.
    pub(super) fn forget(&mut self, index: usize) {
        if let Some(bits) = self.bits(index) {
            bits.fill(false);
        }
    }

    /// The bits of a mapping that can be dirty.
    fn bits(&mut self, index: usize) -> Option<&mut BitSlice<u64, Lsb0>> {
        let mapping = self.list.get(index)?;
        if !self.tracking || !mapping.access.writes() {
            return None;
        }
        let pages = mapping.pages.count() as usize;
        let end = mapping.first_word + mapping.words()?;
        self.words[mapping.first_word..end]
            .view_bits_mut()
            .get_mut(..pages)
    }

    /// Where the bits of the mapping at `index` begin, or would.
    fn word_at(&self, index: usize) -> usize {
        self.list
            .get(index)
            .map_or(self.used_words, |mapping| mapping.first_word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn mapping(first: u64, count: u64, access: Access) -> MappingSlot {
        let last = first + count - 1;
        MappingSlot::new(Pages { first, last }, Gpa::new(0), access)
    }

    fn dirty(mappings: &mut Mappings<'_>, index: usize) -> std::vec::Vec<u64> {
        let first = mappings.all()[index].pages.first;
        let bits = mappings.bits(index).unwrap();
        bits.iter_ones().map(|bit| first + bit as u64).collect()
    }

    #[test]
    fn bits_keep_to_their_mapping_when_others_come_and_go() {
        let mut slots = [MappingSlot::default(); 4];
        let mut words = [u64::MAX; 4];
        let mut mappings = Mappings::new(&mut slots, &mut words);
        mappings
            .insert(mapping(100, 65, Access::ReadWrite))
            .unwrap();
        mappings.start_tracking().unwrap();
        mappings.mark(164);
        mappings.insert(mapping(10, 1, Access::Write)).unwrap();
        mappings.insert(mapping(50, 1, Access::Read)).unwrap();
        mappings
            .insert(mapping(200, 64, Access::ReadWrite))
            .unwrap();
        mappings.mark(10);
        mappings.mark(50);
        mappings.mark(263);
        assert_eq!(dirty(&mut mappings, 0), [10]);
        assert!(mappings.bits(1).is_none());
        assert_eq!(dirty(&mut mappings, 2), [164]);
        mappings.remove(0..2);
        assert_eq!(dirty(&mut mappings, 0), [164]);
        assert_eq!(dirty(&mut mappings, 1), [263]);
        mappings
            .insert(mapping(20, 128, Access::Write))
            .unwrap_err();
        mappings.insert(mapping(20, 64, Access::Write)).unwrap();
        assert_eq!(dirty(&mut mappings, 0), [0; 0], "freed words are clean");
    }

    #[test]
    fn a_mapping_of_more_than_two_to_the_31_pages_can_be_tracked() {
        let pages = (1 << 31) + 1;
        let mut slots = [MappingSlot::default(); 1];
        let mut words = vec![0; DirtyBitmap::words_needed(pages) as usize];
        let (_, one_less) = words.split_at_mut(1);
        let large = mapping(5, pages, Access::ReadWrite);
        let mut mappings = Mappings::new(&mut slots, one_less);
        mappings.insert(large).unwrap();
        assert_eq!(mappings.start_tracking(), Err(VfioError::OutOfMemory));

        let mut mappings = Mappings::new(&mut slots, &mut words);
        mappings.insert(large).unwrap();
        mappings.start_tracking().unwrap();
        mappings.mark(5 + pages - 1);
        mappings.mark(5 + pages);
        assert_eq!(dirty(&mut mappings, 0), [5 + pages - 1]);
    }
}
