//! Scalable mode: entries and invalidations of its own.

use super::*;

fn pasid_cache(domain: u16) -> u128 {
    PasidDescriptor::Cache(PasidCacheScope::Domain { domain }).encode()
}

fn pasid_iotlb(domain: u16, scope: PasidIotlbScope) -> u128 {
    let pasid = 0;
    let descriptor = PasidDescriptor::Iotlb {
        domain,
        pasid,
        scope,
    };
    descriptor.encode()
}

#[test]
fn in_scalable_mode_context_pasid_and_translations_go_in_this_order() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    make_scalable(&fake, false);
    fake.state().watched = DEVICE;
    let mut unit = start(&fake, &arena).unwrap();
    assert_eq!(
        (unit.levels(), unit.format()),
        (4, AnyFormat::VtdFirstStage)
    );
    let contexts = Descriptor::ContextCache(ContextCacheScope::Global).encode();
    let pasids = PasidDescriptor::Cache(PasidCacheScope::Global).encode();
    assert_eq!(
        fake.state().take_invalidations(),
        [
            (contexts, false),
            (pasids, false),
            (iotlb(IotlbScope::Global), false)
        ]
    );

    unit.attach(DEVICE, domain(1), TABLE_A).unwrap();
    fake.state().events.clear();
    unit.attach(DEVICE, domain(2), TABLE_B).unwrap();
    assert_eq!(
        fake.state().take_invalidations(),
        [
            (context_of(1), false),
            (pasid_cache(1), false),
            (pasid_iotlb(1, PasidIotlbScope::All), false),
            (context_of(0), true),
            (pasid_cache(0), true),
            (pasid_iotlb(2, PasidIotlbScope::All), true),
        ]
    );
}

#[test]
fn second_stage_tables_of_scalable_mode_are_invalidated_as_in_legacy_mode() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    make_scalable(&fake, true);
    let mut unit = start(&fake, &arena).unwrap();
    assert_eq!(
        (unit.levels(), unit.format()),
        (3, AnyFormat::VtdSecondStageDirty)
    );
    fake.state().events.clear();
    unit.invalidate(domain(1), Scope::Domain).unwrap();
    let expected = iotlb(IotlbScope::Domain { domain: 1 });
    assert_eq!(fake.state().take_invalidations(), [(expected, false)]);
}

#[test]
fn a_device_without_memory_for_its_pasid_tables_is_refused() {
    let arena = arena();
    let fake = FakeUnit::new(&arena);
    make_scalable(&fake, false);
    // Root, queue, status, one context table, and one of two PASID frames.
    let pool = FramePool::new(BASE, 5);
    let mut unit = VtdUnit::start(&fake, &arena, pool, Implementation::Hardware).unwrap();
    let refused = unit.attach(DEVICE, domain(1), TABLE_A);
    assert_eq!(refused, Err(UnitError::OutOfMemory));
    assert_eq!(fake.dma(DEVICE, 0), None);
}
