//! Emulated devices: pin, unpin, read and write (section E).

mod common;
mod vfio_support;

use hv_core::dirty::DirtySource;
use hv_core::{Gfn, Gpa, PAGE_SIZE};
use iommu::Iova;
use iommu::space::Access;
use iommu::vfio::abi::{DirtyFlags, UnmapFlags};
use iommu::vfio::{DeviceAccess, Group, Version};
use vfio_support::*;

/// Pages 16 to 19 writable, 20 to 23 readable, 28 not readable.
fn with_mappings(test: impl FnOnce(&mut Front<'_, '_>)) {
    with_emulated(|front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(20, 4, 36, RO), OK);
        let write_only = iommu::vfio::abi::MapFlags::WRITE;
        assert_eq!(front.map(28, 1, 9, write_only), OK);
        test(front);
    });
}

fn pinned(front: &mut Front<'_, '_>, gfn: u64) -> u32 {
    let holders = front.container.iommu().holders(Gfn::new(gfn));
    holders.emulated_devices
}

#[test]
fn e01_pin_checks_in_this_order() {
    let access = Access::Read;
    let given = Given {
        version: Version::V1,
        ..Given::usual()
    };
    with_given(given, |front| {
        let end = (1u64 << 52) - 1;
        assert_eq!(front.pin(end, 0, access), EINVAL);
        assert_eq!(front.pin(end, 2, access), EACCES);
    });
    with_given(Given::usual(), |front| {
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.unmap(16, 4, UnmapFlags::VADDR), (OK, 4 * PAGE_SIZE));
        assert_eq!(front.pin((1 << 52) - 1, 2, access), EOVERFLOW);
        assert_eq!(front.pin(16, 1, access), EBUSY);
        let vaddr = iommu::vfio::abi::MapFlags::VADDR;
        assert_eq!(front.map(16, 4, 0, vaddr), OK);
        assert_eq!(front.pin(16, 1, access), EINVAL, "no device");
        front.container.register_device();
        assert_eq!(front.pin(16, 1, access), EINVAL, "no group");
        front.container.attach_group(EMULATED).unwrap();
        assert_eq!(front.pin(16, 1, access), OK);
        front.container.unregister_device();
        assert_eq!(front.pin(16, 1, access), EINVAL);
    });
    with_mappings(|front| {
        assert_eq!(front.pin(22, 3, Access::ReadWrite), EPERM);
        assert_eq!(front.pin(22, 3, Access::Read), EINVAL);
        assert_eq!(front.pin(28, 1, Access::Read), EPERM);
        let end = Iova::new(u64::MAX - 0xfff);
        let other = Group::Emulated(8);
        let result = front
            .container
            .pin_pages(other, end, Access::Read, &mut [Gfn::new(0)]);
        assert_eq!(errno(result), EINVAL);
    });
}

#[test]
fn e01_all_pages_are_pinned_or_none() {
    let given = Given {
        pins: 2,
        ..Given::usual()
    };
    with_given(given, |front| {
        front.container.attach_group(EMULATED).unwrap();
        front.container.register_device();
        assert_eq!(front.map(16, 4, 0, RW), OK);
        assert_eq!(front.map(20, 1, 8, RO), OK);
        front.track(DirtyFlags::START);
        assert_eq!(front.pin(16, 1, Access::Read), OK);
        front.dirty(16, 5);
        assert_eq!(front.pin(16, 3, Access::Read), ENOMEM);
        assert_eq!(front.pin(16, 5, Access::ReadWrite), ENOMEM);
        assert_eq!(front.pin(19, 2, Access::ReadWrite), EPERM);
        assert_eq!(front.pin(20, 2, Access::Read), EINVAL);
        assert_eq!(front.dirty(16, 5), 1);
        for (gfn, count) in [(0, 1), (1, 0), (3, 0), (8, 0)] {
            assert_eq!(pinned(front, gfn), count);
        }
        // The failed ones did not even count.
        assert_eq!(front.unpin(16, 1), 1);
        assert_eq!(pinned(front, 0), 0);
    });
}

#[test]
fn e01_pinned_frames_are_those_of_the_mapping_and_stay_where_they_are() {
    with_mappings(|front| {
        let mut frames = [Gfn::new(0); 2];
        front
            .container
            .pin_pages(EMULATED, at(21), Access::Read, &mut frames)
            .unwrap();
        assert_eq!(frames, [Gfn::new(37), Gfn::new(38)]);
        assert!(front.container.iommu().is_pinned(frames[1]));
    });
}

#[test]
fn e02_a_second_pin_only_counts() {
    with_mappings(|front| {
        assert_eq!(front.pin(16, 2, Access::ReadWrite), OK);
        assert_eq!(front.pin(17, 1, Access::Read), OK);
        assert_eq!(pinned(front, 1), 1, "one hold for one page");
        front.track(DirtyFlags::STOP);
        assert_eq!(front.unpin(16, 2), 2);
        // Still pinned, so the start finds it.
        front.track(DirtyFlags::START);
        assert_eq!(front.dirty(16, 4), 0b10);
        assert_eq!(front.unpin(17, 1), 1);
        assert_eq!(front.dirty(16, 4), 0b10);
        assert_eq!(front.dirty(16, 4), 0);
        assert_eq!(pinned(front, 1), 0);
    });
}

#[test]
fn e03_a_first_pin_sets_the_bit_and_an_unpin_changes_none() {
    with_mappings(|front| {
        assert_eq!(front.pin(16, 1, Access::Read), OK);
        assert_eq!(front.unpin(16, 1), 1);
        assert_eq!(front.unpin(17, 1), 1, "it was not pinned");
        assert_eq!(front.dirty(16, 4), 0b1);
        assert_eq!(front.dirty(16, 4), 0);
    });
}

#[test]
fn e04_unpin_stops_at_the_first_page_without_a_mapping() {
    with_mappings(|front| {
        assert_eq!(front.pin(22, 2, Access::Read), OK);
        assert_eq!(front.pin(28, 1, Access::Write), OK);
        assert_eq!(front.unpin(22, 7), 2);
        assert_eq!((pinned(front, 39), pinned(front, 9)), (0, 1));
        assert_eq!(front.unpin(u64::MAX >> 12, 9), 0);
    });
}

#[test]
fn e05_reads_and_writes_go_over_mappings_and_writes_are_dirty() {
    with_mappings(|front| {
        let from = |page: u64, offset| Iova::new(page * PAGE_SIZE + offset);
        let data: Vec<u8> = (0..5000).map(|byte| byte as u8).collect();
        front.container.write(from(17, 0xffe), &data).unwrap();
        assert_eq!(front.dirty(16, 4), 0b1110);
        assert_eq!(front.dirty(16, 4), 0, "once");
        assert_eq!(front.log.marks_by(DirtySource::Hypervisor), 3);
        let mut back = vec![0; 5000];
        front.container.read(from(17, 0xffe), &mut back).unwrap();
        assert_eq!(back, data);
        front.guest.read(Gpa::new(0x1ffe), &mut back).unwrap();
        assert_eq!(back, data);
        // Over the edge of two mappings.
        front
            .container
            .read(from(19, 0xfff), &mut back[..2])
            .unwrap();

        let container = &mut front.container;
        assert_eq!(errno(container.write(from(19, 0xfff), &[1; 2])), EPERM);
        assert_eq!(errno(container.read(from(28, 0), &mut back[..1])), EPERM);
        assert_eq!(errno(container.write(from(28, 0xfff), &[1; 2])), EINVAL);
        assert_eq!(errno(container.write(from(16, 0), &[])), EINVAL);
        let end = Iova::new(u64::MAX);
        assert_eq!(errno(container.write(end, &[1; 2])), EINVAL);
        let mut edge = [0];
        container.read(from(19, 0xfff), &mut edge).unwrap();
        assert_eq!(edge, [0], "a refused write wrote nothing");
        assert_eq!(front.dirty(16, 13), 0);
    });
}

#[test]
fn e06_what_emulated_devices_may_have_written_reaches_the_guests_log() {
    with_mappings(|front| {
        front.container.write(at(16), &[1]).unwrap();
        assert!(front.log.is_marked(Gfn::new(0)));
        // A pinned page is written without anybody's notice: its unmap tells.
        assert_eq!(front.pin(17, 1, Access::ReadWrite), OK);
        assert!(!front.log.is_marked(Gfn::new(1)));
        front.unmap(16, 4, UnmapFlags::empty());
        assert!(front.log.is_marked(Gfn::new(1)));
        // And one that is pinned at the end, the last harvest.
        assert_eq!(front.map(16, 4, 20, RW), OK);
        assert_eq!(front.pin(17, 1, Access::ReadWrite), OK);
        front.container.iommu().mark_writable();
        assert!(front.log.is_marked(Gfn::new(21)));
        assert!(!front.log.is_marked(Gfn::new(36)), "read-only");
    });
}
