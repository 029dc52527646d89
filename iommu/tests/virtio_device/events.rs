//! What the guest hears of by itself: interrupts, and reports of faults.

use crate::virtio_support::*;
use crate::{attached, needs_reset};
use iommu::Iova;
use iommu::unit::SourceId;
use iommu::viommu::Viommu;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

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

/// InterruptStatus: a buffer was given back.
const USED: u32 = 1;
/// InterruptStatus: the device needs its driver.
const CONFIG: u32 = 2;

#[test]
fn the_line_is_high_until_every_cause_is_acknowledged() {
    let mut machine = Machine::new();
    assert!(!machine.unit.interrupt_line());
    assert_eq!(machine.attach(1, NIC, 0), OK);
    assert!(machine.unit.interrupt_line());
    machine.offer(false, SIZE);
    machine.settle();
    assert!(needs_reset(&machine), "a second cause");
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, USED);
    assert!(machine.unit.interrupt_line());
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, CONFIG);
    assert!(!machine.unit.interrupt_line());
}

#[test]
fn an_answer_after_the_acknowledgement_is_an_edge_of_its_own() {
    let mut machine = attached();
    // Two answers that are acknowledged between: the line falls in the middle, although
    // the second request was there before.
    machine.submit_request(&map(1, 0, 0xfff, DATA << 12, READ), 4);
    machine.submit_request(&unmap(1, 0, 0xfff), 4);
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, USED);
    assert!(!machine.unit.interrupt_line());
    while machine.used(false).is_none() {
        machine.step();
    }
    assert!(machine.unit.interrupt_line());
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, USED);
    assert!(!machine.unit.interrupt_line());
    machine.settle();
    assert!(machine.unit.interrupt_line());
}

#[test]
fn a_fault_is_an_interrupt_too_unless_its_queue_wants_none() {
    let mut machine = attached();
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, USED);
    fault_buffers(&mut machine, &[24, 24]);
    inject(&mut machine, NIC.host, 5, true);
    assert!(machine.unit.interrupt_line());
    machine.write(VIRTIO_MMIO_INTERRUPT_ACK, USED);
    let flags = VRING_AVAIL_F_NO_INTERRUPT as u16;
    machine.poke(machine.events.driver(), &flags.to_le_bytes());
    inject(&mut machine, NIC.host, 5, true);
    assert!(!machine.unit.interrupt_line());
    assert_eq!(
        (machine.used(true), machine.used(true)),
        (Some(24), Some(24))
    );
}

#[test]
fn the_line_is_as_high_on_another_machine() {
    for acknowledged in [false, true] {
        let mut machine = attached();
        if acknowledged {
            machine.write(VIRTIO_MMIO_INTERRUPT_ACK, USED);
        }
        machine.migrate(4096).unwrap();
        assert_eq!(machine.unit.interrupt_line(), !acknowledged);
    }
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
