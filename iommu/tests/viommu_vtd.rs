//! The emulated VT-d unit as a driver sees it, from power on to switch off.

mod viommu_support;

use hv_core::Gpa;
use iommu::Iova;
use iommu::space::{Access, Attachment, SpaceError};
use iommu::unit::{SourceId, UnitError};
use iommu::viommu::{Service, Viommu};
use iommu::vtd::registers::{
    CCMD, FEADDR, FECTL, FEDATA, FSTS, GCMD, ICS, IEADDR, IECTL, IEDATA, IQA, IQT, RTADDR,
};
use iommu::vtd::{
    AddressWidth, ContextCacheScope, Descriptor, FaultReason, FaultRecord, FaultStatus, Global,
    IotlbScope, RequestKind,
};
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
fn a_wait_completes_only_after_the_unmap_before_it() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.queue_pages(DOMAIN, 7, 0, 1);
    machine.settle();
    machine.set_leaf(TABLE_A, 7, 0);
    machine.queue_pages(DOMAIN, 7, 0, 2);
    let before = machine.head();
    loop {
        let is_mapped = machine.pages(NIC).contains_key(&7);
        if is_mapped {
            assert_eq!(machine.wait_status(), 1);
            assert_eq!(machine.head(), before);
        }
        if machine.step() == Service::Idle {
            break;
        }
    }
    assert!(machine.pages(NIC).is_empty());
    assert_eq!(machine.wait_status(), 2);
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
            .translate(&machine.memory, NIC.guest, iova, true)
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
            .translate(&machine.memory, NIC.guest, iova, false);
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
            .translate(&machine.memory, NIC.guest, iova, false);
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
            .translate(&machine.memory, NIC.guest, iova, true);
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
fn a_malformed_descriptor_stops_the_queue_until_software_clears_the_error() {
    let large = Descriptor::Iotlb {
        scope: IotlbScope::Pages {
            domain: DOMAIN,
            address: 0,
            order: 19,
            leaves_only: false,
        },
        drain_reads: false,
        drain_writes: false,
    };
    let outside = 5 | 1 << 5 | 7 << 32 | u128::from(FRAMES << 12) << 64;
    let malformed = [
        0,
        3,
        4,
        6,
        15,
        1,
        2,
        0x11 | 1 << 50,
        5 | 1 << 7,
        large.encode(),
        outside,
    ];
    for raw in malformed {
        let mut machine = Machine::translating();
        machine.queue_raw(raw);
        machine.queue_wait(1);
        machine.settle();
        assert_eq!(
            machine.read32(FSTS),
            FaultStatus::QUEUE_ERROR.bits(),
            "{raw:#x}"
        );
        assert_eq!((machine.head(), machine.wait_status()), (0, 0), "{raw:#x}");

        // The driver puts something harmless in its place, as Linux does.
        machine.poke(QUEUE, ALL_CONTEXTS.encode() as u64);
        machine.poke(QUEUE + 8, 0);
        machine.settle();
        assert_eq!(machine.head(), 0);
        machine.write32(FSTS, FaultStatus::QUEUE_ERROR.bits());
        machine.settle();
        assert_eq!((machine.head(), machine.wait_status()), (32, 1), "{raw:#x}");
    }
}

#[test]
fn a_queue_that_cannot_be_read_is_an_error_and_can_be_restarted() {
    for (base, tail) in [
        (QUEUE, 0x1000),
        (FRAMES << 12, 16),
        (!0xfff, 16),
        (QUEUE, 0x7_fff0),
    ] {
        let mut machine = Machine::translating();
        machine.write(IQA, base);
        machine.write(IQT, tail);
        machine.settle();
        assert_eq!(machine.read32(FSTS), FaultStatus::QUEUE_ERROR.bits());

        machine.write32(GCMD, Global::TRANSLATION.bits());
        machine.settle();
        machine.write(IQA, QUEUE);
        machine.write(IQT, 0);
        machine.write32(FSTS, FaultStatus::QUEUE_ERROR.bits());
        machine.command(Global::QUEUED_INVALIDATION | Global::TRANSLATION);
        machine.queue_wait(3);
        machine.settle();
        assert_eq!(machine.wait_status(), 3);
    }
}

#[test]
fn the_queue_wraps_at_its_end() {
    let mut machine = Machine::translating();
    for round in 1..=600 {
        machine.queue_wait(round);
        machine.settle();
        assert_eq!(machine.wait_status(), round);
    }
    assert_eq!(machine.head(), 600 * 16 % 4096);
}

#[test]
fn a_wait_with_its_interrupt_flag_raises_the_completion_event_once() {
    let mut machine = Machine::translating();
    machine.write32(IEDATA, 0x42);
    machine.write32(IEADDR, 0xfee0_0000);
    machine.write32(IECTL, 0);
    let wait = Descriptor::Wait {
        status: None,
        interrupt: true,
        fence: false,
    };
    machine.queue(wait);
    machine.queue(wait);
    machine.settle();
    assert_eq!(
        machine.unit.take_interrupt().map(|msi| msi.data),
        Some(0x42)
    );
    assert_eq!(machine.unit.take_interrupt(), None);
    assert_eq!(machine.read32(ICS), 1);
    machine.write32(ICS, 1);
    assert_eq!(machine.read32(ICS), 0);
    machine.queue(wait);
    machine.settle();
    assert!(machine.unit.take_interrupt().is_some());
}

#[test]
fn invalidation_by_register_does_the_same() {
    const IVA: usize = 0x100;
    const IOTLB: usize = 0x108;
    const BUSY: u64 = 1 << 63;
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.write(IVA, 7 << 12);
    machine.write(IOTLB, BUSY | 3 << 60 | u64::from(DOMAIN) << 32);
    assert_ne!(machine.read(IOTLB) & BUSY, 0);
    machine.settle();
    assert_eq!(machine.read(IOTLB) >> 57, 0b0011 << 3 | 3);
    assert!(machine.pages(NIC).contains_key(&7));

    machine.set_context(NIC, 6, TABLE_B);
    machine.write(CCMD, BUSY | 1 << 61);
    machine.settle();
    assert_eq!(machine.read(CCMD) >> 59, 0b001 << 2 | 1);
    assert!(machine.pages(NIC).is_empty());

    // Reserved granularities and too many pages are reported as not done.
    machine.write(CCMD, BUSY);
    machine.write(IOTLB, BUSY);
    machine.settle();
    assert_eq!((machine.read(CCMD), machine.read(IOTLB)), (0, 0));
    machine.write(IVA, 63);
    machine.write(IOTLB, BUSY | 3 << 60);
    machine.settle();
    assert_eq!(machine.read(IOTLB) >> 57, 0b0011 << 3);
}

#[test]
fn a_table_that_contains_itself_is_walked_in_bounded_steps_and_ends() {
    let mut machine = Machine::translating();
    // 64 of 512 entries lead back to the table itself: 2^18 pages in 2^12 leaf
    // tables.
    for index in 0..64 {
        machine.poke(TABLE_A + index * 8, TABLE_A | 3);
    }
    machine.queue_iotlb(IotlbScope::Global);
    machine.queue_wait(1);
    let mut steps = 0;
    loop {
        let calls = machine.space.calls;
        let service = machine
            .unit
            .service(&machine.memory, &mut machine.space, 3)
            .unwrap();
        assert!(machine.space.calls - calls <= 3);
        steps += 1;
        if service == Service::Idle {
            break;
        }
        assert_eq!(machine.wait_status(), 0);
    }
    assert!(steps > 4096 / 3 && steps < 3000, "{steps}");
    assert_eq!(machine.wait_status(), 1);
    assert_eq!(
        machine.pages(NIC).len(),
        4096,
        "as many as the host has room for"
    );
    assert_eq!(machine.unit.refused_pages(), (1 << 18) - 4096);
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
fn a_failing_host_completes_nothing_and_the_step_is_tried_again() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.queue_pages(DOMAIN, 7, 0, 1);
    machine.space.is_lost = true;
    for _ in 0..3 {
        let service = machine
            .unit
            .service(&machine.memory, &mut machine.space, 100);
        assert_eq!(service, Err(SpaceError::Unit(UnitError::NoAnswer)));
        assert_eq!((machine.head(), machine.wait_status()), (0, 0));
    }
    machine.space.is_lost = false;
    machine.settle();
    assert_eq!(machine.wait_status(), 1);
    assert!(machine.pages(NIC).contains_key(&7));
}

fn record(machine: &Machine, index: usize) -> Option<FaultRecord> {
    let at = 0x200 + index * 16;
    let raw = u128::from(machine.read(at + 8)) << 64 | u128::from(machine.read(at));
    FaultRecord::decode(raw)
}

#[test]
fn a_refused_dma_becomes_a_record_under_the_guests_name_of_the_device() {
    let mut machine = Machine::translating();
    machine.write32(FEDATA, 0x43);
    machine.write32(FEADDR, 0xfee0_0000);
    machine.write32(FECTL, 0);
    machine
        .unit
        .inject_fault(&machine.memory, NIC.host, Iova::new(0x5123), true);
    assert_eq!(
        record(&machine, 0),
        Some(FaultRecord {
            page: Iova::new(0x5000),
            source: NIC.guest,
            reason: FaultReason::NotWritable.code(),
            kind: RequestKind::Write,
        })
    );
    assert_eq!(machine.read32(FSTS), FaultStatus::PENDING.bits());
    assert_eq!(
        machine.unit.take_interrupt().map(|msi| msi.data),
        Some(0x43)
    );

    machine
        .unit
        .inject_fault(&machine.memory, DISK.host, Iova::new(0), false);
    let second = record(&machine, 1).unwrap();
    assert_eq!(second.reason, FaultReason::ContextNotPresent.code());
    assert_eq!(second.kind, RequestKind::Read);
    assert_eq!(machine.unit.take_interrupt(), None);

    machine
        .unit
        .inject_fault(&machine.memory, SourceId::new(0xffff), Iova::new(0), false);
    assert_eq!(record(&machine, 2), None);
}

#[test]
fn a_silent_context_entry_keeps_its_faults_to_itself() {
    let mut machine = Machine::translating();
    let valid = 1 | u128::from(TABLE_A) | 1 << 64 | 5 << 72;
    for silent in [valid | 2, 2] {
        machine.set_context_raw(NIC, silent);
        machine
            .unit
            .inject_fault(&machine.memory, NIC.host, Iova::new(0), true);
    }
    assert_eq!(machine.read32(FSTS), 0);
    machine.poke(ROOT, 0);
    machine
        .unit
        .inject_fault(&machine.memory, NIC.host, Iova::new(0), true);
    assert_eq!(
        record(&machine, 0).unwrap().reason,
        FaultReason::RootNotPresent.code()
    );
}
