//! Random requests, compared with a naive oracle that knows pages only.
//!
//! `PROPTEST_CASES` says how many sequences are tried.

#[path = "../common/mod.rs"]
mod common;
#[path = "../vfio_support/mod.rs"]
mod vfio_support;

mod oracle;
mod steps;

use hv_core::{Gfn, PAGE_SIZE};
use iommu::Iova;
use iommu::vfio::DeviceAccess;
use iommu::vfio::abi::{DirtyFlags, MapFlags, UnmapFlags};
use oracle::Oracle;
use proptest::prelude::*;
use steps::{Step, Unmap, step};
use vfio_support::*;

const MAPPINGS: usize = 8;
const WORDS: u64 = 6;
const PINS: usize = 6;
const FRAMES: u64 = 40;

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
