//! The emulated VT-d unit as a driver sees it, from power on to switch off.

mod viommu_support;

use hv_core::Gpa;
use iommu::Iova;
use iommu::space::{Access, Attachment};

use iommu::viommu::{Service, Viommu};
use iommu::vtd::registers::{GCMD, RTADDR};
use iommu::vtd::{AddressWidth, ContextCacheScope, Descriptor, FaultReason, Global, IotlbScope};
use viommu_support::*;

const DOMAIN: u16 = 5;
const ALL_CONTEXTS: Descriptor = Descriptor::ContextCache(ContextCacheScope::Global);

fn is_blocked(machine: &Machine, device: iommu::viommu::Passthrough) -> bool {
    machine.place(device) == Attachment::Blocked
}

#[test]
fn devices_see_the_machine_as_it_is_until_translation_is_on() {
    let mut machine = Machine::new();
    assert!(!machine.unit.is_idle());
    machine.settle();
    assert_eq!(machine.place(NIC), Attachment::Identity);
    assert_eq!(machine.place(DISK), Attachment::Identity);
    assert!(machine.space.domains.is_empty());
}

#[test]
fn translation_reports_on_only_when_every_device_is_placed() {
    let mut machine = Machine::translating();
    assert!(matches!(machine.place(NIC), Attachment::Domain(_)));
    assert!(is_blocked(&machine, DISK));
    machine.command(Global::QUEUED_INVALIDATION);
    machine.settle();

    machine.write32(
        GCMD,
        (Global::QUEUED_INVALIDATION | Global::TRANSLATION).bits(),
    );
    while !machine.status().contains(Global::TRANSLATION) {
        assert_eq!(machine.step() == Service::Idle, machine.unit.is_idle());
        if machine.status().contains(Global::TRANSLATION) {
            assert!(matches!(machine.place(NIC), Attachment::Domain(_)));
            assert!(is_blocked(&machine, DISK));
        }
    }
}

#[test]
fn a_table_is_live_as_a_whole_before_its_first_device_is_attached() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_B, 3, leaf(DATA));
    machine.set_leaf(TABLE_B, 511, leaf(DATA + 1));
    machine.set_context(DISK, 6, TABLE_B);
    machine.queue(ALL_CONTEXTS);
    while is_blocked(&machine, DISK) {
        machine.step();
    }
    let pages = machine.pages(DISK);
    assert_eq!(pages.len(), 2);
    assert_eq!(pages[&3], mapping(DATA, Access::ReadWrite));
    assert_eq!(pages[&511], mapping(DATA + 1, Access::ReadWrite));
}

#[test]
fn an_invalidation_maps_what_the_guest_mapped() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.settle();
    assert!(machine.pages(NIC).is_empty());
    machine.queue_pages(DOMAIN, 7, 0, 1);
    machine.settle();
    assert_eq!(machine.pages(NIC)[&7], mapping(DATA, Access::ReadWrite));
    assert_eq!(machine.wait_status(), 1);
    assert_eq!(machine.head(), 32);
}

#[test]
fn pages_outside_the_invalidation_stay_as_they_were() {
    let mut machine = Machine::translating();
    for page in 0..16 {
        machine.set_leaf(TABLE_A, page, leaf(DATA + page));
    }
    machine.queue_iotlb(IotlbScope::Domain { domain: DOMAIN });
    machine.settle();
    for page in 0..16 {
        machine.set_leaf(TABLE_A, page, 0);
    }
    // Two bits of the page number do not count: 4..8.
    machine.queue_pages(DOMAIN, 6, 2, 1);
    machine.settle();
    let left: Vec<u64> = machine.pages(NIC).keys().copied().collect();
    assert_eq!(left, [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn an_unlinked_table_is_unmapped_as_a_whole() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.queue_pages(DOMAIN, 7, 0, 1);
    machine.settle();
    machine.poke(TABLE_A, 0);
    let calls = machine.space.calls;
    machine.queue_iotlb(IotlbScope::Global);
    machine.settle();
    assert!(machine.pages(NIC).is_empty());
    assert_eq!(
        machine.space.calls - calls,
        1,
        "empty space is skipped at once"
    );
}

#[test]
fn rights_combine_over_the_levels() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 0, DATA << 12 | 1);
    machine.set_leaf(TABLE_A, 1, DATA << 12 | 2);
    machine.set_leaf(TABLE_A, 2, leaf(DATA));
    machine.poke(TABLE_A + 0x1000, (TABLE_A + 0x2000) | 1);
    machine.queue_iotlb(IotlbScope::Global);
    machine.settle();
    let read_only = mapping(DATA, Access::Read);
    let pages: Vec<_> = machine
        .pages(NIC)
        .iter()
        .map(|(&page, &m)| (page, m))
        .collect();
    assert_eq!(pages, [(0, read_only), (2, read_only)]);
}

#[test]
fn malformed_entries_and_addresses_outside_memory_map_nothing() {
    let mut machine = Machine::translating();
    for (page, bad) in [1 << 11, 1 << 48, 1 << 51, 1 << 62].into_iter().enumerate() {
        machine.set_leaf(TABLE_A, page as u64, leaf(DATA) | bad);
    }
    machine.set_leaf(TABLE_A, 8, leaf(FRAMES));
    machine.set_leaf(TABLE_A, 9, leaf(DATA));
    // A large leaf, and a table outside memory.
    machine.poke(TABLE_A + 0x1008, leaf(0) | 1 << 7);
    machine.poke(TABLE_A + 0x1010, leaf(FRAMES + 5));
    machine.queue_iotlb(IotlbScope::Global);
    machine.settle();
    assert_eq!(machine.pages(NIC).keys().collect::<Vec<_>>(), [&9]);
    let reason = |page: u64| {
        let iova = Iova::new(page << 12);
        machine
            .unit
            .translate(machine.memory, NIC.guest, iova, true)
    };
    assert_eq!(reason(0), Err(FaultReason::PagingReserved));
    assert_eq!(reason(512), Err(FaultReason::PagingReserved));
    assert_eq!(reason(1024), Err(FaultReason::TableUnreadable));
    assert_eq!(reason(10), Err(FaultReason::NotWritable));
    assert_eq!(reason(1 << 27), Err(FaultReason::BeyondWidth));
    assert_eq!(reason(9).unwrap().raw(), DATA << 12);
}

#[test]
fn a_device_moves_between_domains_and_the_empty_one_goes() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 1, leaf(DATA));
    machine.set_leaf(TABLE_B, 2, leaf(DATA + 1));
    machine.queue_pages(DOMAIN, 1, 0, 1);
    machine.set_context(NIC, 6, TABLE_B);
    machine.queue(Descriptor::ContextCache(ContextCacheScope::Device {
        domain: DOMAIN,
        source: NIC.guest,
        function_mask: 0,
    }));
    machine.settle();
    assert_eq!(machine.space.domains.len(), 1);
    assert_eq!(machine.pages(NIC).keys().collect::<Vec<_>>(), [&2]);
}

#[test]
fn an_invalidation_by_domain_reaches_its_devices_and_those_without_one() {
    let mut machine = Machine::translating();
    machine.set_context(NIC, 6, TABLE_B);
    machine.set_context(DISK, 7, TABLE_A);
    let of_domain = |domain| Descriptor::ContextCache(ContextCacheScope::Domain { domain });
    let before = machine.place(NIC);
    machine.queue(of_domain(99));
    machine.settle();
    assert_eq!(machine.place(NIC), before);
    assert!(!is_blocked(&machine, DISK), "an absent entry is cached too");
    machine.queue(of_domain(DOMAIN));
    machine.settle();
    assert_ne!(machine.place(NIC), before);
}

#[test]
fn an_unchanged_context_entry_moves_no_device() {
    let mut machine = Machine::translating();
    let attaches = machine.space.attaches;
    machine.queue(ALL_CONTEXTS);
    machine.queue(Descriptor::ContextCache(ContextCacheScope::Domain {
        domain: DOMAIN,
    }));
    machine.settle();
    assert_eq!(machine.space.attaches, attaches);
}

#[test]
fn one_domain_number_over_two_tables_keeps_the_devices_apart() {
    let mut machine = Machine::translating();
    machine.set_context(DISK, DOMAIN, TABLE_B);
    machine.set_leaf(TABLE_A, 1, leaf(DATA));
    machine.set_leaf(TABLE_B, 2, leaf(DATA + 1));
    machine.queue(ALL_CONTEXTS);
    machine.queue_iotlb(IotlbScope::Domain { domain: DOMAIN });
    machine.settle();
    assert_eq!(machine.pages(NIC).keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(machine.pages(DISK).keys().collect::<Vec<_>>(), [&2]);
}

#[test]
fn two_devices_of_one_domain_share_its_shadow() {
    let mut machine = Machine::translating();
    machine.set_context(DISK, DOMAIN, TABLE_A);
    machine.queue(ALL_CONTEXTS);
    machine.settle();
    assert_eq!(machine.place(NIC), machine.place(DISK));
    assert_eq!(machine.space.domains.len(), 1);
}

#[test]
fn a_malformed_or_absent_context_entry_blocks_the_device() {
    let valid = 1 | u128::from(TABLE_A) | 1 << 64 | 5 << 72;
    let cases = [
        (0, FaultReason::ContextNotPresent),
        (valid | 1 << 4, FaultReason::ContextReserved),
        (valid | 1 << 88, FaultReason::ContextReserved),
        // Pass-through, device TLB, four and six levels: none is advertised.
        (valid | 2 << 2, FaultReason::ContextInvalid),
        (valid | 1 << 2, FaultReason::ContextInvalid),
        (valid & !(7 << 64) | 2 << 64, FaultReason::ContextInvalid),
        (valid & !(7 << 64) | 4 << 64, FaultReason::ContextInvalid),
    ];
    for (raw, reason) in cases {
        let mut machine = Machine::translating();
        machine.set_context_raw(NIC, raw);
        machine.queue(ALL_CONTEXTS);
        machine.settle();
        assert!(is_blocked(&machine, NIC), "{raw:#x}");
        assert!(machine.space.domains.is_empty());
        let iova = Iova::new(0);
        let translated = machine
            .unit
            .translate(machine.memory, NIC.guest, iova, false);
        assert_eq!(translated, Err(reason), "{raw:#x}");
    }
}

#[test]
fn a_malformed_or_absent_root_entry_blocks_the_device() {
    for (low, high, reason) in [
        (0, 0, FaultReason::RootNotPresent),
        (CONTEXT | 3, 0, FaultReason::RootReserved),
        (CONTEXT | 1, 1, FaultReason::RootReserved),
        (FRAMES << 12 | 1, 0, FaultReason::ContextUnreadable),
    ] {
        let mut machine = Machine::translating();
        machine.poke(ROOT + 8, high);
        machine.poke(ROOT, low);
        machine.queue(ALL_CONTEXTS);
        machine.settle();
        assert!(is_blocked(&machine, NIC));
        let iova = Iova::new(0);
        let translated = machine
            .unit
            .translate(machine.memory, NIC.guest, iova, false);
        assert_eq!(translated, Err(reason));
    }
}

#[test]
fn the_root_table_counts_from_its_command_on() {
    let mut machine = Machine::translating();
    machine.write(RTADDR, 0);
    machine.queue(ALL_CONTEXTS);
    machine.settle();
    assert!(!is_blocked(&machine, NIC));
    machine.command(Global::ROOT_TABLE | Global::QUEUED_INVALIDATION | Global::TRANSLATION);
    machine.queue(ALL_CONTEXTS);
    machine.settle();
    assert!(is_blocked(&machine, NIC));
}

#[test]
fn four_levels_are_walked_where_both_sides_have_them() {
    const TOP: u64 = 0xb000;
    let wide = 1 | u128::from(TOP) | 2 << 64 | 5 << 72;
    let page = 0x1ff << 27 | 7;
    for address_width in [48, 39] {
        let mut machine = Machine::of_width(AddressWidth::Bits48);
        machine.space.address_width = address_width;
        machine.start();
        machine.poke(TOP + 511 * 8, TABLE_A | 3);
        machine.set_leaf(TABLE_A, 7, leaf(DATA));
        machine.set_context_raw(NIC, wide);
        machine.queue(ALL_CONTEXTS);
        machine.queue_pages(5, page, 0, 1);
        machine.settle();
        assert_eq!(machine.wait_status(), 1);
        let iova = Iova::new(page << 12);
        let translated = machine
            .unit
            .translate(machine.memory, NIC.guest, iova, true);
        assert_eq!(translated, Ok(Gpa::new(DATA << 12)));
        if address_width == 48 {
            assert_eq!(machine.pages(NIC).keys().collect::<Vec<_>>(), [&page]);
        } else {
            assert!(is_blocked(&machine, NIC));
        }
    }
}

#[test]
fn translation_off_gives_the_whole_machine_back() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 1, leaf(DATA));
    machine.queue_pages(DOMAIN, 1, 0, 1);
    machine.settle();
    machine.write32(GCMD, Global::QUEUED_INVALIDATION.bits());
    while machine.status().contains(Global::TRANSLATION) {
        machine.step();
    }
    assert_eq!(machine.place(NIC), Attachment::Identity);
    assert_eq!(machine.place(DISK), Attachment::Identity);
    assert!(machine.space.domains.is_empty());
}

#[test]
fn without_a_domain_for_it_a_device_is_blocked() {
    let mut machine = Machine::translating();
    machine.space.max_domains = 1;
    machine.set_context(DISK, 6, TABLE_B);
    machine.queue(ALL_CONTEXTS);
    machine.queue_wait(1);
    machine.settle();
    assert!(is_blocked(&machine, DISK));
    assert_eq!(machine.wait_status(), 1);
    machine.set_context_raw(NIC, 0);
    machine.queue(ALL_CONTEXTS);
    machine.settle();
    assert!(!is_blocked(&machine, DISK));
}

#[test]
fn without_room_for_its_context_entry_a_device_is_blocked() {
    let mut machine = Machine::translating();
    machine.space.has_entries = false;
    machine.set_context(DISK, 6, TABLE_B);
    machine.queue(ALL_CONTEXTS);
    machine.queue_wait(1);
    machine.settle();
    assert!(is_blocked(&machine, DISK));
    assert_eq!(machine.wait_status(), 1);
    assert_eq!(
        machine.space.domains.len(),
        1,
        "the shadow nobody uses goes"
    );
}
