//! UNMAP (5.13.6.6).

use crate::virtio_support::*;
use crate::{attached, virtio_support};

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
