//! The seed's call, as its user sees it: bytes in, bytes and an errno out.

#![allow(clippy::unwrap_used)]

mod common;

use common::world::{Config, World, with_world};
use iommu::seed::{FLAG_GET_DIRTY_BITMAP, UNMAP_DMA_GET_BITMAP, ioctl};
use iommu::space::Access;

const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

struct Request {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
    bitmap_size: u64,
}

const GOOD: Request = Request {
    argsz: 40,
    flags: FLAG_GET_DIRTY_BITMAP,
    iova: 0x10_0000,
    size: 0x8_0000,
    bitmap_size: 16,
};

impl Request {
    fn bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[0..4].copy_from_slice(&self.argsz.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.iova.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bitmap_size.to_le_bytes());
        bytes[32..40].copy_from_slice(&0xdead_beef_u64.to_le_bytes());
        bytes
    }

    /// The errno (0 for success), and the size as it is afterwards.
    fn call(&self, world: &mut World<'_>, bitmap: &mut [u64]) -> (i32, u64) {
        let mut bytes = self.bytes();
        let domain = world.domains[0];
        let command = UNMAP_DMA_GET_BITMAP;
        let result = ioctl(&mut world.iommu, domain, command, &mut bytes, bitmap);
        let size = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
        let expected = Self { size, ..*self };
        assert_eq!(bytes, expected.bytes(), "only the size may change");
        (result.err().map_or(0, |error| error.errno()), size)
    }
}

/// Pages 2 to 4 of the request's range may be written, page 70 only read.
fn with_mappings(test: impl FnOnce(World<'_>)) {
    with_world(Config::default(), |mut world| {
        let domain = world.domains[0];
        world.map(domain, 0x102, 3, 0, Access::ReadWrite).unwrap();
        world.map(domain, 0x146, 1, 8, Access::Read).unwrap();
        test(world);
    });
}

#[test]
fn the_bitmap_has_a_bit_a_page_from_the_requests_iova_on() {
    with_mappings(|mut world| {
        let mut bitmap = [1 << 63, 0, u64::MAX];
        assert_eq!(GOOD.call(&mut world, &mut bitmap), (0, 0x4000));
        // Bits that were set stay, and what lies behind is not touched.
        assert_eq!(bitmap, [1 << 63 | 0b11100, 0, u64::MAX]);
        assert_eq!(world.log.count(), 3);
        // Nothing is left: success, and no byte.
        assert_eq!(GOOD.call(&mut world, &mut [0; 2]), (0, 0));
    });
}

#[test]
fn without_the_flag_it_is_a_plain_unmap() {
    with_mappings(|mut world| {
        world.iommu.stop_tracking();
        let plain = Request {
            flags: 0,
            bitmap_size: 0,
            ..GOOD
        };
        let mut bitmap = [0; 2];
        assert_eq!(plain.call(&mut world, &mut bitmap), (0, 0x4000));
        assert_eq!(bitmap, [0; 2]);
        assert_eq!(world.log.count(), 3, "the log is told in any case");
    });
}

#[test]
fn a_bad_request_has_its_errno_and_changes_nothing() {
    with_mappings(|mut world| {
        let bad = [
            (Request { argsz: 39, ..GOOD }, EINVAL),
            (Request { flags: 2, ..GOOD }, EINVAL),
            (Request { flags: 3, ..GOOD }, EINVAL),
            (
                Request {
                    iova: 0x10_0001,
                    ..GOOD
                },
                EINVAL,
            ),
            (Request { size: 0, ..GOOD }, EINVAL),
            (
                Request {
                    size: 0x8_0001,
                    ..GOOD
                },
                EINVAL,
            ),
            (
                Request {
                    iova: 0u64.wrapping_sub(0x1000),
                    ..GOOD
                },
                EINVAL,
            ),
            (
                Request {
                    bitmap_size: 15,
                    ..GOOD
                },
                EINVAL,
            ),
            // Page 3 of the range is inside a mapping.
            (
                Request {
                    iova: 0x10_3000,
                    ..GOOD
                },
                EINVAL,
            ),
            (
                Request {
                    size: 0x4000,
                    ..GOOD
                },
                EINVAL,
            ),
            // More pages than the memory behind the pointer has bits for.
            (
                Request {
                    size: 0x10_0000,
                    bitmap_size: 1 << 20,
                    ..GOOD
                },
                EFAULT,
            ),
        ];
        for (request, errno) in bad {
            let size = request.size;
            let mut bitmap = [0; 2];
            assert_eq!(request.call(&mut world, &mut bitmap), (errno, size));
            assert_eq!(bitmap, [0; 2]);
        }
        world.iommu.stop_tracking();
        assert_eq!(GOOD.call(&mut world, &mut [0; 2]).0, EINVAL);
        assert!(world.log.is_clean());
        assert_eq!(world.iommu.writable_pages(), 3);

        let domain = world.domains[0];
        let mut call = |command, bytes: &mut [u8]| {
            let result = ioctl(&mut world.iommu, domain, command, bytes, &mut []);
            result.unwrap_err().errno()
        };
        assert_eq!(call(UNMAP_DMA_GET_BITMAP, &mut [0; 39]), EFAULT);
        assert_eq!(call(0x3b72, &mut GOOD.bytes()), ENOTTY);
    });
}
