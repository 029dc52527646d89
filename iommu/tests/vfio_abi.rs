//! Numbers, structures and GET_INFO (section A), against the C headers.

mod common;
mod vfio_support;

use iommu::vfio::abi::*;
use iommu::vfio::dma_logging;
use std::mem::{offset_of, size_of};
use vfio_bindings::bindings::vfio as c;
use vfio_support::*;

/// Same size, and each field at the same place.
macro_rules! same_layout {
    ($ours:ty, $theirs:ty, $($field:ident),+) => {
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), stringify!($ours));
        $(assert_eq!(offset_of!($ours, $field), offset_of!($theirs, $field), stringify!($field));)+
    };
}

fn number(offset: u32) -> u32 {
    u32::from(c::VFIO_TYPE) << 8 | (c::VFIO_BASE + offset)
}

#[test]
fn a01_commands_have_plain_numbers_and_others_are_enotty() {
    let known = [
        (CHECK_EXTENSION, 1),
        (GET_INFO, 12),
        (MAP_DMA, 13),
        (UNMAP_DMA, 14),
        (DIRTY_PAGES, 17),
        (dma_logging::DEVICE_FEATURE, 17),
        (iommu::vfio::seed::UNMAP_DMA_GET_BITMAP, 18),
    ];
    for (command, offset) in known {
        assert_eq!(command, number(offset));
    }
    with_front(|front| {
        for command in [number(15), number(16), number(19), 0, MAP_DMA | 1 << 30] {
            assert_eq!(front.ioctl(command, 0), ENOTTY, "before the pointer");
        }
    });
}

#[test]
fn a02_a_bad_pointer_is_a_fault_and_comes_before_argsz() {
    with_front(|front| {
        for (command, size) in [
            (GET_INFO, 16),
            (MAP_DMA, 32),
            (UNMAP_DMA, 24),
            (DIRTY_PAGES, 8),
        ] {
            for bad in [0, u64::MAX, u64::MAX - 3] {
                assert_eq!(front.ioctl(command, bad), EFAULT);
            }
            front.memory.put(ARG, &[0u64; 4]);
            assert_eq!(front.ioctl(command, ARG), EINVAL, "argsz is 0");
            front.memory.absent = Some(ARG + size - 1..ARG + size);
            assert_eq!(front.ioctl(command, ARG), EFAULT);
            front.memory.absent = Some(ARG + size..ARG + size + 8);
            assert_eq!(front.ioctl(command, ARG), EINVAL);
            front.memory.absent = None;
        }
        let long = DmaMap {
            argsz: u32::MAX,
            ..map_request(16, 1, 0, RW)
        };
        assert_eq!(front.call(MAP_DMA, &long), OK);
    });
}

#[test]
fn a03_structures_and_flags_are_those_of_the_headers() {
    same_layout!(
        DmaMap,
        c::vfio_iommu_type1_dma_map,
        argsz,
        flags,
        vaddr,
        iova,
        size
    );
    same_layout!(
        DmaUnmap,
        c::vfio_iommu_type1_dma_unmap,
        argsz,
        flags,
        iova,
        size
    );
    same_layout!(Bitmap, c::vfio_bitmap, pgsize, size, data);
    same_layout!(
        DirtyBitmapHeader,
        c::vfio_iommu_type1_dirty_bitmap,
        argsz,
        flags
    );
    same_layout!(
        BitmapRange,
        c::vfio_iommu_type1_dirty_bitmap_get,
        iova,
        size,
        bitmap
    );
    same_layout!(
        Info,
        c::vfio_iommu_type1_info,
        argsz,
        flags,
        iova_pgsizes,
        cap_offset
    );
    same_layout!(CapHeader, c::vfio_info_cap_header, id, version, next);
    same_layout!(ValidRange, c::vfio_iova_range, start, end);
    same_layout!(
        CapIovaRanges,
        c::vfio_iommu_type1_info_cap_iova_range,
        header,
        nr_iovas
    );
    same_layout!(
        CapMigration,
        c::vfio_iommu_type1_info_cap_migration,
        header,
        flags,
        pgsize_bitmap,
        max_dirty_bitmap_size
    );
    assert_eq!(
        offset_of!(CapDmaAvail, avail),
        offset_of!(c::vfio_iommu_type1_info_dma_avail, avail)
    );
    let flags = [
        (MapFlags::READ.bits(), c::VFIO_DMA_MAP_FLAG_READ),
        (MapFlags::WRITE.bits(), c::VFIO_DMA_MAP_FLAG_WRITE),
        (MapFlags::VADDR.bits(), c::VFIO_DMA_MAP_FLAG_VADDR),
        (
            UnmapFlags::GET_DIRTY_BITMAP.bits(),
            c::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
        ),
        (UnmapFlags::ALL.bits(), c::VFIO_DMA_UNMAP_FLAG_ALL),
        (UnmapFlags::VADDR.bits(), c::VFIO_DMA_UNMAP_FLAG_VADDR),
        (
            DirtyFlags::START.bits(),
            c::VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
        ),
        (DirtyFlags::STOP.bits(), c::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP),
        (
            DirtyFlags::GET_BITMAP.bits(),
            c::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
        ),
        (InfoFlags::PGSIZES.bits(), c::VFIO_IOMMU_INFO_PGSIZES),
        (InfoFlags::CAPS.bits(), c::VFIO_IOMMU_INFO_CAPS),
    ];
    for (ours, theirs) in flags {
        assert_eq!(ours, theirs);
    }
    let extensions = [
        (extension::TYPE1, c::VFIO_TYPE1_IOMMU),
        (extension::TYPE1_V2, c::VFIO_TYPE1v2_IOMMU),
        (extension::UNMAP_ALL, c::VFIO_UNMAP_ALL),
        (extension::UPDATE_VADDR, c::VFIO_UPDATE_VADDR),
    ];
    for (ours, theirs) in extensions {
        assert_eq!(ours, u64::from(theirs));
    }
}

#[test]
fn a04_bit_i_is_the_page_i_pages_behind_the_requests_iova() {
    with_front(|front| {
        front.track(DirtyFlags::START);
        assert_eq!(front.map(100, 1, 0, RW), OK);
        for start in [37, 36, 99, 100] {
            let bit = 100 - start;
            let mut words = [0; 2];
            assert_eq!(front.get_bitmap(start, 70, &mut words), OK);
            let mut expected = [0; 2];
            expected[bit as usize / 64] = 1 << (bit % 64);
            assert_eq!(words, expected, "from page {start}");
        }
        // 64 pages take 8 bytes, 65 take 16.
        let mut range = range_request(37, 64, 8);
        assert_eq!(front.get(&range), OK);
        range.size += 4096;
        assert_eq!(front.get(&range), EINVAL);
        range.bitmap.size = 15;
        assert_eq!(front.get(&range), EINVAL);
        // A bitmap may lie at any address.
        range.bitmap.size = 16;
        range.bitmap.data += 3;
        front.memory.put(BITMAP, &[0u64; 4]);
        assert_eq!(front.get(&range), OK);
        let byte: u8 = front.memory.get(BITMAP + 3 + 63 / 8);
        assert_eq!(byte, 1 << (63 % 8));
    });
}

#[test]
fn a05_get_info_has_its_capabilities_or_says_how_much_room_they_take() {
    with_front(|front| {
        assert_eq!(front.map(16, 1, 0, RW), OK);
        let mut info = Info {
            argsz: 119,
            flags: 0,
            iova_pgsizes: 0,
            cap_offset: 99,
            pad: 0,
        };
        assert_eq!(front.call(GET_INFO, &info), OK);
        let answer: Info = front.memory.get(ARG);
        let flags = InfoFlags::PGSIZES | InfoFlags::CAPS;
        assert_eq!((answer.argsz, answer.flags), (120, flags.bits()));
        assert_eq!((answer.iova_pgsizes, answer.cap_offset), (0x20_1000, 0));

        info.argsz = 200;
        assert_eq!(front.call(GET_INFO, &info), OK);
        let answer: Info = front.memory.get(ARG);
        assert_eq!((answer.argsz, answer.cap_offset), (200, 24));
        let mut at = answer.cap_offset;
        let mut ids = Vec::new();
        while at != 0 {
            let cap = ARG + u64::from(at);
            let header: CapHeader = front.memory.get(cap);
            assert_eq!(header.version, 1);
            ids.push(header.id);
            at = header.next;
            match header.id {
                1 => {
                    let ranges: CapIovaRanges = front.memory.get(cap);
                    assert_eq!(ranges.nr_iovas, 2);
                    let first: ValidRange = front.memory.get(cap + 16);
                    let second: ValidRange = front.memory.get(cap + 32);
                    assert_eq!((first.start, first.end), (0, 0xfedf_ffff));
                    assert_eq!((second.start, second.end), (0xfef0_0000, (1 << 48) - 1));
                }
                2 => {
                    let migration: CapMigration = front.memory.get(cap);
                    assert_eq!((migration.flags, migration.pgsize_bitmap), (0, 4096));
                    assert_eq!(migration.max_dirty_bitmap_size, 1 << 28);
                }
                _ => {
                    let avail: CapDmaAvail = front.memory.get(cap);
                    assert_eq!(avail.avail, 15);
                }
            }
        }
        assert_eq!(ids, [2, 3, 1]);

        // A caller who knows only the first fields gets only those.
        info.argsz = 16;
        assert_eq!(front.call(GET_INFO, &info), OK);
        let answer: Info = front.memory.get(ARG);
        assert_eq!((answer.argsz, answer.cap_offset), (120, 99));
        info.argsz = 15;
        assert_eq!(front.call(GET_INFO, &info), EINVAL);
    });
}
