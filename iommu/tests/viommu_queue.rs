//! The emulated VT-d unit's queue, registers of command, and fault records.

mod viommu_support;

use iommu::Iova;
use iommu::space::SpaceError;
use iommu::unit::{SourceId, UnitError};
use iommu::viommu::{Service, Viommu};
use iommu::vtd::registers::{
    CCMD, FEADDR, FECTL, FEDATA, FSTS, GCMD, ICS, IEADDR, IECTL, IEDATA, IQA, IQT,
};
use iommu::vtd::{
    ContextCacheScope, Descriptor, FaultReason, FaultRecord, FaultStatus, Global, IotlbScope,
    RequestKind,
};
use viommu_support::*;

const DOMAIN: u16 = 5;
const ALL_CONTEXTS: Descriptor = Descriptor::ContextCache(ContextCacheScope::Global);

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
        (FRAMES << 12, 32),
        (!0xfff, 32),
        (QUEUE, 0x7_fff0),
    ] {
        let mut machine = Machine::translating();
        machine.queue_wait(1);
        machine.settle();
        // What lies at the head is sound, but a tail beyond the end makes it
        // part of no queue.
        machine.queue_wait(2);
        machine.write(IQA, base);
        machine.write(IQT, tail);
        machine.settle();
        assert_eq!(machine.read32(FSTS), FaultStatus::QUEUE_ERROR.bits());
        assert_eq!((machine.head(), machine.wait_status()), (16, 1));

        machine.write32(GCMD, Global::TRANSLATION.bits());
        machine.settle();
        assert_eq!(machine.head(), 0);
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
    machine.settle();
    assert_eq!(
        machine.unit.take_interrupt().map(|msi| msi.data),
        Some(0x42)
    );
    machine.queue(wait);
    machine.settle();
    assert_eq!(machine.unit.take_interrupt(), None, "ICS.IWC was still set");
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
            .service(machine.memory, &mut machine.space, 3)
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
fn a_failing_host_completes_nothing_and_the_step_is_tried_again() {
    let mut machine = Machine::translating();
    machine.set_leaf(TABLE_A, 7, leaf(DATA));
    machine.queue_pages(DOMAIN, 7, 0, 1);
    machine.space.is_lost = true;
    for _ in 0..3 {
        let service = machine
            .unit
            .service(machine.memory, &mut machine.space, 100);
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
        .inject_fault(machine.memory, NIC.host, Iova::new(0x5123), true);
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
        .inject_fault(machine.memory, DISK.host, Iova::new(0), false);
    let second = record(&machine, 1).unwrap();
    assert_eq!(second.reason, FaultReason::ContextNotPresent.code());
    assert_eq!(second.kind, RequestKind::Read);
    assert_eq!(machine.unit.take_interrupt(), None);

    machine
        .unit
        .inject_fault(machine.memory, SourceId::new(0xffff), Iova::new(0), false);
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
            .inject_fault(machine.memory, NIC.host, Iova::new(0), true);
    }
    assert_eq!(machine.read32(FSTS), 0);
    machine.poke(ROOT, 0);
    machine
        .unit
        .inject_fault(machine.memory, NIC.host, Iova::new(0), true);
    assert_eq!(
        record(&machine, 0).unwrap().reason,
        FaultReason::RootNotPresent.code()
    );
}
