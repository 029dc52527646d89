//! Domains and devices: how they come, go, fail and are lent.

use crate::common::unit::Fault;
use crate::common::world::{Config, device, iova, range, with_world};
use crate::{gpa, in_world};
use hv_core::Gfn;
use iommu::layer::MapError;
use iommu::space::{Access, Attachment, DmaSpace, SpaceError};
use iommu::unit::UnitError;
use iommu::unmap::UnmapError;
use iommu::{IovaRange, MAX_DEVICES, MAX_DOMAINS};

#[test]
fn a_domain_in_use_is_not_destroyed() {
    in_world(|mut world| {
        let domain = world.domains[0];
        assert_eq!(
            world.iommu.destroy_domain(domain),
            Err(SpaceError::NoDomain)
        );
        world.map(domain, 0, 1, 0, Access::ReadWrite).unwrap();
        world.device_write(device(1), 0).unwrap();
    });
}

#[test]
fn domains_and_devices_run_out_with_an_error() {
    let config = Config {
        table_frames: 400,
        ..Config::default()
    };
    with_world(config, |mut world| {
        for _ in 2..MAX_DOMAINS {
            world.iommu.create_domain().unwrap();
        }
        assert_eq!(world.iommu.create_domain(), Err(SpaceError::OutOfMemory));
        for number in 2..=MAX_DEVICES as u16 {
            world
                .iommu
                .attach(device(number), Attachment::Blocked)
                .unwrap();
        }
        let more = world.iommu.attach(device(99), Attachment::Blocked);
        assert_eq!(more, Err(SpaceError::OutOfMemory));
    });
}

#[test]
fn a_unit_that_does_not_answer_is_lost_and_nothing_is_given_back() {
    check_lost(Fault::DoesNotAnswer, UnitError::NoAnswer);
}

/// It may go on by what it keeps: its pages are nobody else's ever after.
#[test]
fn a_device_that_keeps_its_translations_is_never_taken_for_unmapped() {
    check_lost(Fault::DeviceKeepsSilent, UnitError::DeviceTlb);
}

fn check_lost(fault: Fault, first: UnitError) {
    in_world(|mut world| {
        let domain = world.domains[0];
        world.map(domain, 0, 2, 4, Access::ReadWrite).unwrap();
        world.device_write(device(1), 1).unwrap();
        let frames = world.iommu.frames_available();
        world.hardware.fault.set(fault);
        let result = world.iommu.unmap(domain, range(0, 2), None);
        assert_eq!(result, Err(UnmapError::Unit(first)));
        let lost = UnitError::NoAnswer;
        assert!(world.log.is_marked(Gfn::new(4)) && world.log.is_marked(Gfn::new(5)));
        assert!(world.iommu.unit_is_lost() && world.iommu.is_pinned(Gfn::new(4)));
        assert_eq!(world.iommu.frames_available(), frames);

        world.hardware.fault.set(Fault::None);
        let unit = || SpaceError::Unit(lost);
        let mapped = world.iommu.map(domain, range(8, 1), gpa(0), Access::Read);
        assert_eq!(mapped, Err(MapError::Unit(lost)));
        assert_eq!(world.iommu.create_domain(), Err(unit()));
        assert_eq!(world.iommu.replace(domain, iova(0), &[None]), Err(unit()));
        assert_eq!(world.iommu.unmap_range(domain, IovaRange::ALL), Err(unit()));
        assert_eq!(
            world.iommu.attach(device(1), Attachment::Blocked),
            Err(unit())
        );
        assert_eq!(world.iommu.destroy_domain(domain), Err(unit()));
        // The device goes on writing; the last harvest still finds it.
        world.migration.send_dirty();
        world.hardware.land();
        world.iommu.mark_writable();
        world.migration.send_dirty();
        assert!(world.migration.lost().is_empty());
    });
}

#[test]
fn a_device_that_may_have_come_to_identity_counts_as_there() {
    for (fault, error) in [
        (Fault::DoesNotAnswer, UnitError::NoAnswer),
        (Fault::DeviceKeepsSilent, UnitError::DeviceTlb),
    ] {
        in_world(|mut world| {
            world.hardware.fault.set(fault);
            let result = world.iommu.attach(device(1), Attachment::Identity);
            assert_eq!(result, Err(SpaceError::Unit(error)));
            assert!(world.iommu.unit_is_lost());
            assert_eq!(world.iommu.writable_pages(), world.guest.frames());
        });
    }
}

#[test]
fn a_borrowed_device_reaches_one_page_and_then_what_it_reached_before() {
    in_world(|mut world| {
        let (domain, hardware) = (world.domains[0], world.hardware);
        let frames = world.iommu.frames_available();
        world.map(domain, 10, 1, 0, Access::ReadWrite).unwrap();
        // A page of the hypervisor's: no slot of the guest has it.
        let staging = world.staging();
        let loan = world
            .iommu
            .borrow_device(device(1), [(pages(1, 2), staging)])
            .unwrap();
        assert!(hardware.write(device(1), iova(1)));
        assert!(hardware.write(device(1), iova(2)));
        assert!(!hardware.write(device(1), iova(10)), "the guest's page");
        hardware.land();
        let landed: Vec<_> = hardware.take_landed();
        assert_eq!(landed.len(), 2);
        assert!(landed.iter().all(|write| write.hpa == staging));

        world.iommu.give_back(loan).unwrap();
        assert!(!hardware.write(device(1), iova(1)), "the hypervisor's page");
        world.device_write(device(1), 10).unwrap();
        world.unmap(domain, 10, 1, true).unwrap();
        assert!(world.log.is_marked(Gfn::new(0)));
        assert_eq!(
            world.log.count(),
            1,
            "the hypervisor's page is not reported"
        );
        assert_eq!(world.iommu.frames_available(), frames);
    });
}

#[test]
fn a_device_that_cannot_be_borrowed_stays_where_it_was() {
    let config = Config {
        table_frames: 8,
        ..Config::default()
    };
    with_world(config, |mut world| {
        let staging = world.staging();
        let before = world.iommu.attachment(device(1));
        let mut taken = 0;
        while world.iommu.create_domain().is_ok() {
            taken += 1;
        }
        let refused = world
            .iommu
            .borrow_device(device(1), [(pages(1, 1), staging)]);
        assert_eq!(refused.err(), Some(SpaceError::OutOfMemory));
        assert_eq!(world.iommu.attachment(device(1)), before);
        assert!(taken > 0);
    });
}

#[test]
fn pages_that_would_be_lent_twice_are_not_lent_at_all() {
    in_world(|mut world| {
        let frames = world.iommu.frames_available();
        let before = world.iommu.attachment(device(1));
        let staging = world.staging();
        let twice = [(pages(1, 2), staging), (pages(2, 1), staging)];
        let refused = world.iommu.borrow_device(device(1), twice);
        assert_eq!(refused.err(), Some(SpaceError::OutOfRange));
        assert_eq!(world.iommu.attachment(device(1)), before);
        assert_eq!(world.iommu.frames_available(), frames);
    });
}

#[allow(clippy::unwrap_used)]
fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(iova(first), count).unwrap()
}
