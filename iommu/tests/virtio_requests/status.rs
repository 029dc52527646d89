//! The statuses: which comes first, which only a failing host brings about, and that
//! every one that a request can have is had.

use crate::attached;
use crate::virtio_support::*;
use iommu::space::{Attachment, SpaceError};
use iommu::unit::UnitError;
use iommu::viommu::Viommu;
use iommu::viommu::virtio::Features;

/// Guest memory ends there.
const END: u64 = FRAMES << 12;
/// The first address beyond the input range.
const BEYOND: u64 = 1 << 39;
/// An address of the doorbell.
const DOORBELL: u64 = 0xfee0_0000;

#[test]
fn attach_that_the_hosts_unit_cannot_do_is_a_device_error_and_changes_nothing() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    machine.host.fail(Some(UnitError::OutOfRange));
    assert_eq!(machine.attach(2, NIC, 0), DEVERR);
    assert_eq!(machine.attach(2, DISK, BYPASS), DEVERR);
    machine.host.fail(None);
    assert_eq!(machine.pages(NIC), [(7, DATA, 3)]);
    assert_eq!(machine.place(DISK), Attachment::Blocked);
    assert_eq!(
        machine.map_pages(2, 7, 1, DATA),
        NOENT,
        "no domain was made"
    );
}

#[test]
fn attach_without_room_in_the_hosts_unit_is_refused_for_memory() {
    let mut machine = attached();
    machine.host.fail(Some(UnitError::OutOfMemory));
    assert_eq!(machine.attach(2, DISK, 0), NOMEM);
    machine.host.fail(None);
    assert_eq!(machine.attach(2, DISK, 0), OK);
}

#[test]
fn map_of_a_page_that_is_mapped_too_often_is_refused_for_memory() {
    let mut machine = attached();
    let mut page = 0;
    let status = loop {
        match machine.map_pages(1, page, 1, DATA) {
            OK => page += 1,
            status => break status,
        }
    };
    assert_eq!(status, NOMEM);
    assert!(machine.space.frames_available() > 0, "not for tables");
    assert_eq!(machine.map_pages(1, page, 1, DATA + 1), OK, "another page");
    assert_eq!(machine.unmap_pages(1, 0, 1), OK);
    assert_eq!(machine.map_pages(1, 0, 1, DATA), OK);
}

/// Nothing can be promised any more, so nothing is.
#[test]
fn an_unmap_that_the_hardware_does_not_confirm_is_never_answered() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 7, 1, DATA), OK);
    machine.host.fail(Some(UnitError::NoAnswer));
    machine.submit_request(&unmap(1, 7 << 12, (8 << 12) - 1), 4);
    for _ in 0..3 {
        let served = machine.unit.service(machine.memory, &mut machine.space, 10);
        assert_eq!(served, Err(SpaceError::Unit(UnitError::NoAnswer)));
        assert_eq!(machine.used(false), None);
    }
    assert!(machine.is_dirty(DATA), "better a page too many");
}

#[test]
fn a_map_with_several_faults_is_answered_for_the_first_in_a_fixed_order() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 0x10, 1, DATA), OK);
    let odd = 1 << 7;
    // Each request has the fault that it is answered for, and all that follow.
    let cases = [
        (INVAL, map(9, BEYOND + 1, BEYOND, END + 1, odd), "flags"),
        (NOENT, map(9, BEYOND + 1, BEYOND, END + 1, READ), "domain"),
        (
            RANGE,
            map(1, BEYOND + 1, BEYOND, END + 1, READ),
            "alignment",
        ),
        (
            INVAL,
            map(1, BEYOND + 0x1000, BEYOND - 1, END, READ),
            "order",
        ),
        (
            RANGE,
            map(1, DOORBELL, BEYOND + 0xfff, END, READ),
            "input range",
        ),
        (
            INVAL,
            map(1, DOORBELL, DOORBELL + 0xfff, END, READ),
            "doorbell",
        ),
        (FAULT, map(1, 0x10000, 0x10fff, END, READ), "memory"),
        (INVAL, map(1, 0x10000, 0x10fff, 0x10000, READ), "overlap"),
    ];
    for (status, request, what) in cases {
        assert_eq!(machine.status_of(&request), status, "{what}");
    }
    assert_eq!(machine.pages(NIC), [(0x10, DATA, 3)]);
}

#[test]
fn an_unmap_with_several_faults_is_answered_for_the_first_in_a_fixed_order() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 0, 2, DATA), OK);
    let mut reserved = unmap(9, 0x1800, 0x17ff);
    reserved[24] = 1;
    let cases = [
        (INVAL, reserved, "reserved byte"),
        (NOENT, unmap(9, 0x1800, 0x17ff), "domain"),
        (INVAL, unmap(1, 0x1800, 0x17ff), "order"),
        (RANGE, unmap(1, 0x1800, 0x18ff), "split"),
    ];
    for (status, request, what) in cases {
        assert_eq!(machine.status_of(&request), status, "{what}");
    }
    assert_eq!(machine.pages(NIC).len(), 2);
}

#[test]
fn an_attach_with_several_faults_is_answered_for_the_first_in_a_fixed_order() {
    let mut machine = attached();
    let nic = NIC.guest.raw().into();
    let cases = [
        (INVAL, attach(0x1_0000, 0x19, 2), "flags"),
        (NOENT, attach(0x1_0000, 0x19, BYPASS), "endpoint"),
        (RANGE, attach(0x1_0000, nic, BYPASS), "domain range"),
        (INVAL, attach(1, nic, BYPASS), "kind of domain"),
    ];
    for (status, request, what) in cases {
        assert_eq!(machine.status_of(&request), status, "{what}");
    }
}

/// A machine in which domain 1 has a device and a mapping, and domain 2 is for
/// bypassing.
fn furnished() -> Machine {
    let mut machine = attached();
    assert_eq!(machine.attach(2, DISK, BYPASS), OK);
    assert_eq!(machine.map_pages(1, 0, 2, DATA), OK);
    machine
}

/// The status of an answer with room for properties, which PROBE's has behind them.
fn status_behind(machine: &mut Machine, request: &[u8], properties: usize) -> u8 {
    let answer = machine.ask(request, properties as u32 + 4);
    answer[answer.len() - 4]
}

/// The statuses that are missing, and why:
/// - UNSUPP of ATTACH: every endpoint goes with every domain.
/// - DEVERR but of ATTACH: a unit that fails at an unmap is lost (see above), and
///   nothing else asks it for anything that it could refuse.
/// - RANGE of DETACH: a domain beyond the range has no endpoint (INVAL).
/// - UNSUPP of PROBE: without the feature its type is unknown.
#[test]
fn each_request_has_each_status_that_it_can_have() {
    let (nic, disk) = (NIC.guest.raw().into(), DISK.guest.raw().into());
    let one = |request: &[u8]| status_behind(&mut furnished(), request, 0);
    let failing = |error, request: &[u8]| {
        let mut machine = furnished();
        machine.host.fail(Some(error));
        status_behind(&mut machine, request, 0)
    };
    let unnegotiated = |request: &[u8]| {
        let mut machine = Machine::new();
        machine.start(Features::all().difference(Features::MAP_UNMAP).bits());
        status_behind(&mut machine, request, 0)
    };
    let crowded = |request: &[u8]| {
        let mut machine = furnished();
        while machine.space.frames_available() > 0 {
            let page = (1 + machine.space.frames_available()) << 9;
            assert_eq!(machine.map_pages(1, page, 1, DATA), OK);
        }
        status_behind(&mut machine, request, 0)
    };
    const ROOM: u64 = 0x4000;
    let outside = |kind: u8| {
        let mut machine = furnished();
        machine.poke(END - 1, &[kind]);
        machine.poke(ROOM, &[0xee; 4]);
        machine.submit(&[(END - 1, 20, false), (ROOM, 4, true)]);
        machine.settle();
        let [status] = machine.peek(ROOM);
        status
    };
    let attached_to = |domain, endpoint, flags| attach(domain, endpoint, flags);

    assert_eq!(one(&attached_to(1, nic, 0)), OK);
    assert_eq!(
        failing(UnitError::OutOfRange, &attached_to(3, nic, 0)),
        DEVERR
    );
    assert_eq!(one(&attached_to(1, nic, 2)), INVAL);
    assert_eq!(one(&attached_to(0x1_0000, nic, 0)), RANGE);
    assert_eq!(one(&attached_to(1, 0x19, 0)), NOENT);
    assert_eq!(crowded(&attached_to(3, nic, 0)), NOMEM);

    assert_eq!(one(&detach(1, nic)), OK);
    assert_eq!(one(&detach(1, disk)), INVAL);
    assert_eq!(one(&detach(1, 0x19)), NOENT);

    assert_eq!(one(&map(1, 0x5000, 0x5fff, 0x10000, READ)), OK);
    assert_eq!(unnegotiated(&map(1, 0x5000, 0x5fff, 0x10000, READ)), UNSUPP);
    assert_eq!(one(&map(2, 0x5000, 0x5fff, 0x10000, READ)), INVAL);
    assert_eq!(one(&map(1, 0x5000, 0x5ffe, 0x10000, READ)), RANGE);
    assert_eq!(one(&map(3, 0x5000, 0x5fff, 0x10000, READ)), NOENT);
    assert_eq!(one(&map(1, 0x5000, 0x5fff, END, READ)), FAULT);
    assert_eq!(
        crowded(&map(1, 1 << 30, (1 << 30) + 0xfff, 0x10000, READ)),
        NOMEM
    );

    assert_eq!(one(&unmap(1, 0, 0x1fff)), OK);
    assert_eq!(unnegotiated(&unmap(1, 0, 0x1fff)), UNSUPP);
    assert_eq!(one(&unmap(2, 0, 0x1fff)), INVAL);
    assert_eq!(one(&unmap(1, 0, 0xfff)), RANGE);
    assert_eq!(one(&unmap(3, 0, 0xfff)), NOENT);

    let probed = |endpoint| status_behind(&mut furnished(), &probe(endpoint), 24);
    assert_eq!(probed(nic), OK);
    assert_eq!(one(&probe(nic)), INVAL);
    assert_eq!(probed(0x19), NOENT);

    for kind in 1..=5 {
        assert_eq!(outside(kind), IOERR, "type {kind}");
    }
}
