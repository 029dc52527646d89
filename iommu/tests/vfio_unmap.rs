//! UNMAP_DMA, rule by rule (section C).

mod common;
mod vfio_support;

use common::unit::Fault;
use common::world::{device, iova};
use hv_core::PAGE_SIZE;
use hv_core::dirty::DirtySource;
use iommu::IovaRange;
use iommu::space::Access;
use iommu::vfio::Version;
use iommu::vfio::abi::{
    Bitmap, CHECK_EXTENSION, DirtyFlags, DmaUnmap, MapFlags, UNMAP_DMA, UnmapFlags, extension,
};
use vfio_support::*;

const NONE: UnmapFlags = UnmapFlags::empty();
const GET: u32 = UnmapFlags::GET_DIRTY_BITMAP.bits();
const ALL: u32 = UnmapFlags::ALL.bits();
const INVALIDATE: u32 = UnmapFlags::VADDR.bits();

const GOOD: DmaUnmap = DmaUnmap {
    argsz: 48,
    flags: GET,
    iova: 16 * PAGE_SIZE,
    size: 4 * PAGE_SIZE,
};

/// Pages 16 to 19 writable, 24 and 25 readable, 100 writable, tracking on.
fn with_mappings(test: impl FnOnce(&mut Front<'_, '_>)) {
    with_front(|front| {
        front.track(DirtyFlags::START);
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(24, 2, 8, RO), OK);
        assert_eq!(front.map(100, 1, 9, RW), OK);
        test(front);
    });
}

/// The errno of a request that must not do anything.
fn refused(front: &mut Front<'_, '_>, request: DmaUnmap, bitmap: Bitmap) -> i32 {
    front.memory.put(ARG + 24, &bitmap);
    let before = front.hardware.invalidations();
    let errno = front.call(UNMAP_DMA, &request);
    assert_ne!(errno, OK, "{request:?} {bitmap:?}");
    assert_eq!(front.memory.get::<DmaUnmap>(ARG), request, "as it was");
    assert_eq!(front.hardware.invalidations(), before);
    assert!(front.log.is_clean());
    errno
}

fn is_mapped(front: &Front<'_, '_>, page: u64) -> bool {
    front.hardware.read(device(2), iova(page))
}

#[test]
fn c01_a_short_request_or_an_unknown_flag_is_refused() {
    with_mappings(|front| {
        for (argsz, flags) in [(23, 0), (48, 8), (48, 1 << 31)] {
            let bad = DmaUnmap {
                argsz,
                flags,
                ..GOOD
            };
            assert_eq!(refused(front, bad, bitmap(8)), EINVAL);
        }
    });
}

#[test]
fn c02_a_bitmap_goes_with_no_other_flag() {
    with_mappings(|front| {
        for more in [ALL, INVALIDATE, ALL | INVALIDATE] {
            let bad = DmaUnmap {
                flags: GET | more,
                ..GOOD
            };
            // Before the bitmap is looked at.
            front.memory.absent = Some(ARG + 24..ARG + 48);
            let before = front.memory.get::<u64>(BITMAP);
            assert_eq!(front.call(UNMAP_DMA, &bad), EINVAL);
            assert_eq!(front.memory.get::<u64>(BITMAP), before);
        }
    });
}

#[test]
fn c03_the_bitmap_is_checked_before_the_range() {
    with_mappings(|front| {
        let misaligned = DmaUnmap { iova: 1, ..GOOD };
        let short = DmaUnmap { argsz: 47, ..GOOD };
        assert_eq!(refused(front, short, bitmap(8)), EINVAL);
        let bad = [
            bitmap(0),
            bitmap(7),
            bitmap((1 << 28) + 8),
            Bitmap {
                pgsize: 0,
                ..bitmap(8)
            },
            Bitmap {
                // No page of that size in the range.
                pgsize: 1 << 20,
                ..bitmap(8)
            },
            Bitmap {
                data: u64::MAX,
                ..bitmap(8)
            },
            Bitmap {
                data: 1 << 47,
                ..bitmap(8)
            },
        ];
        for bitmap in bad {
            assert_eq!(refused(front, GOOD, bitmap), EINVAL);
        }
        // 64 pages fit a word, 65 do not.
        let pages = |count: u64| DmaUnmap {
            iova: 200 * PAGE_SIZE,
            size: count * PAGE_SIZE,
            ..GOOD
        };
        assert_eq!(refused(front, pages(65), bitmap(8)), EINVAL);
        front.memory.put(ARG + 24, &bitmap(8));
        assert_eq!(front.call(UNMAP_DMA, &pages(64)), OK);
        // The structure that cannot be read comes before all that.
        front.memory.put(ARG + 24, &bitmap(0));
        front.memory.put(ARG, &misaligned);
        front.memory.absent = Some(ARG + 30..ARG + 31);
        assert_eq!(front.ioctl(UNMAP_DMA, ARG), EFAULT);
    });
}

#[test]
fn c03_a_bitmap_of_more_than_256_mib_is_taken_where_memory_was_given() {
    let given = Given {
        words: (1 << 25) + 1,
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(REAL).unwrap();
        front.track(DirtyFlags::START);
        front.memory.put(ARG + 24, &bitmap((1 << 28) + 8));
        assert_eq!(front.call(UNMAP_DMA, &GOOD), OK);
        front.memory.put(ARG + 24, &bitmap((1 << 28) + 16));
        assert_eq!(front.call(UNMAP_DMA, &GOOD), EINVAL);
    });
}

#[test]
fn c04_addresses_stay_valid_while_an_emulated_device_is_there() {
    with_mappings(|front| {
        front.container.attach_group(EMULATED).unwrap();
        // Before the range is looked at.
        let bad = DmaUnmap {
            flags: INVALIDATE,
            iova: 1,
            ..GOOD
        };
        assert_eq!(refused(front, bad, bitmap(8)), EBUSY);
        front.container.detach_group(EMULATED).unwrap();
        assert_eq!(refused(front, bad, bitmap(8)), EINVAL);
    });
}

#[test]
fn c05_the_iova_is_aligned() {
    with_mappings(|front| {
        for iova in [1, 16 * PAGE_SIZE + 0x800] {
            // Also if it wraps, or all is meant.
            for (flags, size) in [(0, 0x1000), (0, u64::MAX - 0xfff), (ALL, 0)] {
                let bad = DmaUnmap {
                    flags,
                    iova,
                    size,
                    ..GOOD
                };
                assert_eq!(refused(front, bad, bitmap(8)), EINVAL);
            }
        }
    });
}

#[test]
fn c06_all_comes_without_a_range_and_takes_everything() {
    with_mappings(|front| {
        for (iova, size) in [(0x1000, 0), (0, 0x1000), (0x1000, u64::MAX)] {
            let bad = DmaUnmap {
                flags: ALL,
                iova,
                size,
                ..GOOD
            };
            assert_eq!(refused(front, bad, bitmap(8)), EINVAL);
        }
        assert_eq!(front.unmap(0, 0, UnmapFlags::ALL), (OK, 7 * PAGE_SIZE));
        assert!([16, 24, 100].iter().all(|page| !is_mapped(front, *page)));
        assert_eq!(front.log.marks_by(DirtySource::Unmap), 5);
    });
}

#[test]
fn c07_empty_and_unaligned_are_invalid_and_wrapping_is_an_overflow() {
    with_mappings(|front| {
        let last = u64::MAX - 0xfff;
        for (iova, size, errno) in [
            (0x1000, 0, EINVAL),
            (0x1000, 0xfff, EINVAL),
            (last, 0x1001, EINVAL),
            (last, 0x2000, EOVERFLOW),
            // Both end at 2^64, which is no overflow.
            (last, 0x1000, OK),
            (0x1000, last, OK),
        ] {
            let request = DmaUnmap {
                flags: 0,
                iova,
                size,
                ..GOOD
            };
            assert_eq!(front.call(UNMAP_DMA, &request), errno, "{request:?}");
        }
        assert!(!is_mapped(front, 16));
    });
}

#[test]
fn c08_bits_are_of_the_smallest_page_and_only_while_tracking() {
    with_mappings(|front| {
        let large = Bitmap {
            pgsize: 2 * PAGE_SIZE,
            ..bitmap(8)
        };
        assert_eq!(refused(front, GOOD, large), EINVAL);
        front.track(DirtyFlags::STOP);
        assert_eq!(refused(front, GOOD, bitmap(8)), EINVAL);
        // After the range: an overflow is one.
        let wraps = DmaUnmap {
            iova: u64::MAX - 0xfff,
            ..GOOD
        };
        assert_eq!(refused(front, wraps, bitmap(8)), EOVERFLOW);
        front.track(DirtyFlags::START);
        assert_eq!(front.unmap_bitmap(16, 4, &mut [0]), (OK, 4));
    });
}

#[test]
fn c09_no_bisection_and_holes_are_allowed() {
    with_mappings(|front| {
        for (page, pages) in [(17, 3), (16, 3), (10, 7), (19, 2), (16, 9), (25, 1)] {
            let bad = DmaUnmap {
                iova: page * PAGE_SIZE,
                size: pages * PAGE_SIZE,
                ..GOOD
            };
            assert_eq!(refused(front, bad, bitmap(8)), EINVAL);
        }
        assert_eq!(front.unmap(26, 70, NONE), (OK, 0), "empty");
        assert_eq!(front.unmap(10, 20, NONE), (OK, 6 * PAGE_SIZE));
        assert!(is_mapped(front, 100));
    });
}

#[test]
fn c10_the_size_is_what_was_mapped_and_stays_on_an_error() {
    with_mappings(|front| {
        assert_eq!(front.unmap(10, 7, NONE), (EINVAL, 7 * PAGE_SIZE));
        assert_eq!(front.unmap(0, 1 << 20, NONE), (OK, 7 * PAGE_SIZE));
        assert_eq!(front.unmap(0, 1 << 20, NONE), (OK, 0));
    });
}

#[test]
fn c10_an_answer_that_cannot_be_written_is_a_fault_and_nothing_is_unmapped() {
    with_mappings(|front| {
        front.memory.put(ARG + 24, &bitmap(8));
        for flags in [0, GET, INVALIDATE] {
            front.memory.put(ARG, &DmaUnmap { flags, ..GOOD });
            front.memory.read_only = Some(ARG + 16..ARG + 17);
            assert_eq!(front.ioctl(UNMAP_DMA, ARG), EFAULT);
        }
        front.memory.read_only = None;
        assert!(is_mapped(front, 16));
        assert_eq!(front.map(16, 4, 0, MapFlags::VADDR), EINVAL, "still valid");
    });
}

#[test]
fn c11_devices_unpin_mapping_by_mapping_and_all_is_checked_anew() {
    with_emulated(|front| {
        for (page, gfn) in [(16, 0), (20, 4), (24, 8)] {
            assert_eq!(front.map(page, 4, gfn, RW), OK);
        }
        assert_eq!(front.pin(17, 2, Access::ReadWrite), OK);
        assert_eq!(front.pin(24, 1, Access::ReadWrite), OK);
        front.devices.pins_in_turn = Some(21);
        let mut words = [0];
        assert_eq!(front.unmap_bitmap(16, 12, &mut words), (OK, 12));
        let asked = |page| IovaRange::new(iova(page), 4).unwrap();
        assert_eq!(front.devices.asked, [16, 20, 24].map(asked));
        assert_eq!(words, [0b1_0010_0110]);
    });
}

#[test]
fn c11_a_device_that_does_not_unpin_fails_the_call() {
    with_emulated(|front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(20, 4, 4, RW), OK);
        assert_eq!(front.pin(20, 1, Access::ReadWrite), OK);
        front.devices.ignores = 11;
        let mut words = [0];
        assert_eq!(front.unmap_bitmap(16, 8, &mut words), (EBUSY, 8));
        assert_eq!((front.devices.asked.len(), words), (11, [0]));
        front.devices.ignores = 10;
        assert_eq!(front.unmap_bitmap(16, 8, &mut words), (OK, 8));
        assert_eq!(words, [0b1_0000]);
    });
}

#[test]
fn c12_the_report_holds_what_was_written_until_the_mapping_was_gone() {
    with_mappings(|front| {
        assert!(front.hardware.write(device(2), iova(18)));
        let mut words = [0];
        assert_eq!(front.unmap_bitmap(16, 4, &mut words), (OK, 4));
        assert_eq!(words, [0b1111]);
        assert!(!front.hardware.write(device(2), iova(18)));
        assert_eq!(front.hardware.take_landed().len(), 2, "with its race");
        assert_eq!(front.log.count(), 4);
    });
    // Emulated devices: what one writes when it is asked to let go is in it.
    with_emulated(|front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.pin(16, 1, Access::ReadWrite), OK);
        front.devices.writes_first = Some(18);
        let mut words = [0];
        assert_eq!(front.unmap_bitmap(16, 4, &mut words), (OK, 4));
        assert_eq!(words, [0b101]);
    });
}

#[test]
fn c13_a_bad_bitmap_is_a_fault_and_nothing_is_lost_or_half_done() {
    with_mappings(|front| {
        let whole = DmaUnmap {
            size: 85 * PAGE_SIZE,
            ..GOOD
        };
        for range in [BITMAP..BITMAP + 1, BITMAP + 15..BITMAP + 16] {
            // The second word is that of the last mapping.
            front.memory.read_only = Some(range.clone());
            assert_eq!(refused(front, whole, bitmap(16)), EFAULT);
            front.memory.read_only = None;
            front.memory.absent = Some(range);
            assert_eq!(refused(front, whole, bitmap(16)), EFAULT);
            front.memory.absent = None;
        }
        assert_eq!(front.memory.words(BITMAP, 2), [0, 0]);
        let mut words = [0; 2];
        assert_eq!(front.unmap_bitmap(16, 85, &mut words), (OK, 7));
        assert_eq!(words, [0b1111, 1 << (100 - 16 - 64)]);
    });
}

#[test]
fn c14_words_of_mappings_are_overwritten_and_those_of_holes_are_not() {
    with_mappings(|front| {
        let mut words = [u64::MAX; 4];
        // From page 10 on: mappings at bits 6 to 9, 14, 15, and 90.
        assert_eq!(front.unmap_bitmap(10, 200, &mut words), (OK, 7));
        let below = (1 << 6) - 1;
        let second = (1 << 27) - 1;
        assert_eq!(words, [below | 0b1111 << 6, second, u64::MAX, u64::MAX]);
    });
}

#[test]
fn c15_addresses_become_invalid_all_or_none_and_dma_goes_on() {
    with_mappings(|front| {
        let invalidate = UnmapFlags::VADDR;
        assert_eq!(front.unmap(24, 2, invalidate), (OK, 2 * PAGE_SIZE));
        assert_eq!(front.unmap(16, 10, invalidate), (EINVAL, 10 * PAGE_SIZE));
        assert_eq!(front.map(16, 4, 0, MapFlags::VADDR), EINVAL, "still valid");
        assert!(is_mapped(front, 24) && front.hardware.write(device(2), iova(16)));
        front.container.register_device();
        assert_eq!(front.pin(16, 1, Access::Read), EBUSY);
        assert_eq!(errno(front.container.attach_group(EMULATED)), EBUSY);
        assert_eq!(front.unmap(24, 2, NONE), (OK, 2 * PAGE_SIZE));
        assert_eq!(errno(front.container.attach_group(EMULATED)), OK);
        front.container.detach_group(EMULATED).unwrap();
        let both = UnmapFlags::VADDR | UnmapFlags::ALL;
        assert_eq!(front.unmap(0, 0, both), (OK, 5 * PAGE_SIZE));
    });
}

#[test]
fn c16_all_of_nothing_is_success_and_both_flags_can_be_asked_about() {
    with_front(|front| {
        assert_eq!(front.unmap(0, 0, UnmapFlags::ALL), (OK, 0));
        let mut ask = |extension, emulated: bool| {
            if emulated {
                front.container.attach_group(EMULATED).unwrap();
            }
            let (memory, devices) = (&mut front.memory, &mut front.devices);
            front
                .container
                .ioctl(CHECK_EXTENSION, extension, memory, devices)
        };
        assert_eq!(ask(extension::UNMAP_ALL, false), Ok(1));
        assert_eq!(ask(extension::UPDATE_VADDR, false), Ok(1));
        assert_eq!(ask(extension::TYPE1_V2, false), Ok(1));
        assert_eq!(ask(77, false), Ok(0));
        assert_eq!(ask(extension::UPDATE_VADDR, true), Ok(0));
    });
}

#[test]
fn c17_a_large_leaf_does_not_show() {
    with_front(|front| {
        assert_eq!(front.map(512, 512, common::world::LARGE.start, RW), OK);
        for (page, pages) in [(512, 1), (1023, 1), (512, 511), (513, 511)] {
            assert_eq!(front.unmap(page, pages, NONE).0, EINVAL);
        }
        assert_eq!(front.unmap(512, 512, NONE), (OK, 512 * PAGE_SIZE));
    });
}

#[test]
fn c18_version_1_takes_whole_mappings_by_their_beginning() {
    let given = Given {
        version: Version::V1,
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(REAL).unwrap();
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(24, 4, 4, RW), OK);
        assert_eq!(front.unmap(17, 20, NONE), (OK, 0), "starts inside");
        assert_eq!(front.unmap(10, 7, NONE), (OK, 4 * PAGE_SIZE));
        assert!(!is_mapped(front, 19) && is_mapped(front, 24));
    });
}

#[test]
fn a_unit_that_does_not_answer_is_an_io_error() {
    with_mappings(|front| {
        front.hardware.fault.set(Fault::DoesNotAnswer);
        assert_eq!(front.unmap(16, 4, NONE), (EIO, 4 * PAGE_SIZE));
        assert_eq!(front.map(200, 1, 0, RW), EIO);
        front.is_abandoned = true;
    });
}
