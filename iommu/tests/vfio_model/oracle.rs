//! What the front must do, by a map of pages.

use crate::steps::Unmap;
use crate::vfio_support::*;
use crate::{FRAMES, MAPPINGS, PINS, WORDS};
use iommu::space::Access;
use iommu::vfio::Group;
use iommu::vfio::abi::MapFlags;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a page that is mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// The mapping it belongs to.
    pub(super) first: u64,
    pub(super) pages: u64,
    pub(super) gfn: u64,
    pub(super) flags: MapFlags,
    pub(super) vaddr_is_valid: bool,
    pub(super) pins: u32,
    pub(super) dirty: bool,
}

impl Page {
    pub(super) fn permits(&self, access: Access) -> bool {
        (!access.reads() || self.flags.contains(MapFlags::READ))
            && (!access.writes() || self.is_writable())
    }

    pub(super) fn is_writable(&self) -> bool {
        self.flags.contains(MapFlags::WRITE)
    }
}

#[derive(Default)]
pub(super) struct Oracle {
    pub(super) pages: BTreeMap<u64, Page>,
    pub(super) tracking: bool,
    /// The groups attached, and whether they write pinned pages only.
    pub(super) groups: Vec<(Group, bool)>,
}

impl Oracle {
    pub(super) fn in_range(&self, page: u64, pages: u64) -> Vec<(u64, Page)> {
        let range = self.pages.range(page..page + pages);
        range.map(|(number, page)| (*number, *page)).collect()
    }

    pub(super) fn bisects(&self, page: u64, pages: u64) -> bool {
        self.in_range(page, pages)
            .iter()
            .any(|(_, p)| p.first < page || p.first + p.pages > page + pages)
    }

    pub(super) fn mappings(&self) -> BTreeSet<u64> {
        self.pages.values().map(|page| page.first).collect()
    }

    /// The words that bits of all writable mappings take.
    pub(super) fn words(&self) -> u64 {
        let firsts = self.mappings();
        let firsts = firsts.iter().map(|first| &self.pages[first]);
        firsts
            .filter(|page| page.is_writable())
            .map(|page| page.pages.div_ceil(64))
            .sum()
    }

    pub(super) fn any_vaddr_invalid(&self) -> bool {
        self.pages.values().any(|page| !page.vaddr_is_valid)
    }

    pub(super) fn is_attached(&self, group: Group) -> bool {
        self.groups.iter().any(|(attached, _)| *attached == group)
    }

    pub(super) fn map(&mut self, page: u64, pages: u64, gfn: u64, flags: MapFlags) -> i32 {
        let there = self.in_range(page, pages);
        if flags == MapFlags::VADDR {
            let Some((_, first)) = there.first() else {
                return ENOENT;
            };
            let same = (first.first, first.pages, first.gfn) == (page, pages, gfn);
            if first.vaddr_is_valid || !same {
                return EINVAL;
            }
            for (_, page) in self.pages.range_mut(page..page + pages) {
                page.vaddr_is_valid = true;
            }
            return OK;
        }
        if !there.is_empty() {
            return EEXIST;
        }
        if self.mappings().len() == MAPPINGS {
            return ENOSPC;
        }
        if gfn + pages > FRAMES {
            return EFAULT;
        }
        let words = u64::from(flags.contains(MapFlags::WRITE)) * pages.div_ceil(64);
        if self.tracking && self.words() + words > WORDS {
            return ENOMEM;
        }
        for index in 0..pages {
            let new = Page {
                first: page,
                pages,
                gfn: gfn + index,
                flags,
                vaddr_is_valid: true,
                pins: 0,
                dirty: false,
            };
            self.pages.insert(page + index, new);
        }
        OK
    }

    /// The errno, and the pages that were touched.
    pub(super) fn unmap(
        &mut self,
        page: u64,
        pages: u64,
        kind: Unmap,
        words: &mut [u64],
    ) -> (i32, u64) {
        if matches!(kind, Unmap::Vaddr) && self.is_attached(EMULATED) {
            return (EBUSY, pages);
        }
        if matches!(kind, Unmap::Bitmap { .. }) && !self.tracking || self.bisects(page, pages) {
            return (EINVAL, pages);
        }
        let there = self.in_range(page, pages);
        let count = there.len() as u64;
        if matches!(kind, Unmap::Vaddr) {
            if there.iter().any(|(_, page)| !page.vaddr_is_valid) {
                return (EINVAL, pages);
            }
            for (_, page) in self.pages.range_mut(page..page + pages) {
                page.vaddr_is_valid = false;
            }
            return (OK, count);
        }
        if matches!(kind, Unmap::Bitmap { .. }) {
            self.report(page, pages, words);
        }
        for (number, _) in there {
            self.pages.remove(&number);
        }
        (OK, count)
    }

    /// As Linux copies it: mapping by mapping, in whole words from its first bit.
    pub(super) fn report(&self, page: u64, pages: u64, words: &mut [u64]) {
        let unpinned_writer = self.groups.iter().any(|(_, pinned_only)| !pinned_only);
        for (number, p) in self.in_range(page, pages) {
            let bit = number - page;
            if number == p.first {
                let end = (bit + p.pages).next_multiple_of(64);
                for clear in bit..end {
                    words[clear as usize / 64] &= !(1 << (clear % 64));
                }
            }
            if p.is_writable() && (p.dirty || unpinned_writer) {
                words[bit as usize / 64] |= 1 << (bit % 64);
            }
        }
    }

    pub(super) fn get(&mut self, page: u64, pages: u64, words: &mut [u64]) -> i32 {
        if !self.tracking || self.bisects(page, pages) {
            return EINVAL;
        }
        self.report(page, pages, words);
        for (_, page) in self.pages.range_mut(page..page + pages) {
            page.dirty = page.pins > 0 && page.is_writable();
        }
        OK
    }

    pub(super) fn start(&mut self) -> i32 {
        if self.tracking {
            return OK;
        }
        if self.words() > WORDS {
            return ENOMEM;
        }
        self.tracking = true;
        for page in self.pages.values_mut() {
            page.dirty = page.pins > 0 && page.is_writable();
        }
        OK
    }

    pub(super) fn stop(&mut self) {
        self.tracking = false;
        for page in self.pages.values_mut() {
            page.dirty = false;
        }
    }

    pub(super) fn check_access(&self, page: u64, pages: u64, access: Access) -> i32 {
        for number in page..page + pages {
            match self.pages.get(&number) {
                None => return EINVAL,
                Some(page) if !page.permits(access) => return EPERM,
                Some(_) => {}
            }
        }
        OK
    }

    pub(super) fn pin(&mut self, group: Group, page: u64, pages: u64, access: Access) -> i32 {
        if self.any_vaddr_invalid() {
            return EBUSY;
        }
        if !self.is_attached(group) {
            return EINVAL;
        }
        let mut pinned = self.pages.values().filter(|page| page.pins > 0).count();
        for number in page..page + pages {
            let errno = self.check_access(number, 1, access);
            if errno != OK {
                return errno;
            }
            pinned += usize::from(self.pages[&number].pins == 0);
            if pinned > PINS {
                return ENOMEM;
            }
        }
        for (_, page) in self.pages.range_mut(page..page + pages) {
            page.pins += 1;
            page.dirty |= page.pins == 1 && self.tracking && page.is_writable();
        }
        for attached in &mut self.groups {
            attached.1 |= attached.0 == group;
        }
        OK
    }

    pub(super) fn unpin(&mut self, page: u64, pages: u64) -> u64 {
        for number in page..page + pages {
            let Some(page) = self.pages.get_mut(&number) else {
                return number - page;
            };
            page.pins = page.pins.saturating_sub(1);
        }
        pages
    }

    pub(super) fn write(&mut self, page: u64, pages: u64) -> i32 {
        if self.any_vaddr_invalid() {
            return EBUSY;
        }
        let errno = self.check_access(page, pages, Access::Write);
        if errno == OK && self.tracking {
            for (_, page) in self.pages.range_mut(page..page + pages) {
                page.dirty = true;
            }
        }
        errno
    }

    pub(super) fn attach(&mut self, group: Group) -> i32 {
        if self.any_vaddr_invalid() {
            return EBUSY;
        }
        if self.is_attached(group) {
            return EINVAL;
        }
        self.groups.push((group, group == EMULATED));
        OK
    }

    pub(super) fn detach(&mut self, group: Group) -> i32 {
        let Some(index) = self
            .groups
            .iter()
            .position(|(attached, _)| *attached == group)
        else {
            return EINVAL;
        };
        let (_, pinned_only) = self.groups.remove(index);
        if !pinned_only && self.tracking {
            for page in self.pages.values_mut() {
                page.dirty = page.is_writable();
            }
        }
        if self.groups.is_empty() {
            self.pages.clear();
        }
        OK
    }
}
