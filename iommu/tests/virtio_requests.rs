//! Each request of the virtio-iommu and each status it can be answered with, in the
//! order of the specification (virtio 1.2, section 5.13.6).

mod virtio_support;

use iommu::space::Attachment;
use iommu::viommu::Viommu;
use iommu::viommu::virtio::Features;
use virtio_support::*;

/// A machine with the network device in domain 1.
fn attached() -> Machine {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, 0), OK);
    machine
}

#[test]
fn a_type_nobody_knows_is_given_back_unwritten() {
    let mut machine = attached();
    for kind in [0, 6, 0x80, 0xff] {
        assert_eq!(machine.ask(&[kind; 36], 4), []);
    }
    assert_eq!(machine.ask(&[1, 2], 4), [], "too short for a type");
}

#[test]
fn a_request_without_room_for_a_status_is_given_back_unwritten() {
    let mut machine = attached();
    for room in 0..4 {
        assert_eq!(machine.ask(&map(1, 0, 0xfff, 0x10000, READ), room), []);
    }
}

#[test]
fn a_request_too_short_for_its_type_is_invalid() {
    let mut machine = attached();
    for kind in 1..=4 {
        assert_eq!(machine.ask(&[kind, 0, 0, 0, 1, 0, 0], 4), [INVAL, 0, 0, 0]);
    }
    assert_eq!(machine.ask(&[5, 0, 0, 0, 0x18, 0], 28)[24], INVAL);
}

#[test]
fn a_request_outside_memory_is_an_io_error() {
    let mut machine = attached();
    machine.submit(&[(FRAMES << 12, 36, false), (0x4000, 4, true)]);
    machine.settle();
    assert_eq!(machine.used(false), Some(4));
    assert_eq!(machine.peek(0x4000), [IOERR]);
}

#[test]
fn an_answer_outside_memory_is_not_written() {
    let mut machine = attached();
    machine.poke(0x3000, &map(1, 0, 0xfff, 0x10000, READ));
    machine.submit(&[(0x3000, 36, false), (FRAMES << 12, 4, true)]);
    machine.settle();
    assert_eq!(machine.used(false), Some(0));
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let mut machine = attached();
    machine.poke(0x3000, &map(1, 0, 0xfff, 0x10000, READ));
    machine.submit(&[
        (0x3000, 5, false),
        (0x3005, 31, false),
        (0x4000, 1, true),
        (0x4001, 3, true),
    ]);
    machine.settle();
    assert_eq!(machine.used(false), Some(4));
    assert_eq!(machine.peek(0x4000), [OK, 0, 0, 0]);
    assert_eq!(machine.pages(NIC), [(0, DATA, READ)]);
}

#[test]
fn attach_makes_a_domain_and_the_endpoint_goes_through_it() {
    let machine = attached();
    assert_eq!(machine.pages(NIC), []);
    assert_eq!(machine.place(DISK), Attachment::Blocked);
}

#[test]
fn attach_of_an_unknown_endpoint_is_no_entry() {
    let mut machine = Machine::new();
    assert_eq!(
        machine.status_of(&virtio_support::attach(1, 0x19, 0)),
        NOENT
    );
    assert_eq!(
        machine.status_of(&virtio_support::attach(1, 0x1_0018, 0)),
        NOENT
    );
}

#[test]
fn attach_with_a_reserved_byte_set_is_invalid() {
    let mut machine = Machine::new();
    for at in 16..20 {
        let mut request = virtio_support::attach(1, 0x18, 0);
        request[at] = 1;
        assert_eq!(machine.status_of(&request), INVAL);
    }
}

#[test]
fn attach_with_an_unknown_flag_is_invalid() {
    let mut machine = Machine::new();
    for bit in 1..32 {
        assert_eq!(machine.attach(1, NIC, 1 << bit), INVAL);
    }
}

#[test]
fn attach_to_a_domain_beyond_the_range_is_out_of_range() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(0x1_0000, NIC, 0), RANGE);
    assert_eq!(machine.attach(0xffff, NIC, 0), OK);
    assert_eq!(machine.attach(0, DISK, 0), OK);
}

#[test]
fn attach_for_bypassing_reaches_all_memory() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, BYPASS), OK);
    assert_eq!(machine.place(NIC), Attachment::Identity);
}

#[test]
fn attach_that_contradicts_the_domains_kind_is_invalid() {
    let mut machine = attached();
    assert_eq!(machine.attach(1, DISK, BYPASS), INVAL);
    assert_eq!(machine.attach(2, DISK, BYPASS), OK);
    assert_eq!(machine.attach(2, NIC, 0), INVAL);
    assert_eq!(machine.attach(1, NIC, 0), OK, "it is where it was");
}

#[test]
fn attach_for_bypassing_is_unknown_without_its_feature() {
    let mut machine = Machine::new();
    machine.start(Features::all().difference(Features::BYPASS_CONFIG).bits());
    assert_eq!(machine.attach(1, NIC, BYPASS), INVAL);
    assert_eq!(machine.attach(1, NIC, 0), OK);
}

#[test]
fn attach_again_to_the_same_domain_changes_nothing() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert_eq!(machine.pages(NIC), [(7, DATA, 3)]);
}

#[test]
fn attach_elsewhere_detaches_and_reports_all_that_could_be_written() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 2, DATA), OK);
    assert_eq!(machine.map(1, 0, 0xfff, (DATA + 5) << 12, READ), OK);
    assert_eq!(machine.attach(2, NIC, 0), OK);
    assert_eq!(machine.pages(NIC), []);
    assert!(machine.is_dirty(DATA) && machine.is_dirty(DATA + 1));
    assert!(!machine.is_dirty(DATA + 5), "it was read-only");
    assert_eq!(
        machine.map_pages(1, 7, 1, DATA),
        NOENT,
        "it was the last one"
    );
}

#[test]
fn attach_without_means_leaves_the_endpoint_where_it_was() {
    let mut machine = attached();
    // The first takes two tables, the others one each.
    for page in (0..).step_by(512) {
        if machine.space.frames_available() == 0 {
            break;
        }
        assert_eq!(machine.map_pages(1, page, 1, DATA), OK);
    }
    let before = machine.pages(NIC);
    assert_eq!(machine.attach(2, NIC, 0), NOMEM);
    assert_eq!(machine.pages(NIC), before);
    assert_eq!(machine.attach(1, NIC, 0), OK);
}

#[test]
fn endpoints_of_one_domain_share_its_mappings() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    assert_eq!(machine.attach(1, DISK, 0), OK);
    assert_eq!(machine.pages(DISK), [(7, DATA, 3)]);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(
        machine.pages(DISK),
        [(7, DATA, 3)],
        "it still has an endpoint"
    );
    assert_eq!(machine.place(NIC), Attachment::Blocked);
}

#[test]
fn detach_ends_the_domain_of_the_last_endpoint() {
    let mut machine = attached();
    let frames = machine.space.frames_available();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(machine.place(NIC), Attachment::Blocked);
    assert!(machine.is_dirty(DATA));
    assert_eq!(machine.unmap_pages(1, 7, 1), NOENT);
    assert_eq!(machine.space.frames_available(), frames + 1, "its root too");
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert_eq!(machine.pages(NIC), [], "a new domain under the old number");
}

#[test]
fn detach_while_bypass_is_on_reaches_all_memory() {
    let mut machine = attached();
    machine.set_bypass(true);
    assert_eq!(machine.place(DISK), Attachment::Identity);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(machine.place(NIC), Attachment::Identity);
}

#[test]
fn detach_of_an_unknown_endpoint_is_no_entry() {
    let mut machine = attached();
    assert_eq!(machine.status_of(&virtio_support::detach(1, 0x19)), NOENT);
}

#[test]
fn detach_from_a_domain_the_endpoint_is_not_in_is_invalid() {
    let mut machine = attached();
    assert_eq!(machine.detach(2, NIC), INVAL, "there is no such domain");
    assert_eq!(machine.attach(2, DISK, 0), OK);
    assert_eq!(machine.detach(2, NIC), INVAL);
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(machine.detach(1, NIC), INVAL, "twice");
}

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
fn unmap_follows_the_examples_of_the_specification() {
    let mut machine = attached();
    let map = |machine: &mut Machine, page, pages| {
        assert_eq!(machine.map_pages(1, page, pages, DATA + page), OK);
    };
    let left = |machine: &Machine| machine.pages(NIC).len();
    // (1) to (7), with pages for bytes.
    assert_eq!(machine.unmap_pages(1, 0, 5), OK);
    map(&mut machine, 0, 10);
    assert_eq!(machine.unmap_pages(1, 0, 10), OK);
    map(&mut machine, 0, 5);
    map(&mut machine, 5, 5);
    assert_eq!(machine.unmap_pages(1, 0, 10), OK);
    assert_eq!(left(&machine), 0);
    map(&mut machine, 0, 10);
    assert_eq!(machine.unmap_pages(1, 0, 5), RANGE);
    assert_eq!(left(&machine), 10);
    assert_eq!(machine.unmap_pages(1, 0, 10), OK);
    map(&mut machine, 0, 5);
    map(&mut machine, 5, 5);
    assert_eq!(machine.unmap_pages(1, 0, 5), OK);
    assert_eq!(left(&machine), 5);
    assert_eq!(machine.unmap_pages(1, 5, 5), OK);
    map(&mut machine, 0, 5);
    assert_eq!(machine.unmap_pages(1, 0, 10), OK);
    map(&mut machine, 0, 5);
    map(&mut machine, 10, 5);
    assert_eq!(machine.unmap_pages(1, 0, 15), OK);
    assert_eq!(left(&machine), 0);
}

#[test]
fn unmap_that_would_split_any_mapping_is_out_of_range_and_removes_none() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 0, 4, DATA), OK);
    assert_eq!(machine.map_pages(1, 600, 1000, DATA), OK);
    for (page, pages) in [(0, 601), (1, 3), (3, 2000), (0, 1599), (700, 1)] {
        assert_eq!(machine.unmap_pages(1, page, pages), RANGE);
    }
    assert_eq!(machine.pages(NIC).len(), 1004);
    assert_eq!(machine.unmap_pages(1, 0, 1600), OK);
}

#[test]
fn unmap_of_a_part_of_a_mapped_page_is_out_of_range() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 1, 1, DATA), OK);
    for (first, last) in [
        (0x1001, 0x1fff),
        (0x1000, 0x1ffe),
        (0, 0x1000),
        (0x1800, 0x1810),
    ] {
        assert_eq!(machine.unmap(1, first, last), RANGE);
    }
    assert_eq!(machine.pages(NIC).len(), 1);
    assert_eq!(
        machine.unmap(1, 0x801, 0x2345),
        OK,
        "the rest is not mapped"
    );
    assert_eq!(machine.pages(NIC), []);
    assert_eq!(machine.unmap(1, 0x801, 0x810), OK, "nothing is");
}

#[test]
fn unmap_backwards_is_invalid() {
    assert_eq!(attached().unmap(1, 0x2000, 0xfff), INVAL);
}

#[test]
fn unmap_of_the_whole_address_space_removes_everything() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 0, 1, DATA), OK);
    assert_eq!(machine.map_pages(1, (1 << 27) - 1, 1, DATA + 1), OK);
    assert_eq!(machine.unmap(1, 0, u64::MAX), OK);
    assert_eq!(machine.pages(NIC), []);
}

#[test]
fn unmap_in_an_unknown_domain_is_no_entry() {
    assert_eq!(attached().unmap_pages(2, 0, 1), NOENT);
}

#[test]
fn unmap_in_a_bypass_domain_is_invalid() {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, BYPASS), OK);
    assert_eq!(machine.unmap_pages(1, 0, 1), INVAL);
}

#[test]
fn unmap_with_a_reserved_byte_set_is_invalid() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 0, 1, DATA), OK);
    let mut request = virtio_support::unmap(1, 0, 0xfff);
    request[25] = 1;
    assert_eq!(machine.status_of(&request), INVAL);
    assert_eq!(machine.pages(NIC).len(), 1);
}

#[test]
fn probe_tells_of_the_doorbell() {
    let mut machine = Machine::new();
    let answer = machine.ask(&probe(0x18), 28);
    let mut expected = vec![1, 0, 20, 0, 1, 0, 0, 0];
    expected.extend(0xfee0_0000u64.to_le_bytes());
    expected.extend(0xfeef_ffffu64.to_le_bytes());
    expected.extend([OK, 0, 0, 0]);
    assert_eq!(answer, expected);
    assert_eq!(machine.unit.read(0x100 + 32, 4), 24, "probe_size");
}

#[test]
fn probe_of_an_unknown_endpoint_is_no_entry() {
    let answer = Machine::new().ask(&probe(0x19), 28);
    assert_eq!(answer[..24], [0; 24]);
    assert_eq!(answer[24..], [NOENT, 0, 0, 0]);
}

#[test]
fn probe_with_too_little_room_is_invalid_and_writes_no_property() {
    let mut machine = Machine::new();
    for room in 4..28 {
        let answer = machine.ask(&probe(0x18), room);
        let tail = room as usize - 4;
        assert_eq!(answer[..tail], vec![0; tail]);
        assert_eq!(answer[tail..], [INVAL, 0, 0, 0]);
    }
}

#[test]
fn probe_is_given_back_unwritten_unless_negotiated() {
    let mut machine = Machine::new();
    machine.start(Features::all().difference(Features::PROBE).bits());
    assert_eq!(machine.ask(&probe(0x18), 28), []);
}
