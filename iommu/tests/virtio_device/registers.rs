//! Registers and configuration: what the device is, features, bypass, reset.

use crate::attached;
use crate::virtio_support::*;
use iommu::space::Attachment;
use iommu::viommu::Viommu;
use iommu::viommu::virtio::Features;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_IOMMU;
use virtio_bindings::virtio_mmio::*;

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
