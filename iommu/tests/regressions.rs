//! Bugs that others had, each as a test that this code does not have it.

// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod vfio_support;

use common::dirty::{TRUSTED, with_dirty_unit};
use common::world::{Config, LARGE, World, device, iova, range, with_world};
use hv_core::dirty::DirtySource;
use hv_core::{Gfn, Gpa, PAGE_SIZE};
use iommu::addr::RangeError;
use iommu::layer::MapError;
use iommu::space::{Access, Attachment, DmaSpace};
use iommu::tables::{EntryFormat, VtdFirstStage, VtdSecondStageDirty};
use iommu::unmap::UnmapError;
use iommu::vfio::abi::DirtyFlags;
use iommu::vfio::seed::{FLAG_GET_DIRTY_BITMAP, UNMAP_DMA_GET_BITMAP, UnmapBitmap};
use iommu::{DirtyBitmap, Iova, IovaRange};
use std::sync::atomic::Ordering;
use vfio_support::{BITMAP, EFAULT, EINVAL, OK, with_front};

const RW: Access = Access::ReadWrite;

fn in_world(test: impl FnOnce(World<'_>)) {
    with_world(Config::default(), test);
}

/// QEMU, 2025: a domain switch unmaps all addresses at once. Its bitmap was too
/// large, and with no entry to ask about, dirty pages were forgotten.
#[test]
fn bug01_unmapping_the_whole_address_space_reports_what_is_mapped() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let far = (1 << 36) - 1;
        for (page, gfn) in [(0, 1), (1 << 20, 2), (far, 3)] {
            world.map(domain, page, 1, gfn, RW).unwrap();
            world.device_write(device(1), page).unwrap();
        }
        let unmapped = world.iommu.unmap_range(domain, IovaRange::ALL);
        assert_eq!(unmapped, Ok(3));
        assert_eq!(world.hardware.invalidations(), 1);
        assert!((1..4).all(|gfn| world.log.is_marked(Gfn::new(gfn))));
        world.migration.send_dirty();
        assert!(world.migration.lost().is_empty());
    });
}

/// CVE-2026-31735: an unmap that ended inside a large leaf removed more than was
/// invalidated.
#[test]
fn bug02_unmap_ending_inside_a_large_leaf_removes_nothing() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 511, 1, 0, RW).unwrap();
        world.map(domain, 512, 512, LARGE.start, RW).unwrap();
        let result = world.iommu.unmap(domain, range(511, 2), None);
        assert_eq!(result, Err(UnmapError::Bisects));
        let result = world.iommu.unmap_range(domain, range(511, 2));
        assert!(result.is_err());
        assert_eq!(world.hardware.invalidations(), 0);
        for page in [511, 512, 1023] {
            world.device_write(device(1), page).unwrap();
        }
        world.unmap(domain, 511, 513, true).unwrap();
    });
}

/// pKVM-IA issue 104: unmapping 4 KiB inside a 2 MiB leaf walked the data page as
/// a table.
#[test]
fn bug03_unmap_inside_a_large_leaf_takes_no_data_for_a_table() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 512, 512, LARGE.start, RW).unwrap();
        let data = world.guest.frame(Gfn::new(LARGE.start)).unwrap();
        let like_an_entry = data_address(&world) | 3;
        for word in data.words() {
            word.store(like_an_entry, Ordering::SeqCst);
        }
        let result = world.iommu.unmap(domain, range(512 + 7, 1), None);
        assert_eq!(result, Err(UnmapError::Bisects));
        world.iommu.unmap(domain, range(512, 512), None).unwrap();
        let untouched =
            |word: &std::sync::atomic::AtomicU64| word.load(Ordering::SeqCst) == like_an_entry;
        assert!(data.words().iter().all(untouched));
    });
}

fn data_address(world: &World<'_>) -> u64 {
    let gpa = Gfn::new(LARGE.start + 1).gpa();
    world.guest.translate(gpa).unwrap().raw()
}

/// iova_bitmap: a large leaf across a window of the bitmap was recorded in part,
/// and bits were set beyond the pages asked about.
#[test]
fn bug04_a_large_leaf_has_all_its_bits_wherever_it_lies_in_the_bitmap() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 512, 512, LARGE.start, RW).unwrap();
        let pages = 512 + 5 + 512;
        let mut words = vec![0u64; DirtyBitmap::words_needed(pages) as usize];
        let mut bitmap = DirtyBitmap::new(&mut words);
        world
            .iommu
            .unmap(domain, range(507, pages), Some(&mut bitmap))
            .unwrap();
        for index in 0..words.len() as u64 * 64 {
            let bit = words[index as usize / 64] >> (index % 64) & 1 == 1;
            assert_eq!(bit, (5..517).contains(&index), "{index}");
        }
    });
}

/// 2021: the detach of a device during tracking lost the bits only it answered
/// for.
#[test]
fn bug05_what_a_detached_device_could_write_is_reported() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 3, 1, 7, RW).unwrap();
        world.device_write(device(1), 3).unwrap();
        world.attach(device(1), Attachment::Blocked).unwrap();
        world.switch_over().unwrap();
    });
    in_world(|mut world| {
        world.attach(device(1), Attachment::Identity).unwrap();
        world.device_write(device(1), 7).unwrap();
        world.attach(device(1), Attachment::Blocked).unwrap();
        assert_eq!(world.log.marks_by(DirtySource::Unmap), world.guest.frames());
        world.switch_over().unwrap();
    });
}

/// A read that clears the dirty bit of a large leaf for some of its pages forgets
/// it for all.
#[test]
fn bug06_a_harvest_of_a_large_leaf_reports_every_page_of_it() {
    // No frame is left to split the leaf with.
    with_dirty_unit(VtdFirstStage, TRUSTED, 2, |mut machine| {
        machine.map(0, 512, RW);
        machine.layer.start_tracking().unwrap();
        assert_eq!(machine.set(300, VtdFirstStage.dirty()), 2);
        assert_eq!(machine.layer.harvest(), Ok(512));
        assert_eq!(machine.drain(), Vec::from_iter(0..512));
    });
}

/// CVE-2019-3882: mappings without bound used up the host's memory.
#[test]
fn bug07_mappings_end_where_the_memory_given_ends() {
    let config = Config {
        table_frames: 16,
        ..Config::default()
    };
    with_world(config, |mut world| {
        let domain = world.domains[0];
        let frames = world.iommu.frames_available();
        let mut mapped = 0;
        let refused = loop {
            // Far apart, so that each takes tables.
            let range = range(mapped << 18, 1);
            match world.iommu.map(domain, range, Gpa::new(0), RW) {
                Ok(()) => mapped += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, MapError::OutOfMemory);
        assert_eq!(world.iommu.unmap_range(domain, IovaRange::ALL), Ok(mapped));
        assert_eq!(world.iommu.frames_available(), frames);
    });
}

/// Ranges that end at 2^64 could not be unmapped; sums wrapped before they were
/// checked.
#[test]
fn bug08_ranges_may_end_at_the_end_of_the_address_space() {
    let top = Iova::new(u64::MAX - (PAGE_SIZE - 1));
    assert!(IovaRange::from_bytes(top, PAGE_SIZE).is_ok());
    assert_eq!(
        IovaRange::from_bytes(top, 2 * PAGE_SIZE),
        Err(RangeError::Wraps)
    );
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 5, 1, 0, RW).unwrap();
        let up_to_the_end = IovaRange::new(iova(1), (1 << 52) - 1).unwrap();
        assert_eq!(world.iommu.unmap_range(domain, up_to_the_end), Ok(1));
    });
}

/// Cloud Hypervisor PR 8594: an unmap with holes left bookkeeping behind and said
/// that all went well.
#[test]
fn bug09_an_unmap_with_holes_leaves_nothing_behind() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let frames = world.iommu.frames_available();
        for page in [0, 2, 511, 513] {
            world.map(domain, page, 1, page % 8, RW).unwrap();
        }
        world.unmap(domain, 0, 600, true).unwrap();
        assert_eq!(world.iommu.frames_available(), frames);
        assert_eq!(world.iommu.writable_pages(), 0);
        assert!((0..8).all(|gfn| !world.iommu.is_pinned(Gfn::new(gfn))));
        assert_eq!(world.iommu.unmap_range(domain, range(0, 600)), Ok(0));
        world.map(domain, 0, 500, LARGE.start, RW).unwrap();
    });
}

/// Intel erratum 772415: the hardware may set accessed and dirty bits in pages
/// that are read-only.
#[test]
fn bug10_dirty_bits_of_read_only_pages_mean_nothing() {
    with_dirty_unit(VtdSecondStageDirty, TRUSTED, 16, |mut machine| {
        machine.layer.start_tracking().unwrap();
        machine.map(0, 4, Access::Read);
        let format = VtdSecondStageDirty;
        machine.set(1, format.dirty() | format.accessed());
        assert_eq!(machine.layer.harvest(), Ok(0));
        machine.layer.harvest_stopped().unwrap();
        let unmapped = machine.layer.unmap(machine.domain, range(0, 4), None);
        assert_eq!(unmapped.unwrap().dirty, 0);
        assert_eq!(machine.drain(), []);
    });
}

/// Linux type1: a bitmap that cannot be written is found out when the first
/// mappings are gone.
#[test]
fn bug11_a_request_is_checked_bitmap_and_all_before_anything_changes() {
    with_front(|front| {
        front.track(DirtyFlags::START);
        assert_eq!(front.map(0, 65, LARGE.start, vfio_support::RW), OK);
        let request = UnmapBitmap {
            argsz: 40,
            flags: FLAG_GET_DIRTY_BITMAP,
            iova: 0,
            size: 65 * PAGE_SIZE,
            bitmap_size: 16,
            bitmap: BITMAP,
        };
        let before = front.hardware.invalidations();
        let too_small = UnmapBitmap {
            bitmap_size: 8,
            ..request
        };
        assert_eq!(front.call(UNMAP_DMA_GET_BITMAP, &too_small), EINVAL);
        // The second word of the bitmap cannot be written.
        front.memory.absent = Some(BITMAP + 8..BITMAP + 16);
        assert_eq!(front.call(UNMAP_DMA_GET_BITMAP, &request), EFAULT);
        front.memory.absent = None;
        assert_eq!(front.memory.words(BITMAP, 2), [0; 2]);
        assert_eq!(front.hardware.invalidations(), before);
        assert!(front.log.is_clean());
        assert_eq!(front.container.iommu().writable_pages(), 65);
        assert_eq!(front.call(UNMAP_DMA_GET_BITMAP, &request), OK);
        assert_eq!(front.memory.words(BITMAP, 2), [u64::MAX, 1]);
        assert_eq!(front.log.count(), 65);
    });
}

/// libvfio-user issue 588: 88 bytes for each mapping were 22 GB for a guest of
/// 1 TiB mapped in pieces of 4 KiB.
#[test]
fn bug12_a_mapping_of_one_page_costs_its_entry_and_no_more() {
    in_world(|mut world| {
        let domain = world.domains[0];
        let frames = world.iommu.frames_available();
        world.map(domain, 0, 500, LARGE.start, RW).unwrap();
        let in_one_piece = frames - world.iommu.frames_available();
        world.unmap(domain, 0, 500, false).unwrap();
        for page in 0..500 {
            world.map(domain, page, 1, LARGE.start + page, RW).unwrap();
        }
        assert_eq!(frames - world.iommu.frames_available(), in_one_piece);
    });
}
