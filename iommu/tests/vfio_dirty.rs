//! DIRTY_PAGES, rule by rule (section D).

mod common;
mod vfio_support;

use common::world::{device, iova};
use hv_core::PAGE_SIZE;
use iommu::space::Access;
use iommu::vfio::abi::{
    Bitmap, BitmapRange, DIRTY_PAGES, DirtyBitmapHeader, DirtyFlags, UnmapFlags,
};
use iommu::vfio::{DeviceAccess, Version};
use vfio_support::*;

const START: DirtyFlags = DirtyFlags::START;
const STOP: DirtyFlags = DirtyFlags::STOP;

/// An emulated device, tracking, pages 16 to 23 writable.
fn with_mapping(test: impl FnOnce(&mut Front<'_, '_>)) {
    with_emulated(|front| {
        assert_eq!(front.map(16, 8, 0, RW), OK);
        test(front);
    });
}

fn write(front: &mut Front<'_, '_>, page: u64) -> i32 {
    errno(front.container.write(at(page), &[1]))
}

#[test]
fn d01_version_2_and_exactly_one_known_flag() {
    with_front(|front| {
        for flags in [0, 3, 5, 6, 7, 8, 9, 1 << 31] {
            let bad = DirtyBitmapHeader { argsz: 48, flags };
            assert_eq!(front.call(DIRTY_PAGES, &bad), EINVAL);
        }
        let short = DirtyBitmapHeader { argsz: 7, flags: 1 };
        assert_eq!(front.call(DIRTY_PAGES, &short), EINVAL);
        assert_eq!(front.unmap_bitmap(16, 1, &mut [0]).0, EINVAL, "not started");
    });
    let given = Given {
        version: Version::V1,
        ..Given::usual()
    };
    with_given(given, |front| {
        assert_eq!(front.ioctl(DIRTY_PAGES, 0), EACCES, "before the pointer");
        assert_eq!(front.track(START), EACCES);
    });
}

#[test]
fn d02_start_takes_memory_for_every_mapping_and_sets_the_bits_of_pins() {
    let given = Given {
        words: 2,
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(EMULATED).unwrap();
        front.container.register_device();
        for page in [16, 32, 48] {
            assert_eq!(front.map(page, 4, 0, RW), OK);
        }
        assert_eq!(front.pin(33, 2, Access::ReadWrite), OK);
        assert_eq!(front.track(START), ENOMEM);
        assert_eq!(front.get_bitmap(16, 4, &mut [0]), EINVAL, "not started");
        front.unmap(48, 4, UnmapFlags::empty());
        assert_eq!(front.track(START), OK);
        assert_eq!(write(front, 16), OK);
        assert_eq!(front.track(START), OK, "again, and nothing is lost");
        assert_eq!(front.dirty(16, 20), 1 | 0b11 << 17);
    });
}

#[test]
fn d03_stop_loses_all_and_may_come_twice() {
    with_mapping(|front| {
        assert_eq!(write(front, 16), OK);
        assert_eq!(front.track(STOP), OK);
        assert_eq!(front.track(STOP), OK);
        assert_eq!(front.get_bitmap(16, 8, &mut [0]), EINVAL);
        assert_eq!(write(front, 17), OK, "not tracked");
        assert_eq!(front.track(START), OK);
        assert_eq!(front.dirty(16, 8), 0);
    });
}

#[test]
fn d04_get_bitmap_checks_in_this_order() {
    with_mapping(|front| {
        let good = range_request(16, 8, 8);
        assert_eq!(front.get(&good), OK);
        let flags = DirtyFlags::GET_BITMAP.bits();
        for argsz in [8, 47] {
            let short = DirtyBitmapHeader { argsz, flags };
            assert_eq!(front.call(DIRTY_PAGES, &short), EINVAL);
        }
        let last = u64::MAX - 0xfff;
        let bad_bitmap = bitmap(0);
        let wide = Bitmap {
            pgsize: 0x2000,
            ..bitmap(8)
        };
        let range = |iova, size, bitmap| BitmapRange { iova, size, bitmap };
        let in_order = [
            (range(last, 0, bad_bitmap), EINVAL),
            (range(last, 0x1001, bad_bitmap), EOVERFLOW),
            (range(last, 0x1000, bad_bitmap), EINVAL),
            (range(last, 0x1000, bitmap(8)), OK),
            (range(16 * PAGE_SIZE, 8 * PAGE_SIZE, wide), EINVAL),
            (range(1, 0x1000, bitmap(8)), EINVAL),
            (range(0x1000, 0x1001, bitmap(8)), EINVAL),
            (range(0x1000, 0x800, bitmap(8)), EINVAL),
            (range(16 * PAGE_SIZE, 7 * PAGE_SIZE, bitmap(8)), EINVAL),
            (range(17 * PAGE_SIZE, 7 * PAGE_SIZE, bitmap(8)), EINVAL),
            (range(23 * PAGE_SIZE, 7 * PAGE_SIZE, bitmap(8)), EINVAL),
        ];
        for (request, errno) in in_order {
            assert_eq!(front.get(&request), errno, "{request:?}");
        }
        front.memory.limit = BITMAP + 7;
        assert_eq!(front.get(&good), EINVAL, "not plausible");
        front.memory.limit = 1 << 47;
        front.memory.absent = Some(ARG + 40..ARG + 41);
        assert_eq!(front.get(&good), EFAULT, "not readable");
    });
}

#[test]
fn d04_a_bad_bitmap_is_a_fault_and_no_bit_is_lost() {
    with_mapping(|front| {
        assert_eq!(write(front, 17), OK);
        front.memory.read_only = Some(BITMAP + 7..BITMAP + 8);
        assert_eq!(front.get(&range_request(16, 8, 8)), EFAULT);
        front.memory.read_only = None;
        assert_eq!(front.dirty(16, 8), 0b10);
    });
}

#[test]
fn d04_holes_stay_as_they_are_and_a_range_may_end_with_the_address_space() {
    with_mapping(|front| {
        let mut words = [u64::MAX; 3];
        assert_eq!(front.map(24 + 64 + 16, 8, 8, RW), OK);
        assert_eq!(front.get_bitmap(24, 192, &mut words), OK);
        assert_eq!(words, [u64::MAX, 0xffff, u64::MAX]);
        let end = (1 << 52) - 64;
        assert_eq!(front.get_bitmap(end, 64, &mut words[..1]), OK);
        assert_eq!(words[0], u64::MAX);
    });
}

#[test]
fn d05_bits_are_read_and_cleared_but_for_those_of_pins() {
    with_mapping(|front| {
        assert_eq!(front.pin(16, 1, Access::ReadWrite), OK);
        assert_eq!(front.pin(17, 1, Access::ReadWrite), OK);
        assert_eq!(write(front, 18), OK);
        assert_eq!(front.unpin(17, 1), 1);
        assert_eq!(front.dirty(16, 8), 0b111);
        assert_eq!(front.dirty(16, 8), 0b001);
        assert_eq!(front.dirty(16, 8), 0b001, "perpetually");
        assert_eq!(front.unpin(16, 1), 1);
        assert_eq!(front.dirty(16, 8), 0b001, "once more");
        assert_eq!(front.dirty(16, 8), 0);
    });
}

#[test]
fn d06_behind_a_real_device_all_is_dirty_that_it_may_write() {
    with_front(|front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(20, 4, 4, RO), OK);
        assert_eq!(front.track(START), OK);
        assert_eq!(front.dirty(16, 8), 0b1111);
        assert_eq!(front.dirty(16, 8), 0b1111, "each time");
        assert!(!front.hardware.write(device(2), iova(20)));
    });
}

#[test]
fn d06_a_read_only_mapping_is_never_dirty() {
    with_given(Given::usual(), |front| {
        front.container.attach_group(EMULATED).unwrap();
        front.container.attach_group(REAL).unwrap();
        front.container.register_device();
        assert_eq!(front.map(16, 4, 0, RO), OK);
        assert_eq!(front.pin(16, 1, Access::Read), OK);
        assert_eq!(front.track(START), OK);
        assert_eq!(front.pin(17, 1, Access::Read), OK);
        front.container.detach_group(REAL).unwrap();
        assert_eq!(front.dirty(16, 4), 0);
        let mut words = [0];
        assert_eq!(front.unmap_bitmap(16, 4, &mut words), (OK, 4));
        assert_eq!(words, [0]);
    });
}

#[test]
fn d07_a_device_that_leaves_may_have_written_everything() {
    with_mapping(|front| {
        assert_eq!(front.dirty(16, 8), 0, "emulated devices pin");
        front.container.attach_group(REAL).unwrap();
        assert_eq!(front.dirty(16, 8), 0xff);
        front.container.detach_group(REAL).unwrap();
        assert_eq!(front.dirty(16, 8), 0xff, "due, once");
        assert_eq!(front.dirty(16, 8), 0);
    });
}

#[test]
fn d07_the_first_pin_of_a_group_says_that_it_writes_pinned_pages_only() {
    with_mapping(|front| {
        front.container.attach_group(REAL).unwrap();
        let mut frames = [hv_core::Gfn::new(0)];
        let mut pin = |page| {
            let access = Access::ReadWrite;
            let pinned = front
                .container
                .pin_pages(REAL, at(page), access, &mut frames);
            errno(pinned)
        };
        assert_eq!(pin(99), EINVAL);
        assert_eq!(front.dirty(16, 8), 0xff, "a failed pin says nothing");
        let mut pin = |page| {
            let access = Access::ReadWrite;
            let pinned = front
                .container
                .pin_pages(REAL, at(page), access, &mut frames);
            errno(pinned)
        };
        assert_eq!(pin(18), OK);
        assert_eq!(front.dirty(16, 8), 0b100);
        front.unpin(18, 1);
        front.dirty(16, 8);
        front.container.detach_group(REAL).unwrap();
        assert_eq!(front.dirty(16, 8), 0, "nothing else is due");
    });
}

#[test]
fn d08_a_scope_that_becomes_pinned_dirties_nothing_in_retrospect() {
    with_mapping(|front| {
        front.container.attach_group(REAL).unwrap();
        let mut frames = [hv_core::Gfn::new(0)];
        front
            .container
            .pin_pages(REAL, at(16), Access::Read, &mut frames)
            .unwrap();
        assert_eq!(front.dirty(16, 8), 1);
    });
}
