//! MAP_DMA, rule by rule (section B), and what precedes it (section A).

mod common;
mod vfio_support;

use common::world::{Config, device, iova};
use hv_core::{Gfn, PAGE_SIZE};
use iommu::space::Access;
use iommu::vfio::abi::{DirtyFlags, DmaMap, MAP_DMA, MapFlags, UnmapFlags};
use vfio_support::*;

const GOOD: DmaMap = DmaMap {
    argsz: 32,
    flags: 3,
    vaddr: VADDR,
    iova: 0x10_0000,
    size: 0x4000,
};

fn errno_of(request: DmaMap) -> i32 {
    let mut errno = OK;
    with_front(|front| errno = front.call(MAP_DMA, &request));
    errno
}

#[test]
fn b01_a_short_request_or_an_unknown_flag_is_refused() {
    assert_eq!(errno_of(GOOD), OK);
    assert_eq!(errno_of(DmaMap { argsz: 31, ..GOOD }), EINVAL);
    assert_eq!(errno_of(DmaMap { argsz: 99, ..GOOD }), OK);
    // Before the size, which would give another errno.
    let size = u64::MAX;
    for (argsz, flags) in [(31, 3), (32, 3 | 8), (32, 1 << 31)] {
        let bad = DmaMap {
            argsz,
            flags,
            size,
            ..GOOD
        };
        assert_eq!(errno_of(bad), EINVAL);
    }
}

#[test]
fn b02_no_field_is_cut_to_fewer_bits() {
    // What is above 32 bits counts: a cut field would be in place.
    let high = 1 << 32;
    let aside = DmaMap {
        vaddr: VADDR + high * PAGE_SIZE,
        ..GOOD
    };
    assert_eq!(errno_of(aside), EFAULT);
    let long = DmaMap {
        size: high + 0x4000,
        ..GOOD
    };
    assert_eq!(errno_of(long), EINVAL, "over the interrupt range");
    with_front(|front| {
        let page = GOOD.iova / PAGE_SIZE;
        assert_eq!(front.map(page + high / PAGE_SIZE, 4, 0, RW), OK);
        assert_eq!(front.map(page, 4, 0, RW), OK);
    });
}

#[test]
fn b03_empty_is_invalid_and_wrapping_an_overflow_before_flags_and_alignment() {
    let empty = DmaMap {
        size: 0,
        vaddr: u64::MAX,
        ..GOOD
    };
    assert_eq!(errno_of(empty), EINVAL);
    for flags in [0, 3, 7] {
        let iova = u64::MAX - 0xffe;
        let wraps = DmaMap {
            flags,
            iova,
            size: 0x1000,
            ..GOOD
        };
        assert_eq!(errno_of(wraps), EOVERFLOW);
        let wraps = DmaMap {
            flags,
            vaddr: iova,
            size: 0x1001,
            ..GOOD
        };
        assert_eq!(errno_of(wraps), EOVERFLOW);
    }
    // Up to the end of the address space is no overflow.
    let ends = DmaMap {
        iova: u64::MAX - 0xfff,
        size: 0x1000,
        ..GOOD
    };
    assert_eq!(errno_of(ends), EINVAL);
}

#[test]
fn b04_rights_or_vaddr_and_not_both_or_neither() {
    for (flags, errno) in [(0, EINVAL), (5, EINVAL), (6, EINVAL), (7, EINVAL)] {
        assert_eq!(errno_of(DmaMap { flags, ..GOOD }), errno);
    }
    for (flags, errno) in [(1, OK), (2, OK), (3, OK), (4, ENOENT)] {
        assert_eq!(errno_of(DmaMap { flags, ..GOOD }), errno);
    }
}

#[test]
fn b05_all_three_are_multiples_of_the_smallest_page() {
    for unaligned in [1, 0x200, 0x800, 0xfff] {
        for bad in [
            DmaMap {
                iova: GOOD.iova + unaligned,
                ..GOOD
            },
            DmaMap {
                vaddr: GOOD.vaddr + unaligned,
                ..GOOD
            },
            DmaMap {
                size: GOOD.size + unaligned,
                ..GOOD
            },
        ] {
            assert_eq!(errno_of(bad), EINVAL);
            // Before it is looked for.
            let flags = MapFlags::VADDR.bits();
            assert_eq!(errno_of(DmaMap { flags, ..bad }), EINVAL);
        }
    }
}

#[test]
fn b06_an_address_is_updated_where_it_is_invalid_and_the_mapping_exactly_it() {
    with_front(|front| {
        let vaddr = MapFlags::VADDR;
        assert_eq!(front.map(16, 4, 0, vaddr), ENOENT);
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(16, 4, 0, vaddr), EINVAL, "it is valid");
        assert_eq!(front.unmap(16, 4, UnmapFlags::VADDR), (OK, 0x4000));
        for (page, pages) in [(16, 3), (17, 3), (16, 5), (15, 5), (19, 9)] {
            assert_eq!(front.map(page, pages, 0, vaddr), EINVAL);
        }
        assert_eq!(front.map(20, 4, 0, vaddr), ENOENT);
        assert_eq!(front.map(16, 4, 1, vaddr), EINVAL, "other memory");
        assert_eq!(front.map(16, 4, 0, vaddr), OK);
        assert_eq!(front.map(16, 4, 0, vaddr), EINVAL);
        assert!(front.hardware.write(device(2), iova(19)));
    });
}

#[test]
fn b07_an_overlap_is_refused_before_anything_else_is_looked_at() {
    with_front(|front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        for (page, pages) in [(16, 4), (15, 2), (19, 1), (17, 1), (0, 40)] {
            // Frame 99 does not exist.
            assert_eq!(front.map(page, pages, 99, RO), EEXIST);
        }
        assert_eq!(front.map(15, 1, 0, RW), OK);
        assert_eq!(front.map(20, 1, 0, RW), OK);
    });
}

#[test]
fn b08_no_more_mappings_than_there_is_memory_for_is_enospc() {
    let given = Given {
        mappings: 2,
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(REAL).unwrap();
        assert_eq!(front.map(1, 1, 0, RW), OK);
        assert_eq!(front.map(2, 1, 0, RW), OK);
        assert_eq!(front.map(2, 1, 0, RW), EEXIST, "the overlap comes first");
        assert_eq!(front.map(3, 1, 0, RW), ENOSPC);
        assert_eq!(front.map(0xfee00, 1, 0, RW), ENOSPC, "before the ranges");
        front.unmap(1, 1, UnmapFlags::empty());
        assert_eq!(front.map(3, 1, 0, RW), OK);
    });
}

#[test]
fn b09_a_mapping_lies_in_one_valid_range() {
    with_front(|front| {
        let width = 1 << (48 - 12);
        let invalid = [
            (0xfee00, 1),
            (0xfeeff, 1),
            (0xfedff, 2),
            (0xfeeff, 2),
            (width, 1),
            (width - 1, 2),
            ((1 << 52) - 1, 1),
        ];
        for (page, pages) in invalid {
            // Frame 99 does not exist: the address is checked before memory.
            assert_eq!(front.map(page, pages, 99, RW), EINVAL);
        }
        for page in [0, 0xfedff, 0xfef00, width - 1] {
            assert_eq!(front.map(page, 1, 0, RW), OK);
            assert!(front.hardware.write(device(2), iova(page)));
        }
    });
}

#[test]
fn b10_a_failure_undoes_the_whole_mapping() {
    let given = Given {
        world: Config {
            // Three roots, and two of three tables that a mapping takes.
            table_frames: 5,
            ..Config::default()
        },
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(REAL).unwrap();
        assert_eq!(front.map(16, 41, 0, RW), EFAULT, "no such memory");
        assert_eq!(front.map(16, 4, 0, RW), ENOMEM, "no memory for tables");
        let iommu = front.container.iommu();
        assert_eq!((iommu.frames_available(), iommu.writable_pages()), (2, 0));
        assert!(!iommu.is_pinned(Gfn::new(0)));
        assert!(!front.hardware.write(device(2), iova(16)));
        let unmapped = front.unmap(16, 4, UnmapFlags::empty());
        assert_eq!(unmapped, (OK, 0), "nothing is there");
    });
}

#[test]
fn b11_a_mapping_made_while_tracking_has_clear_bits_or_is_not_made() {
    let given = Given {
        words: 1,
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(EMULATED).unwrap();
        assert_eq!(front.track(DirtyFlags::START), OK);
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.dirty(16, 4), 0);
        assert_eq!(front.map(32, 4, 0, RW), ENOMEM);
        assert_eq!(front.unmap(32, 4, UnmapFlags::empty()), (OK, 0));
        assert_eq!(front.map(32, 4, 0, RO), OK, "it cannot be dirty");
        front.unmap(16, 4, UnmapFlags::empty());
        assert_eq!(front.map(32 + 4, 4, 0, RW), OK);
        assert_eq!(front.dirty(32, 8), 0);
    });
}

#[test]
fn b12_neighbours_are_never_coalesced() {
    with_front(|front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(20, 4, 4, RW), OK);
        let none = UnmapFlags::empty();
        assert_eq!(front.unmap(18, 4, none).0, EINVAL);
        assert_eq!(front.unmap(20, 4, none), (OK, 0x4000));
        assert_eq!(front.unmap(16, 4, none), (OK, 0x4000));
    });
}

#[test]
fn b13_the_smallest_page_is_the_same_whatever_is_attached() {
    with_given(Given::usual(), |front| {
        let mut sizes = Vec::new();
        for group in [None, Some(EMULATED), Some(REAL)] {
            if let Some(group) = group {
                front.container.attach_group(group).unwrap();
            }
            let request = [24u32, 0, 0, 0, 0, 0];
            assert_eq!(front.call(iommu::vfio::abi::GET_INFO, &request), OK);
            sizes.push(front.memory.get::<u64>(ARG + 8));
            assert_eq!(front.map(16 + sizes.len() as u64, 1, 0, RW), OK);
        }
        assert_eq!(sizes, [PAGE_SIZE | 2 << 20; 3]);
    });
}

#[test]
fn a_page_says_who_holds_it() {
    with_front(|front| {
        assert_eq!(front.map(16, 1, 3, RW), OK);
        let iommu = front.container.iommu();
        let gfn = Gfn::new(3);
        for _ in 0..7 {
            iommu.hold(gfn, iommu::hold::HeldBy::Copy).unwrap();
        }
        assert!(iommu.hold(gfn, iommu::hold::HeldBy::Copy).is_err());
        let holders = iommu.holders(gfn);
        assert_eq!((holders.writable, holders.copies), (1, 7));
        for _ in 0..7 {
            iommu.release(gfn, iommu::hold::HeldBy::Copy);
        }
        front.container.register_device();
        front.container.attach_group(EMULATED).unwrap();
        assert_eq!(front.pin(16, 1, Access::Read), OK);
        let holders = front.container.iommu().holders(gfn);
        assert_eq!((holders.writable, holders.emulated_devices), (1, 1));
    });
}
