//! MAP (5.13.6.5).

use crate::attached;
use crate::virtio_support::*;
use hv_core::Gpa;
use iommu::Iova;
use iommu::viommu::virtio::Features;

#[test]
fn map_gives_each_right_and_no_other() {
    let mut machine = attached();
    for (page, flags) in [(1, READ), (2, WRITE), (3, READ | WRITE)] {
        let first = page << 12;
        assert_eq!(
            machine.map(1, first, first + 0xfff, (DATA + page) << 12, flags),
            OK
        );
    }
    let expected = [(1, DATA + 1, 1), (2, DATA + 2, 2), (3, DATA + 3, 3)];
    assert_eq!(machine.pages(NIC), expected);
}

#[test]
fn map_of_unaligned_addresses_is_out_of_range() {
    let mut machine = attached();
    for (first, last, physical) in [
        (0x1, 0xfff, 0x10000),
        (0x800, 0x1fff, 0x10000),
        (0, 0xffe, 0x10000),
        (0, 0x1000, 0x10000),
        (0, 0xfff, 0x10010),
        (0x1000, 0x1000, 0x10000),
    ] {
        assert_eq!(machine.map(1, first, last, physical, READ), RANGE);
    }
}

#[test]
fn map_backwards_is_invalid() {
    let mut machine = attached();
    assert_eq!(machine.map(1, 0x5000, 0x3fff, 0x10000, READ), INVAL);
    assert_eq!(machine.map(1, 0x5000, 0x4fff, 0x10000, READ), INVAL);
}

#[test]
fn map_beyond_the_input_range_is_out_of_range() {
    let mut machine = attached();
    let end = 1u64 << 39;
    assert_eq!(machine.map(1, end, end + 0xfff, 0x10000, READ), RANGE);
    assert_eq!(
        machine.map(1, end - 0x1000, end + 0xfff, 0x10000, READ),
        RANGE
    );
    assert_eq!(machine.map(1, 0, u64::MAX, 0, READ), RANGE);
    assert_eq!(machine.map(1, !0xfff, u64::MAX, 0, READ), RANGE);
    assert_eq!(machine.map(1, end - 0x1000, end - 1, 0x10000, READ), OK);
}

#[test]
fn map_over_a_mapping_is_invalid_and_leaves_nothing() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 1030, 2, DATA), OK);
    let before = machine.pages(NIC);
    for (page, pages) in [(1030, 1), (1031, 1), (1031, 5), (1029, 2), (0, 1031)] {
        assert_eq!(machine.map_pages(1, page, pages, 0), INVAL);
        assert_eq!(machine.pages(NIC), before);
    }
    assert_eq!(machine.map_pages(1, 1029, 1, DATA), OK);
}

#[test]
fn map_with_an_unknown_flag_is_invalid() {
    let mut machine = attached();
    // Bit 2 is MMIO, which is not offered.
    for bit in 2..32 {
        assert_eq!(machine.map(1, 0, 0xfff, 0x10000, READ | 1 << bit), INVAL);
    }
}

#[test]
fn map_without_a_right_is_invalid() {
    assert_eq!(attached().map(1, 0, 0xfff, 0x10000, 0), INVAL);
}

#[test]
fn map_in_an_unknown_domain_is_no_entry() {
    let mut machine = attached();
    for domain in [0, 2, 0x1_0001, u32::MAX] {
        assert_eq!(machine.map_pages(domain, 0, 1, DATA), NOENT);
    }
}

#[test]
fn map_in_a_bypass_domain_is_invalid() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, BYPASS), OK);
    assert_eq!(machine.map_pages(1, 0, 1, DATA), INVAL);
}

#[test]
fn map_of_what_is_not_the_guests_memory_is_a_fault() {
    let mut machine = attached();
    for (gfn, pages) in [
        (FRAMES, 1),
        (FRAMES - 1, 2),
        (1 << 40, 1),
        ((1 << 52) - 1, 2),
    ] {
        assert_eq!(machine.map_pages(1, 0, pages, gfn), FAULT);
    }
    assert_eq!(machine.pages(NIC), []);
}

#[test]
fn map_of_the_interrupts_doorbell_is_invalid() {
    let mut machine = attached();
    for (first, last) in [
        (0xfee0_0000, 0xfee0_0fff),
        (0xfedf_f000, 0xfee0_0fff),
        (0xfeef_f000, 0xfeff_ffff),
    ] {
        assert_eq!(machine.map(1, first, last, 0, READ), INVAL);
    }
    assert_eq!(machine.map(1, 0xfedf_f000, 0xfedf_ffff, 0, READ), OK);
    assert_eq!(machine.map(1, 0xfef0_0000, 0xfef0_0fff, 0, READ), OK);
}

#[test]
fn map_that_does_not_fit_is_refused_for_memory_and_leaves_nothing() {
    let mut machine = attached();
    let (mut mapped, mut status) = (0, OK);
    while status == OK {
        // Each in a gigabyte of its own: two tables.
        let page = mapped << 18;
        status = machine.map_pages(1, page, 1, DATA);
        mapped += u64::from(status == OK);
    }
    assert_eq!(status, NOMEM);
    assert!(mapped > 5);
    assert_eq!(machine.pages(NIC).len() as u64, mapped);
    // Also one that has begun to fit: its first leaf table is there.
    let page = (mapped - 1) << 18;
    assert_eq!(machine.map_pages(1, page + 1, 1100, 2), NOMEM);
    assert_eq!(machine.pages(NIC).len() as u64, mapped);
    assert_eq!(machine.unmap_pages(1, 0, 1), OK);
    assert_eq!(machine.map_pages(1, 3, 1, DATA), OK);
}

#[test]
fn map_and_unmap_are_unsupported_unless_negotiated() {
    let mut machine = Machine::new();
    machine.start(Features::all().difference(Features::MAP_UNMAP).bits());
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert_eq!(machine.map_pages(1, 0, 1, DATA), UNSUPP);
    assert_eq!(machine.unmap_pages(1, 0, 1), UNSUPP);
}

#[test]
fn map_is_what_a_dma_is_translated_by() {
    let mut machine = attached();
    assert_eq!(machine.map(1, 0x7000, 0x7fff, DATA << 12, READ), OK);
    assert_eq!(machine.map_pages(1, 512, 512, 512), OK);
    let ends = |machine: &Machine, iova, write| {
        let (unit, space) = (&machine.unit, &machine.space);
        unit.translate(space, NIC.guest, Iova::new(iova), write)
    };
    assert_eq!(
        ends(&machine, 0x7123, false),
        Some(Gpa::new((DATA << 12) + 0x123))
    );
    assert_eq!(ends(&machine, 0x7123, true), None);
    assert_eq!(ends(&machine, 0x6fff, false), None, "in front of all");
    let inside = (600 << 12) + 5;
    assert_eq!(ends(&machine, inside, true), Some(Gpa::new(inside)));
    assert_eq!(ends(&machine, 1024 << 12, true), None, "behind all");
    assert_eq!(machine.attach(2, NIC, BYPASS), OK);
    assert_eq!(ends(&machine, 0x7123, true), Some(Gpa::new(0x7123)));
    assert_eq!(machine.detach(2, NIC), OK);
    assert_eq!(ends(&machine, 0x7123, false), None);
}
