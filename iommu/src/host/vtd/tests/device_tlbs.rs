//! Devices with TLBs of their own.

use super::*;
use crate::device_tlb::{AtsCapability, DeviceTlb, NoDeviceTlb, Trust};
use crate::host::vtd::fake::DeviceConduct;
use crate::page_block::PageBlock;

fn tlb() -> DeviceTlb {
    let ats = AtsCapability { queue_depth: 5 };
    DeviceTlb::decide(Some(ats), Trust::Vouched).unwrap()
}

/// A unit that knows of device TLBs, and in it [`DEVICE`] with one, in domain 1.
fn attached<'a>(fake: &'a FakeUnit<'a>, arena: &'a Arena) -> Unit<'a> {
    fake.state().extended.device_tlb = true;
    let mut unit = start(fake, arena).unwrap();
    unit.allow_device_tlb(DEVICE, tlb()).unwrap();
    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    unit
}

fn page(number: u64) -> Scope {
    Scope::Pages(IovaRange::new(Iova::new(number << 12), 1).unwrap())
}

#[test]
fn a_unit_that_does_not_know_of_device_tlbs_allows_none() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = start(&fake, &arena).unwrap();
    let refused = unit.allow_device_tlb(DEVICE, tlb());
    assert_eq!(refused, Err(NoDeviceTlb::Unit));
}

#[test]
fn a_device_that_was_not_allowed_a_tlb_has_an_entry_that_refuses_its_requests() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    let other = SourceId::new(0x0020);
    unit.attach(other, domain(1), TABLE_A).unwrap();
    for device in [DEVICE, other] {
        fake.dma(device, 3).unwrap();
    }
    let keeps = |device| fake.state().keeps(device, 3);
    assert!(keeps(DEVICE) && !keeps(other));
}

#[test]
fn devices_are_told_after_the_unit_and_before_the_wait() {
    for throttles in [false, true] {
        let arena = arena();
        let fake = FakeUnit::new(&arena);
        fake.state().extended.device_tlb_throttling = throttles;
        let mut unit = attached(&fake, &arena);
        fake.state().events.clear();
        unit.invalidate(domain(1), page(9)).unwrap();
        let own = iotlb(IotlbScope::Pages {
            domain: 1,
            address: 0x9000,
            order: 0,
            leaves_only: false,
        });
        let devices = Descriptor::DeviceTlb {
            source: DEVICE,
            pending: 5,
            physical: SourceId::new(if throttles { DEVICE.raw() } else { 0 }),
            block: PageBlock { page: 9, order: 0 },
        };
        let events = fake.state().events.clone();
        assert_eq!(events[0], Event::Carried(own, false));
        assert_eq!(events[1], Event::Carried(devices.encode(), false));
        assert!(matches!(events[2..], [Event::Carried(raw, _)] if is_wait(raw)));
    }
}

#[test]
fn other_domains_and_devices_without_tlbs_cost_nothing_more() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    let other = SourceId::new(0x0020);
    unit.attach(other, domain(2), TABLE_B).unwrap();
    fake.state().events.clear();
    unit.invalidate(domain(2), Scope::Domain).unwrap();
    assert_eq!(fake.state().take_invalidations().len(), 1);
    unit.block(DEVICE).unwrap();
    fake.state().events.clear();
    unit.invalidate(domain(1), Scope::Domain).unwrap();
    assert_eq!(fake.state().take_invalidations().len(), 1);
}

/// A device that does not answer may go on: that is no success, then or ever after.
#[test]
fn a_device_that_keeps_silent_is_an_error_of_its_own_and_the_unit_stays_lost() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    let mut unit = attached(&fake, &arena);
    fake.state().devices = DeviceConduct::KeepSilent;
    let invalidated = unit.invalidate(domain(1), page(9));
    assert_eq!(invalidated, Err(UnitError::DeviceTlb));
    fake.state().devices = DeviceConduct::Obey;
    fake.state().faults = FaultStatus::empty();
    let invalidated = unit.invalidate(domain(1), page(9));
    assert_eq!(invalidated, Err(UnitError::NoAnswer));
}

/// Devices ask anew whenever they can; the domain's tables change, and are invalidated.
/// Whether some DMA then ends where it did before.
fn uses_old_translations(conduct: DeviceConduct, scalable: Option<bool>) -> bool {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    if let Some(second_stage) = scalable {
        make_scalable(&fake, second_stage);
    }
    let mut unit = attached(&fake, &arena);
    fake.state().devices = conduct;
    let pages = [0, 3, 4, 511, 512];
    let mut is_stale = false;
    for (version, scope) in [Scope::Domain, page(3), Scope::Domain]
        .into_iter()
        .enumerate()
    {
        let before = fake.state().version;
        for page in pages {
            fake.dma(DEVICE, page).unwrap();
        }
        fake.state().version = version as u64 + 1;
        unit.invalidate(domain(1), scope).unwrap();
        is_stale |= fake.dma(DEVICE, 3) == Some(TABLE_A.raw() + before);
    }
    // It comes back to the domain it left.
    unit.attach(DEVICE, domain(2), TABLE_B).unwrap();
    is_stale |= fake.dma(DEVICE, 3) != Some(TABLE_B.raw() + fake.state().version);
    unit.block(DEVICE).unwrap();
    is_stale | fake.dma(DEVICE, 3).is_some()
}

#[test]
fn no_dma_uses_what_a_device_was_to_forget() {
    for scalable in [None, Some(false), Some(true)] {
        assert!(!uses_old_translations(DeviceConduct::Obey, scalable));
        // And it would be seen.
        for conduct in [DeviceConduct::KeepTheirs, DeviceConduct::ObeyTooEarly] {
            assert!(uses_old_translations(conduct, scalable), "{conduct:?}");
        }
    }
}
