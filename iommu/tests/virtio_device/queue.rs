//! The request queue: where it may be, and what breaks it.

use crate::virtio_support::*;
use crate::{attached, needs_reset};
use iommu::viommu::virtio::Features;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;

#[test]
fn a_queue_is_ready_only_if_its_size_and_places_are_allowed() {
    let mut machine = Machine::at_power_on();
    let mut is_ready = |size, page, change: Option<u32>| {
        let mut queue = machine.requests;
        queue.page = page;
        machine.write(VIRTIO_MMIO_QUEUE_SEL, REQUESTS);
        machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
        machine.set_up(queue, size);
        let ready = machine.read(VIRTIO_MMIO_QUEUE_READY);
        // What is ready cannot be changed.
        if let Some(register) = change {
            machine.write(register, 0x3);
        }
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_READY), ready);
        ready
    };
    assert_eq!(is_ready(16, 0x1000, Some(VIRTIO_MMIO_QUEUE_DESC_LOW)), 1);
    assert_eq!(is_ready(64, 0x1000, None), 1);
    assert_eq!(is_ready(3, 0x1000, None), 0);
    assert_eq!(is_ready(0, 0x1000, None), 0);
    assert_eq!(is_ready(16, 0x1008, None), 0);
    assert_eq!(is_ready(16, 0x1001, None), 0);
}

/// Lets the device find a queue in that state: it asks for a reset, does nothing
/// more, and works again after one.
#[track_caller]
fn breaks(what: impl FnOnce(&mut Machine)) {
    let mut machine = attached();
    what(&mut machine);
    machine.settle();
    assert!(needs_reset(&machine));
    let config_changed = 2;
    assert_ne!(
        machine.read(VIRTIO_MMIO_INTERRUPT_STATUS) & config_changed,
        0
    );
    machine.submit_request(&map(1, 0, 0xfff, DATA << 12, READ), 4);
    machine.settle();
    assert_eq!(machine.used(false), None);
    assert_eq!(machine.pages(NIC), []);
    machine.start(Features::all().bits());
    assert_eq!(machine.attach(1, NIC, 0), OK);
}

#[test]
fn a_descriptor_that_leads_back_breaks_the_queue() {
    breaks(|machine| {
        let queue = machine.requests;
        machine.descriptor(queue, 0, (0x3000, 16, false), Some(1));
        machine.descriptor(queue, 1, (0x3000, 16, false), Some(0));
        machine.offer(false, 0);
    });
}

#[test]
fn a_descriptor_number_beyond_the_queue_breaks_it() {
    breaks(|machine| machine.offer(false, SIZE));
    breaks(|machine| {
        let queue = machine.requests;
        machine.descriptor(queue, 0, (0x3000, 16, false), Some(u16::MAX));
        machine.offer(false, 0);
    });
}

#[test]
fn a_buffer_to_read_behind_one_to_write_breaks_the_queue() {
    breaks(|machine| machine.submit(&[(0x4000, 4, true), (0x3000, 36, false)]));
}

#[test]
fn an_indirect_descriptor_breaks_the_queue() {
    breaks(|machine| {
        let queue = machine.requests;
        let flags = VRING_DESC_F_INDIRECT as u16;
        machine.raw_descriptor(queue, 0, (0x3000, 32), flags, 0);
        machine.offer(false, 0);
    });
}

#[test]
fn more_available_chains_than_descriptors_break_the_queue() {
    breaks(|machine| {
        machine.requests.sent = machine.requests.sent.wrapping_add(SIZE);
        machine.offer(false, 0);
    });
}

#[test]
fn a_queue_outside_memory_is_broken() {
    for address in [FRAMES << 12, !0xfff] {
        breaks(|machine| {
            machine.write(VIRTIO_MMIO_QUEUE_SEL, REQUESTS);
            machine.write(VIRTIO_MMIO_QUEUE_READY, 0);
            let mut queue = machine.requests;
            queue.page = address;
            machine.set_up(queue, SIZE);
            machine.write(VIRTIO_MMIO_QUEUE_NOTIFY, REQUESTS);
        });
    }
}

#[test]
fn huge_buffers_are_read_and_written_as_far_as_needed() {
    let mut machine = attached();
    machine.poke(0x3000, &map(1, 0, 0xfff, DATA << 12, READ));
    machine.submit(&[(0x3000, u32::MAX, false), (0x4000, u32::MAX, true)]);
    machine.settle();
    assert_eq!(machine.used(false), Some(4));
    assert_eq!(machine.pages(NIC), [(0, DATA, READ)]);
}

#[test]
fn the_index_wraps_around() {
    let mut machine = attached();
    for _ in 0..0x1_0010u32 {
        machine.submit(&[(0x3000, 0, false), (0x4000, 4, true)]);
        machine.settle();
        assert_eq!(machine.used(false), Some(0));
    }
    assert!(!needs_reset(&machine));
}
