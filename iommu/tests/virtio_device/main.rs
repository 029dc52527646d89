//! The virtio-iommu apart from what its requests ask for: registers, queues, events, and
//! the order in which the guest hears of things.

#[path = "../virtio_support/mod.rs"]
mod virtio_support;

mod events;
mod queue;
mod registers;
mod work;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
use virtio_support::*;

fn attached() -> Machine {
    let mut machine = Machine::new();
    assert_eq!(machine.attach(1, NIC, 0), OK);
    machine
}

fn needs_reset(machine: &Machine) -> bool {
    machine.read(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
}
