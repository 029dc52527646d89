//! Each request of the virtio-iommu and each status it can be answered with (virtio 1.2,
//! section 5.13.6).
//!
//! Here is what holds for all requests; each kind has its own file. `status` has the
//! statuses that need a failing host, which of several comes first, and the list of all.

#[path = "../virtio_support/mod.rs"]
mod virtio_support;

mod attach;
mod map;
mod probe;
mod status;
mod unmap;

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
