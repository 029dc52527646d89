//! What may be asked for, at random.

use crate::vfio_support::{EMULATED, REAL};
use iommu::space::Access;
use iommu::vfio::Group;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
pub(super) enum Unmap {
    Plain,
    All,
    Vaddr,
    Bitmap { before: u64 },
}

#[derive(Clone, Debug)]
pub(super) enum Step {
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

pub(super) fn page() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..12u64, 2 => 60..70u64]
}

pub(super) fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..6u64, 1 => 6..150u64]
}

pub(super) fn group() -> impl Strategy<Value = Group> {
    prop_oneof![3 => Just(EMULATED), 1 => Just(REAL)]
}

pub(super) fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::ReadWrite)
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
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
