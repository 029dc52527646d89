//! Random requests, compared with a naive oracle that knows pages only.
//!
//! `PROPTEST_CASES` says how many sequences are tried.

mod common;
mod vfio_support;

use hv_core::{Gfn, PAGE_SIZE};
use iommu::Iova;
use iommu::space::Access;
use iommu::vfio::abi::{DirtyFlags, MapFlags, UnmapFlags};
use iommu::vfio::{DeviceAccess, Group};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use vfio_support::*;

const MAPPINGS: usize = 8;
const WORDS: u64 = 6;
const PINS: usize = 6;
const FRAMES: u64 = 40;

#[derive(Clone, Copy, Debug)]
enum Unmap {
    Plain,
    All,
    Vaddr,
    Bitmap { before: u64 },
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        page: u64,
        pages: u64,
        gfn: u64,
        flags: u32,
    },
    Unmap {
        page: u64,
        pages: u64,
        kind: Unmap,
    },
    Start,
    Stop,
    Get {
        page: u64,
        pages: u64,
        before: u64,
    },
    Pin {
        group: Group,
        page: u64,
        pages: u64,
        access: Access,
    },
    Unpin {
        page: u64,
        pages: u64,
    },
    Write {
        page: u64,
        pages: u64,
    },
    Attach(Group),
    Detach(Group),
}

fn page() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..12u64, 2 => 60..70u64]
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..6u64, 1 => 6..150u64]
}

fn group() -> impl Strategy<Value = Group> {
    prop_oneof![3 => Just(EMULATED), 1 => Just(REAL)]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::ReadWrite)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let before = || prop_oneof![Just(0), Just(u64::MAX)];
    let kind = prop_oneof![
        2 => Just(Unmap::Plain),
        1 => Just(Unmap::All),
        2 => Just(Unmap::Vaddr),
        4 => before().prop_map(|before| Unmap::Bitmap { before }),
    ];
    // Mostly frames that are there in the length asked for.
    let map = (page(), pages(), 0..44u64, 1..=4u32).prop_map(|(page, pages, gfn, flags)| {
        let gfn = if pages < 6 { gfn } else { gfn % 4 };
        Step::Map {
            page,
            pages,
            gfn,
            flags,
        }
    });
    prop_oneof![
        8 => map,
        6 => (page(), pages(), kind).prop_map(|(page, pages, kind)| Step::Unmap { page, pages, kind }),
        2 => Just(Step::Start),
        1 => Just(Step::Stop),
        6 => (page(), pages(), before())
            .prop_map(|(page, pages, before)| Step::Get { page, pages, before }),
        6 => (group(), page(), 1..4u64, access())
            .prop_map(|(group, page, pages, access)| Step::Pin { group, page, pages, access }),
        3 => (page(), 1..6u64).prop_map(|(page, pages)| Step::Unpin { page, pages }),
        6 => (page(), 1..4u64).prop_map(|(page, pages)| Step::Write { page, pages }),
        2 => group().prop_map(Step::Attach),
        1 => group().prop_map(Step::Detach),
    ]
}

/// What is known of a page that is mapped.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// The mapping it belongs to.
    first: u64,
    pages: u64,
    gfn: u64,
    flags: MapFlags,
    vaddr_is_valid: bool,
    pins: u32,
    dirty: bool,
}

impl Page {
    fn permits(&self, access: Access) -> bool {
        (!access.reads() || self.flags.contains(MapFlags::READ))
            && (!access.writes() || self.is_writable())
    }

    fn is_writable(&self) -> bool {
        self.flags.contains(MapFlags::WRITE)
    }
}

#[derive(Default)]
struct Oracle {
    pages: BTreeMap<u64, Page>,
    tracking: bool,
    /// The groups attached, and whether they write pinned pages only.
    groups: Vec<(Group, bool)>,
}

impl Oracle {
    fn in_range(&self, page: u64, pages: u64) -> Vec<(u64, Page)> {
        let range = self.pages.range(page..page + pages);
        range.map(|(number, page)| (*number, *page)).collect()
    }

    fn bisects(&self, page: u64, pages: u64) -> bool {
        self.in_range(page, pages)
            .iter()
            .any(|(_, p)| p.first < page || p.first + p.pages > page + pages)
    }

    fn mappings(&self) -> BTreeSet<u64> {
        self.pages.values().map(|page| page.first).collect()
    }

    /// The words that bits of all writable mappings take.
    fn words(&self) -> u64 {
        let firsts = self.mappings();
        let firsts = firsts.iter().map(|first| &self.pages[first]);
        firsts
            .filter(|page| page.is_writable())
            .map(|page| page.pages.div_ceil(64))
            .sum()
    }

    fn any_vaddr_invalid(&self) -> bool {
        self.pages.values().any(|page| !page.vaddr_is_valid)
    }

    fn is_attached(&self, group: Group) -> bool {
        self.groups.iter().any(|(attached, _)| *attached == group)
    }

    fn map(&mut self, page: u64, pages: u64, gfn: u64, flags: MapFlags) -> i32 {
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
    fn unmap(&mut self, page: u64, pages: u64, kind: Unmap, words: &mut [u64]) -> (i32, u64) {
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
    fn report(&self, page: u64, pages: u64, words: &mut [u64]) {
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

    fn get(&mut self, page: u64, pages: u64, words: &mut [u64]) -> i32 {
        if !self.tracking || self.bisects(page, pages) {
            return EINVAL;
        }
        self.report(page, pages, words);
        for (_, page) in self.pages.range_mut(page..page + pages) {
            page.dirty = page.pins > 0 && page.is_writable();
        }
        OK
    }

    fn start(&mut self) -> i32 {
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

    fn stop(&mut self) {
        self.tracking = false;
        for page in self.pages.values_mut() {
            page.dirty = false;
        }
    }

    fn check_access(&self, page: u64, pages: u64, access: Access) -> i32 {
        for number in page..page + pages {
            match self.pages.get(&number) {
                None => return EINVAL,
                Some(page) if !page.permits(access) => return EPERM,
                Some(_) => {}
            }
        }
        OK
    }

    fn pin(&mut self, group: Group, page: u64, pages: u64, access: Access) -> i32 {
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

    fn unpin(&mut self, page: u64, pages: u64) -> u64 {
        for number in page..page + pages {
            let Some(page) = self.pages.get_mut(&number) else {
                return number - page;
            };
            page.pins = page.pins.saturating_sub(1);
        }
        pages
    }

    fn write(&mut self, page: u64, pages: u64) -> i32 {
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

    fn attach(&mut self, group: Group) -> i32 {
        if self.any_vaddr_invalid() {
            return EBUSY;
        }
        if self.is_attached(group) {
            return EINVAL;
        }
        self.groups.push((group, group == EMULATED));
        OK
    }

    fn detach(&mut self, group: Group) -> i32 {
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

fn run(front: &mut Front<'_, '_>, steps: &[Step]) {
    let mut oracle = Oracle::default();
    front.container.register_device();
    for step in steps {
        do_step(front, &mut oracle, step.clone());
        check_native(front, &oracle);
    }
}

fn do_step(front: &mut Front<'_, '_>, oracle: &mut Oracle, step: Step) {
    match step {
        Step::Map {
            page,
            pages,
            gfn,
            flags,
        } => {
            let flags = MapFlags::from_bits_truncate(flags);
            let expected = oracle.map(page, pages, gfn, flags);
            assert_eq!(front.map(page, pages, gfn, flags), expected, "{step:?}");
        }
        Step::Unmap { page, pages, kind } => unmap(front, oracle, page, pages, kind),
        Step::Start => assert_eq!(front.track(DirtyFlags::START), oracle.start()),
        Step::Stop => {
            oracle.stop();
            assert_eq!(front.track(DirtyFlags::STOP), OK);
        }
        Step::Get {
            page,
            pages,
            before,
        } => {
            let mut expected = vec![before; pages.div_ceil(64) as usize];
            let mut words = expected.clone();
            let errno = oracle.get(page, pages, &mut expected);
            assert_eq!(front.get_bitmap(page, pages, &mut words), errno, "{step:?}");
            assert_eq!(words, expected, "{step:?}");
        }
        Step::Pin {
            group,
            page,
            pages,
            access,
        } => {
            // More often than devices are asked to unpin would be another story.
            if oracle
                .in_range(page, pages)
                .iter()
                .any(|(_, page)| page.pins >= 8)
            {
                return;
            }
            let expected = oracle.pin(group, page, pages, access);
            let mut frames = vec![Gfn::new(u64::MAX); pages as usize];
            let result = front
                .container
                .pin_pages(group, at(page), access, &mut frames);
            assert_eq!(errno(result), expected, "{step:?}");
            if expected == OK {
                let there = oracle.in_range(page, pages);
                let expected = there.iter().map(|(_, page)| Gfn::new(page.gfn));
                assert!(expected.eq(frames), "{step:?}");
            }
        }
        Step::Unpin { page, pages } => {
            let expected = oracle.unpin(page, pages);
            assert_eq!(front.unpin(page, pages), expected, "{step:?}");
        }
        Step::Write { page, pages } => {
            // From the last byte of the first page to the first of the last.
            let data = vec![1; ((pages - 1) * PAGE_SIZE + 2) as usize];
            let start = Iova::new(page * PAGE_SIZE + 0xfff);
            let result = front.container.write(start, &data);
            assert_eq!(errno(result), oracle.write(page, pages + 1), "{step:?}");
        }
        Step::Attach(group) => {
            let expected = oracle.attach(group);
            assert_eq!(errno(front.container.attach_group(group)), expected);
        }
        Step::Detach(group) => {
            let expected = oracle.detach(group);
            assert_eq!(errno(front.container.detach_group(group)), expected);
        }
    }
}

fn unmap(front: &mut Front<'_, '_>, oracle: &mut Oracle, page: u64, pages: u64, kind: Unmap) {
    let request = (page, pages, kind);
    let (page, pages) = match kind {
        Unmap::All => (0, 1 << 40),
        _ => (page, pages),
    };
    let Unmap::Bitmap { before } = kind else {
        let (errno, count) = oracle.unmap(page, pages, kind, &mut []);
        let answer = match kind {
            Unmap::All => front.unmap(0, 0, UnmapFlags::ALL),
            Unmap::Vaddr => front.unmap(page, pages, UnmapFlags::VADDR),
            _ => front.unmap(page, pages, UnmapFlags::empty()),
        };
        // On an error the size stays what it was.
        let size = match (errno, kind) {
            (OK, _) | (_, Unmap::Plain | Unmap::Vaddr) => count * PAGE_SIZE,
            _ => 0,
        };
        assert_eq!(answer, (errno, size), "{request:?}");
        return;
    };
    let mut expected = vec![before; pages.div_ceil(64) as usize];
    let mut words = expected.clone();
    let answer = oracle.unmap(page, pages, kind, &mut expected);
    assert_eq!(
        front.unmap_bitmap(page, pages, &mut words),
        answer,
        "{request:?}"
    );
    assert_eq!(words, expected, "{request:?}");
}

/// The native layer knows the same mappings and pins.
fn check_native(front: &mut Front<'_, '_>, oracle: &Oracle) {
    let mut writable = [0; FRAMES as usize];
    let mut read_only = [0; FRAMES as usize];
    let mut pinned = [0; FRAMES as usize];
    for page in oracle.pages.values() {
        let gfn = page.gfn as usize;
        writable[gfn] += u32::from(page.is_writable());
        read_only[gfn] += u32::from(!page.is_writable());
        pinned[gfn] += u32::from(page.pins > 0);
    }
    let iommu = front.container.iommu();
    for gfn in 0..FRAMES as usize {
        let holders = iommu.holders(Gfn::new(gfn as u64));
        assert_eq!(holders.writable, writable[gfn]);
        assert_eq!(holders.read_only, read_only[gfn]);
        assert_eq!(holders.emulated_devices, pinned[gfn]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_front_does_what_a_map_of_pages_would(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let given = Given {
            mappings: MAPPINGS,
            words: WORDS as usize,
            pins: PINS,
            ..Given::usual()
        };
        with_given(given, |front| run(front, &steps));
    }
}
