//! What can be mapped, and what an unmap takes.

use crate::common::world::{Config, LARGE, device, iova, range, with_world};
use crate::{gpa, in_world};
use hv_core::dirty::DirtySource;
use hv_core::{Gfn, Gpa};
use iommu::IovaRange;
use iommu::layer::MapError;
use iommu::space::{Access, Attachment, DmaSpace, Mapping, SpaceError};
use iommu::unit::DomainId;
use iommu::unmap::UnmapError;

#[test]
fn a_mapping_is_never_bisected_at_either_edge() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 10, 3, 0, Access::ReadWrite).unwrap();
        world.map(domain, 13, 3, 3, Access::ReadWrite).unwrap();
        for (page, pages) in [(11, 2), (10, 2), (12, 1), (10, 4), (12, 4), (11, 5)] {
            let result = world.iommu.unmap(domain, range(page, pages), None);
            assert_eq!(result, Err(UnmapError::Bisects), "{page} {pages}");
        }
        assert!(world.log.is_clean(), "a refused unmap reports nothing");
        assert_eq!(world.hardware.invalidations(), 0);
        world.unmap(domain, 9, 8, true).unwrap();
    });
}

#[test]
fn a_large_leaf_is_one_mapping_too() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let before = world.iommu.frames_available();
        let large = LARGE.start;
        world
            .map(domain, 512, 512, large, Access::ReadWrite)
            .unwrap();
        assert_eq!(before - world.iommu.frames_available(), 2, "no leaf table");
        for (page, pages) in [(512, 1), (700, 1), (1023, 1), (513, 600)] {
            let result = world.iommu.unmap(domain, range(page, pages), None);
            assert_eq!(result, Err(UnmapError::Bisects));
        }
        let wanted = [Some((0, Access::Read))];
        world.replace(domain, 700, &wanted).unwrap();
        world.device_write(device(1), 777).unwrap();
        world.unmap(domain, 512, 512, true).unwrap();
        assert_eq!(world.log.count(), 512);
        assert_eq!(world.iommu.frames_available(), before);
    });
}

#[test]
fn ranges_past_the_width_are_refused_and_those_up_to_it_are_not() {
    for (levels, width) in [(3, 39), (4, 48)] {
        let config = Config {
            levels,
            ..Config::default()
        };
        with_world(config, |mut world| {
            let domain = world.domains[0];
            assert_eq!(world.iommu.address_width(), width);
            let pages = 1 << (width - 12);
            for range in [
                range(pages, 1),
                range(pages - 1, 2),
                IovaRange::ALL,
                range((1 << 52) - 1, 1),
            ] {
                let mapped = world.iommu.map(domain, range, gpa(0), Access::Read);
                assert_eq!(mapped, Err(MapError::OutOfRange));
                let unmapped = world.iommu.unmap(domain, range, None);
                assert_eq!(unmapped, Err(UnmapError::OutOfRange));
            }
            world
                .map(domain, pages - 1, 1, 0, Access::ReadWrite)
                .unwrap();
            world.device_write(device(1), pages - 1).unwrap();
            let wanted = [None; 2];
            let replaced = world.iommu.replace(domain, iova(pages - 1), &wanted);
            assert_eq!(replaced, Err(SpaceError::OutOfRange));
            // A whole-domain unmap is cut to what there is.
            assert_eq!(world.iommu.unmap_range(domain, IovaRange::ALL), Ok(1));
            assert_eq!(world.iommu.unmap_range(domain, range(pages, 7)), Ok(0));
        });
    }
}

#[test]
fn a_map_without_frames_leaves_no_trace() {
    let config = Config {
        // Two roots, and one frame less than the first mapping takes.
        table_frames: 4,
        ..Config::default()
    };
    with_world(config, |mut world| {
        let domain = world.domains[0];
        let refused = world
            .iommu
            .map(domain, range(0, 4), gpa(0), Access::ReadWrite);
        assert_eq!(refused, Err(MapError::OutOfMemory));
        assert_eq!(world.iommu.frames_available(), 2);
        assert_eq!(world.iommu.writable_pages(), 0);
        assert!(!world.iommu.is_pinned(Gfn::new(0)));
        let mapping = Mapping {
            gfn: Gfn::new(0),
            access: Access::Read,
        };
        let replaced = world
            .iommu
            .replace(domain, iova(0), &[Some(mapping); 3])
            .unwrap();
        assert_eq!((replaced.mapped, replaced.refused), (0, 3));
        let attached = world.iommu.attach(device(1), Attachment::Identity);
        assert_eq!(attached, Err(SpaceError::OutOfMemory));
        assert_eq!(world.iommu.frames_available(), 2);
        assert_eq!(
            world.iommu.attachment(device(1)),
            Attachment::Domain(domain)
        );
        world.tear_down().unwrap();
    });
}

#[test]
fn a_map_outside_the_guest_or_over_another_leaves_no_trace() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let mut map =
            |page, pages, gpa, access| world.iommu.map(domain, range(page, pages), gpa, access);
        map(5, 1, gpa(0), Access::Read).unwrap();
        let refused = [
            (map(4, 2, gpa(0), Access::Write), MapError::Overlap),
            (map(8, 2, gpa(39), Access::Write), MapError::NotGuestMemory),
            (
                map(8, 1, Gpa::new(!0xfff), Access::Write),
                MapError::NotGuestMemory,
            ),
            (
                map(8, 1, Gpa::new(0x123), Access::Write),
                MapError::Unaligned,
            ),
        ];
        for (result, expected) in refused {
            assert_eq!(result, Err(expected));
        }
        assert_eq!(world.iommu.writable_pages(), 0);
        let nobody = DomainId::new(99);
        let result = world.iommu.map(nobody, range(0, 1), gpa(0), Access::Read);
        assert_eq!(result, Err(MapError::NoDomain));
        // The identity domain cannot be named.
        let result = world.iommu.unmap(DomainId::new(1), range(0, 1), None);
        assert_eq!(result, Err(UnmapError::NoDomain));
    });
}

#[test]
fn a_mapping_may_run_over_several_slots_of_the_guest() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 8, 8, 28, Access::ReadWrite).unwrap();
        for page in 8..16 {
            world.device_write(device(1), page).unwrap();
        }
        // It is one mapping nevertheless.
        let result = world.iommu.unmap(domain, range(8, 4), None);
        assert_eq!(result, Err(UnmapError::Bisects));
        world.unmap(domain, 8, 8, true).unwrap();
        assert!((28..36).all(|gfn| world.log.is_marked(Gfn::new(gfn))));
        world.switch_over().unwrap();
    });
}

#[test]
fn a_page_whose_counter_is_full_is_refused() {
    let config = Config {
        table_frames: 300,
        ..Config::default()
    };
    with_world(config, |mut world| {
        let domain = world.domains[0];
        let mapping = Some(Mapping {
            gfn: Gfn::new(3),
            access: Access::ReadWrite,
        });
        let window = [mapping; 512];
        let mut mapped = 0;
        let mut refused = 0;
        for index in 0..8 {
            let replaced = world
                .iommu
                .replace(domain, iova(index * 512), &window)
                .unwrap();
            mapped += replaced.mapped;
            refused += replaced.refused;
        }
        assert_eq!((mapped, refused), (0xfff, 1));
        let result = world
            .iommu
            .map(domain, range(1 << 20, 1), gpa(3), Access::Write);
        assert_eq!(result, Err(MapError::TooManyMappings));
        assert_eq!(world.iommu.writable_pages(), 1);
        assert_eq!(world.iommu.unmap_range(domain, IovaRange::ALL), Ok(0xfff));
        assert_eq!(world.iommu.writable_pages(), 0);
        world.tear_down().unwrap();
    });
}

#[test]
fn an_unmap_storm_gives_every_frame_back() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let before = world.iommu.frames_available();
        for index in 0..20_000u64 {
            // Far apart, so that each takes tables of its own.
            let page = index.wrapping_mul(0x9e37_79b9) % (1 << 36);
            let range = range(page, 1);
            world
                .iommu
                .map(domain, range, gpa(index % 32), Access::ReadWrite)
                .unwrap();
            assert_eq!(world.iommu.unmap(domain, range, None).unwrap().pages, 1);
            assert_eq!(world.iommu.frames_available(), before);
        }
        assert_eq!(world.iommu.writable_pages(), 0);
    });
}

#[test]
fn one_unmap_of_many_mappings_invalidates_once() {
    in_world(|mut world| {
        let domain = world.domains[0];
        for index in 0..20 {
            world
                .map(domain, 490 + 2 * index, 1, index, Access::ReadWrite)
                .unwrap();
        }
        world.unmap(domain, 400, 2000, true).unwrap();
        assert_eq!(world.hardware.invalidations(), 1);
        world.unmap(domain, 400, 2000, true).unwrap();
        assert_eq!(world.hardware.invalidations(), 1, "nothing was mapped");
        assert_eq!(world.log.marks_by(DirtySource::Unmap), 20);
    });
}

#[test]
fn a_replace_leaves_alone_what_is_right() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let page = |gfn, access| Some((gfn, access));
        let rw = Access::ReadWrite;
        world
            .replace(domain, 510, &[page(0, rw), page(1, rw), page(2, rw)])
            .unwrap();
        assert_eq!(world.hardware.invalidations(), 0, "nothing to unmap");
        world
            .replace(domain, 510, &[page(0, rw), page(1, rw), page(2, rw)])
            .unwrap();
        assert!(world.log.is_clean());
        let changed = [page(0, rw), page(1, Access::Read), page(7, rw)];
        world.replace(domain, 510, &changed).unwrap();
        assert_eq!(world.hardware.invalidations(), 1);
        assert!(!world.log.is_marked(Gfn::new(0)));
        assert!(world.log.is_marked(Gfn::new(1)) && world.log.is_marked(Gfn::new(2)));
    });
}
