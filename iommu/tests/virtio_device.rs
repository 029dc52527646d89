//! The virtio-iommu apart from its requests: registers, queues, resets, faults, and
//! the order in which the guest hears of things.

mod virtio_support;

use iommu::Iova;
use iommu::space::Attachment;
use iommu::unit::SourceId;
use iommu::viommu::virtio::Features;
use iommu::viommu::{Service, Viommu};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_IOMMU;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_support::*;

fn attached() -> Machine {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, 0), OK);
    machine
}

fn needs_reset(machine: &Machine) -> bool {
    machine.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
}

#[test]
fn the_registers_say_what_the_device_is() {
    let mut machine = Machine::at_power_on();
    assert_eq!(
        machine.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(),
        *b"virt"
    );
    assert_eq!(machine.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_IOMMU);
    machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    let high = machine.read(VIRTIO_MMIO_DEVICE_FEATURES);
    assert_eq!(high, 1 << (VIRTIO_F_VERSION_1 - 32));
    machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_FEATURES), 0b101_0111);
    machine.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    for (queue, size) in [(REQUESTS, 64), (EVENTS, 64), (2, 0), (u32::MAX, 0)] {
        machine.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(machine.read(VIRTIO_MMIO_QUEUE_NUM_MAX), size);
    }
    assert_eq!(machine.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
}

#[test]
fn the_configuration_says_what_can_be_mapped() {
    let machine = Machine::new();
    let config = |offset: u64, width| machine.unit.read(0x100 + offset, width);
    assert_eq!(config(0, 8), 0x20_1000, "page_size_mask");
    assert_eq!((config(8, 8), config(16, 8)), (0, (1 << 39) - 1));
    assert_eq!((config(24, 4), config(28, 4)), (0, 0xffff));
    assert_eq!(config(36, 1), 0, "bypass");
    assert_eq!(config(4, 4), 0);
    assert_eq!(config(16, 2), 0xffff);
    assert_eq!(config(40, 8), 0);
}

#[test]
fn accesses_of_other_widths_or_misaligned_do_nothing() {
    let mut machine = Machine::new();
    for (offset, width) in [(0, 1), (0, 8), (2, 2), (1, 4), (0x102, 4), (0x100, 3)] {
        assert_eq!(machine.unit.read(offset, width), u64::MAX);
    }
    machine.unit.write(0x70, 1, 0);
    machine.unit.write(0x100 + 36, 4, 1);
    assert!(machine.unit.is_idle());
}

#[test]
fn features_that_are_not_offered_or_not_enough_are_not_agreed_upon() {
    for features in [
        0,
        Features::MAP_UNMAP.bits(),
        Features::all().bits() | 1 << 5,
    ] {
        let mut machine = Machine::at_power_on();
        machine.start(features);
        let status = machine.read(VIRTIO_MMIO_STATUS);
        assert_eq!(status, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    }
}

#[test]
fn features_cannot_change_once_agreed_upon() {
    let mut machine = Machine::new();
    machine.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    machine.write(VIRTIO_MMIO_DRIVER_FEATURES, 0);
    assert_eq!(machine.attach(1, NIC, BYPASS), OK);
}

#[test]
fn before_a_driver_is_ready_devices_reach_all_memory_and_no_request_is_taken() {
    let mut machine = Machine::at_power_on();
    machine.settle();
    assert_eq!(machine.place(NIC), Attachment::Identity);
    let status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK;
    machine.write(VIRTIO_MMIO_STATUS, status);
    machine.set_up(machine.requests, SIZE);
    machine.submit_request(&attach(1, 0x18, 0), 4);
    machine.settle();
    assert_eq!(machine.used(false), None);
    assert_eq!(machine.place(NIC), Attachment::Identity);
}

#[test]
fn bypass_holds_for_endpoints_without_a_domain_and_survives_a_reset() {
    let mut machine = attached();
    machine.set_bypass(true);
    assert_eq!(machine.place(DISK), Attachment::Identity);
    assert!(matches!(machine.place(NIC), Attachment::Domain(_)));
    machine.set_bypass(false);
    machine.start(Features::all().bits());
    assert_eq!(machine.unit.read(0x100 + 36, 1), 0);
    assert_eq!(machine.place(NIC), Attachment::Blocked);
    machine.unit.write(0x100 + 36, 1, 2);
    machine.settle();
    assert_eq!(machine.place(NIC), Attachment::Blocked, "2 is no value");
}

#[test]
fn bypass_reads_as_written_only_when_it_holds() {
    let mut machine = Machine::new();
    machine.unit.write(0x100 + 36, 1, 1);
    while machine.place(DISK) == Attachment::Blocked {
        assert_eq!(machine.unit.read(0x100 + 36, 1), 0);
        machine.step();
    }
    machine.settle();
    assert_eq!(machine.unit.read(0x100 + 36, 1), 1);
}

#[test]
fn bypass_cannot_be_written_without_its_feature() {
    let mut machine = Machine::new();
    machine.start(Features::all().difference(Features::BYPASS_CONFIG).bits());
    machine.set_bypass(true);
    assert_eq!(machine.place(NIC), Attachment::Blocked);
}

#[test]
fn a_reset_detaches_every_endpoint_and_reports_what_it_could_write() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 0, 700, DATA), OK);
    machine.clean();
    machine.write(VIRTIO_MMIO_STATUS, 0);
    while machine.place(NIC) != Attachment::Blocked || !machine.is_dirty(DATA + 699) {
        assert_ne!(machine.read(VIRTIO_MMIO_STATUS), 0, "not done yet");
        machine.step();
    }
    machine.settle();
    assert_eq!(machine.read(VIRTIO_MMIO_STATUS), 0);
    assert!((DATA..DATA + 700).all(|gfn| machine.is_dirty(gfn)));
    machine.start(Features::all().bits());
    assert_eq!(machine.unmap_pages(1, 0, 1), NOENT);
}

#[test]
fn a_driver_need_not_wait_for_its_reset() {
    let mut machine = attached();
    machine.submit_request(&map(1, 0, 0xfff, DATA << 12, READ), 4);
    machine.step();
    machine.write(VIRTIO_MMIO_STATUS, 0);
    // No settle here, unlike in `start`.
    let ready = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
    machine.write(VIRTIO_MMIO_STATUS, ready);
    for half in 0..2 {
        machine.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        let features = Features::all().bits() >> (32 * half);
        machine.write(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
    }
    let ready = ready | VIRTIO_CONFIG_S_FEATURES_OK;
    machine.write(VIRTIO_MMIO_STATUS, ready);
    machine.requests.page = 0x5000;
    (machine.requests.sent, machine.requests.seen) = (0, 0);
    machine.set_up(machine.requests, SIZE);
    machine.write(VIRTIO_MMIO_STATUS, ready | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_eq!(machine.attach(3, NIC, 0), OK);
    assert_eq!(machine.used(false), None, "the old request is forgotten");
    assert_eq!(machine.pages(NIC), []);
}

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

#[test]
fn an_interrupt_comes_with_each_answer_unless_it_is_not_wanted() {
    let mut machine = Machine::new();
    let used = 1;
    let status = |machine: &Machine| machine.read(VIRTIO_MMIO_INTERRUPT_STATUS);
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert_eq!(status(&machine), used);
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, used);
    assert_eq!(status(&machine), 0);
    let flags = VRING_AVAIL_F_NO_INTERRUPT as u16;
    machine.poke(machine.requests.driver(), &flags.to_le_bytes());
    assert_eq!(machine.detach(1, NIC), OK);
    assert_eq!(status(&machine), 0);
}

#[test]
fn an_unmap_is_reported_before_it_is_answered() {
    let mut machine = attached();
    assert_eq!(machine.map_pages(1, 500, 600, DATA), OK);
    machine.clean();
    machine.host.take();
    machine.submit_request(&unmap(1, 500 << 12, (1100 << 12) - 1), 4);
    let mut steps = 0;
    while machine.used(false).is_none() {
        machine.step();
        steps += 1;
    }
    assert!((DATA..DATA + 600).all(|gfn| machine.is_dirty(gfn)));
    assert_eq!(machine.pages(NIC), []);
    // Three tables have a part in it: as many drains, and a step each beside the
    // first look and the last.
    assert_eq!(machine.host.take(), vec![Call::Invalidate; 3]);
    assert!(steps <= 6, "{steps}");
}

#[test]
fn a_map_of_all_memory_and_its_unmap_take_steps_of_a_table_each() {
    let mut machine = attached();
    // Not by large leaves: that would be too easy.
    let last = (FRAMES << 12) + 0xfff;
    let everything = map(1, 0x1000, last, 0, READ | WRITE);
    for (request, pages) in [
        (everything.to_vec(), FRAMES),
        (unmap(1, 0, u64::MAX).to_vec(), 0),
    ] {
        machine.submit_request(&request, 4);
        let (mut steps, mut before) = (0, machine.pages(NIC).len() as u64);
        while machine.used(false).is_none() {
            assert_eq!(machine.step(), Service::More);
            let now = machine.pages(NIC).len() as u64;
            assert!(now.abs_diff(before) <= 512);
            (before, steps) = (now, steps + 1);
        }
        assert_eq!(before, pages);
        assert!(steps <= FRAMES.div_ceil(512) + 4, "{steps}");
    }
}

#[test]
fn an_unmap_of_many_tables_waits_once_in_a_turn() {
    let mut machine = attached();
    for page in [1, 2048, 4096, 1 << 20] {
        assert_eq!(machine.map_pages(1, page, 1200, DATA), OK);
    }
    machine.clean();
    machine.host.take();
    machine.submit_request(&unmap(1, 0, u64::MAX), 4);
    // The first step looks, the last one answers.
    let turn = |machine: &mut Machine, steps| {
        let served = machine
            .unit
            .service(machine.memory, &mut machine.space, steps);
        assert!(served.is_ok());
        machine.host.take()
    };
    assert_eq!(turn(&mut machine, 2 + 12), [Call::Invalidate]);
    assert_eq!(machine.used(false), Some(4));
    assert_eq!(machine.pages(NIC), []);
    assert!((DATA..DATA + 1200).all(|gfn| machine.is_dirty(gfn)));

    // What does not fit a turn goes on in the next, with a wait of its own.
    for page in [1, 2048, 4096, 1 << 20] {
        assert_eq!(machine.map_pages(1, page, 1200, DATA), OK);
    }
    machine.submit_request(&unmap(1, 0, u64::MAX), 4);
    assert_eq!(turn(&mut machine, 1 + 8), [Call::Invalidate]);
    assert_eq!(machine.pages(NIC).len(), 1200 + (1200 - 1024));
    assert_eq!(turn(&mut machine, 8), [Call::Invalidate]);
    assert_eq!(machine.last_status(), OK);
}

fn fault_buffers(machine: &mut Machine, lengths: &[u32]) {
    let queue = machine.events;
    for (index, length) in (0..).zip(lengths) {
        let at = 0x6000 + 0x40 * u64::from(index);
        machine.descriptor(queue, index, (at, *length, true), None);
        machine.offer(true, index);
    }
}

fn inject(machine: &mut Machine, device: SourceId, page: u64, write: bool) {
    let iova = Iova::new(page << 12);
    machine
        .unit
        .inject_fault(machine.memory, device, iova, write);
}

#[test]
fn a_fault_is_reported_in_the_oldest_buffer() {
    let mut machine = attached();
    fault_buffers(&mut machine, &[24, 24]);
    inject(&mut machine, NIC.host, 5, true);
    inject(&mut machine, DISK.host, 6, false);
    let report = |reason: u8, flags: u32, endpoint: u32, address: u64| {
        let mut bytes = vec![reason, 0, 0, 0];
        bytes.extend(flags.to_le_bytes());
        bytes.extend(endpoint.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(address.to_le_bytes());
        bytes
    };
    assert_eq!(machine.used(true), Some(24));
    assert_eq!(machine.used(true), Some(24));
    let mapping = report(2, 0x102, 0x18, 0x5000);
    assert_eq!(machine.peek::<24>(0x6000)[..], mapping);
    let domain = report(1, 0x101, 0x20, 0x6000);
    assert_eq!(machine.peek::<24>(0x6040)[..], domain);
}

#[test]
fn a_fault_without_a_buffer_is_dropped_and_counted() {
    let mut machine = attached();
    inject(&mut machine, NIC.host, 5, true);
    assert_eq!(machine.unit.dropped_faults(), 1);
    fault_buffers(&mut machine, &[23, 24]);
    inject(&mut machine, NIC.host, 5, true);
    assert_eq!(machine.used(true), Some(0), "too small, but not in the way");
    assert_eq!(machine.unit.dropped_faults(), 2);
    inject(&mut machine, NIC.host, 5, true);
    assert_eq!(machine.used(true), Some(24));
    inject(&mut machine, SourceId::new(0xffff), 5, true);
    assert_eq!(machine.unit.dropped_faults(), 2, "nobody's device");
    assert!(!needs_reset(&machine));
}

#[test]
fn a_broken_event_queue_asks_for_a_reset() {
    let mut machine = attached();
    let queue = machine.events;
    let flags = (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE) as u16;
    machine.raw_descriptor(queue, 0, (0x6000, 24), flags, 0);
    machine.offer(true, 0);
    inject(&mut machine, NIC.host, 5, true);
    assert!(needs_reset(&machine));
}
