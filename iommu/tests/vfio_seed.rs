//! The seed's call, as its user sees it: bytes in, bytes and an errno out.

mod common;
mod vfio_support;

use hv_core::PAGE_SIZE;
use iommu::vfio::abi::DirtyFlags;
use iommu::vfio::seed::{FLAG_GET_DIRTY_BITMAP, UNMAP_DMA_GET_BITMAP, UnmapBitmap};
use vfio_support::*;

const GOOD: UnmapBitmap = UnmapBitmap {
    argsz: 40,
    flags: FLAG_GET_DIRTY_BITMAP,
    iova: 0x10_0000,
    size: 0x8_0000,
    bitmap_size: 16,
    bitmap: BITMAP,
};

/// The errno, and the size as it is afterwards; nothing else may change.
fn call(front: &mut Front<'_, '_>, request: UnmapBitmap) -> (i32, u64) {
    let errno = front.call(UNMAP_DMA_GET_BITMAP, &request);
    let answer: UnmapBitmap = front.memory.get(ARG);
    let size = answer.size;
    assert_eq!(answer, UnmapBitmap { size, ..request });
    (errno, size)
}

/// Pages 2 to 4 of the request's range may be written, page 70 only read.
fn with_mappings(test: impl FnOnce(&mut Front<'_, '_>)) {
    with_front(|front| {
        front.track(DirtyFlags::START);
        assert_eq!(front.map(0x102, 3, 0, RW), OK);
        assert_eq!(front.map(0x146, 1, 8, RO), OK);
        test(front);
    });
}

#[test]
fn the_bitmap_has_a_bit_a_page_from_the_requests_iova_on() {
    with_mappings(|front| {
        front.memory.put(BITMAP, &[0, 0, u64::MAX]);
        assert_eq!(call(front, GOOD), (OK, 0x4000));
        // What lies behind is not touched.
        assert_eq!(front.memory.words(BITMAP, 3), [0b11100, 0, u64::MAX]);
        assert_eq!(front.log.count(), 3);
        // Nothing is left: success, and no byte.
        assert_eq!(call(front, GOOD), (OK, 0));
    });
}

#[test]
fn without_the_flag_it_is_a_plain_unmap() {
    with_mappings(|front| {
        front.track(DirtyFlags::STOP);
        let plain = UnmapBitmap {
            flags: 0,
            bitmap_size: 0,
            ..GOOD
        };
        assert_eq!(call(front, plain), (OK, 0x4000));
        assert_eq!(front.memory.words(BITMAP, 2), [0; 2]);
        assert_eq!(front.log.count(), 3, "the log is told in any case");
    });
}

#[test]
fn a_bad_request_has_its_errno_and_changes_nothing() {
    with_mappings(|front| {
        #[rustfmt::skip]
        let bad = [
            (UnmapBitmap { argsz: 39, ..GOOD }, EINVAL),
            (UnmapBitmap { flags: 2, ..GOOD }, EINVAL),
            (UnmapBitmap { flags: 3, ..GOOD }, EINVAL),
            (UnmapBitmap { iova: 0x10_0001, ..GOOD }, EINVAL),
            (UnmapBitmap { size: 0, ..GOOD }, EINVAL),
            (UnmapBitmap { size: 0x8_0001, ..GOOD }, EINVAL),
            (UnmapBitmap { iova: 0u64.wrapping_sub(PAGE_SIZE), ..GOOD }, EOVERFLOW),
            (UnmapBitmap { bitmap_size: 15, ..GOOD }, EINVAL),
            // Page 3 of the range is inside a mapping.
            (UnmapBitmap { iova: 0x10_3000, ..GOOD }, EINVAL),
            (UnmapBitmap { size: 0x4000, ..GOOD }, EINVAL),
            (UnmapBitmap { bitmap: 0, ..GOOD }, EFAULT),
        ];
        for (request, errno) in bad {
            assert_eq!(call(front, request), (errno, request.size), "{request:?}");
            assert_eq!(front.memory.words(BITMAP, 2), [0; 2]);
        }
        front.track(DirtyFlags::STOP);
        assert_eq!(call(front, GOOD).0, EINVAL);
        assert!(front.log.is_clean());
        assert_eq!(front.container.iommu().writable_pages(), 3);
        assert_eq!(front.ioctl(UNMAP_DMA_GET_BITMAP, 0), EFAULT);
    });
}
