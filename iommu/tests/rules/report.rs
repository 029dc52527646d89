//! Which pages are reported as dirty, and when.

use crate::common::world::{device, range};
use crate::in_world;
use hv_core::Gfn;
use hv_core::dirty::DirtySource;
use iommu::DirtyBitmap;
use iommu::space::{Access, Attachment, DmaSpace, SpaceError};
use iommu::unmap::UnmapError;

#[test]
fn read_only_pages_are_never_dirty() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 0, 8, 0, Access::Read).unwrap();
        assert!(world.iommu.is_pinned(Gfn::new(0)));
        world.iommu.mark_writable();
        world.unmap(domain, 0, 8, true).unwrap();
        assert!(world.log.is_clean());
    });
}

#[test]
fn a_bitmap_takes_tracking_and_room_for_every_page() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 0, 8, 0, Access::ReadWrite).unwrap();
        let mut words = [0; 2];
        let mut bitmap = DirtyBitmap::new(&mut words);
        let short = world.iommu.unmap(domain, range(0, 129), Some(&mut bitmap));
        assert_eq!(short, Err(UnmapError::BitmapTooSmall));
        world.iommu.stop_tracking();
        let untracked = world.iommu.unmap(domain, range(0, 128), Some(&mut bitmap));
        assert_eq!(untracked, Err(UnmapError::NotTracking));
        assert_eq!(words, [0, 0]);
        assert!(world.log.is_clean());
        world.unmap(domain, 0, 129, false).unwrap();
    });
}

#[test]
fn identity_makes_all_memory_writable_until_the_last_device_leaves() {
    in_world(|mut world| {
        let frames = world.guest.frames();
        for number in [1, 2] {
            world.attach(device(number), Attachment::Identity).unwrap();
        }
        assert_eq!(world.iommu.writable_pages(), frames);
        assert!(world.iommu.is_pinned(Gfn::new(5)));
        assert!(!world.iommu.is_pinned(Gfn::new(500)), "not guest memory");
        world.device_write(device(2), 5).unwrap();
        world.device_write(device(2), 500).unwrap();
        world.attach(device(2), Attachment::Blocked).unwrap();
        assert!(world.log.is_clean(), "device 1 can still write");
        let domain = world.domains[1];
        world.attach(device(1), Attachment::Domain(domain)).unwrap();
        assert_eq!(world.log.marks_by(DirtySource::Unmap), frames);
        assert_eq!(world.iommu.writable_pages(), 0);
        world.switch_over().unwrap();
    });
}

#[test]
fn a_domain_without_devices_keeps_its_pages_due_for_a_report() {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 0, 2, 4, Access::ReadWrite).unwrap();
        world.device_write(device(1), 1).unwrap();
        world.attach(device(1), Attachment::Blocked).unwrap();
        assert_eq!(world.iommu.writable_pages(), 2);
        world.iommu.destroy_domain(domain).unwrap();
        assert_eq!(world.log.marks_by(DirtySource::Unmap), 2);
        assert_eq!(world.iommu.writable_pages(), 0);
        world.migration.send_dirty();
        assert!(world.migration.lost().is_empty());
        assert_eq!(
            world.iommu.destroy_domain(domain),
            Err(SpaceError::NoDomain)
        );
    });
}
