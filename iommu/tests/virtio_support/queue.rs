//! A queue as the driver sees it, and the buffers that go through it.

use super::{Machine, SIZE};
use hv_core::Gpa;
use iommu::unit::HostUnit;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// A queue as the driver sees it: one page for it all.
#[derive(Clone, Copy)]
pub struct Queue {
    pub index: u32,
    pub page: u64,
    /// How many chains were made available.
    pub sent: u16,
    /// How many were taken back.
    pub seen: u16,
}

impl Queue {
    pub const fn new(index: u32, page: u64) -> Self {
        Self {
            index,
            page,
            sent: 0,
            seen: 0,
        }
    }
    pub const fn driver(&self) -> u64 {
        self.page + 0x400
    }
    pub const fn device(&self) -> u64 {
        self.page + 0x800
    }
}

/// One buffer: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

impl<U: HostUnit + Clone> Machine<U> {
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(gpa), bytes).unwrap();
    }

    pub fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(Gpa::new(gpa), &mut bytes).unwrap();
        bytes
    }

    pub fn descriptor(&self, queue: Queue, index: u16, buffer: Buffer, next: Option<u16>) {
        let (address, length, write) = buffer;
        let mut flags = 0;
        if write {
            flags |= VRING_DESC_F_WRITE as u16;
        }
        if next.is_some() {
            flags |= VRING_DESC_F_NEXT as u16;
        }
        self.raw_descriptor(queue, index, (address, length), flags, next.unwrap_or(0));
    }

    pub fn raw_descriptor(
        &self,
        queue: Queue,
        index: u16,
        (address, length): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let at = queue.page + 16 * u64::from(index);
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &length.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that starts at `head` available.
    pub fn offer(&mut self, events: bool, head: u16) {
        let queue = if events {
            &mut self.events
        } else {
            &mut self.requests
        };
        let slot = u64::from(queue.sent % SIZE);
        queue.sent = queue.sent.wrapping_add(1);
        let queue = *queue;
        self.poke(queue.driver() + 4 + 2 * slot, &head.to_le_bytes());
        self.poke(queue.driver() + 2, &queue.sent.to_le_bytes());
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue.index);
    }

    /// Makes a chain of these buffers available; at most 4 of them, 4 at a time.
    pub fn submit(&mut self, buffers: &[Buffer]) {
        let queue = self.requests;
        let head = queue.sent % 4 * 4;
        for (index, buffer) in (head..).zip(buffers) {
            let is_last = usize::from(index - head) == buffers.len() - 1;
            self.descriptor(queue, index, *buffer, (!is_last).then_some(index + 1));
        }
        self.offer(false, head);
    }

    /// The length of the next chain given back, if there is one.
    pub fn used(&mut self, events: bool) -> Option<u32> {
        let queue = if events {
            &mut self.events
        } else {
            &mut self.requests
        };
        let seen = queue.seen;
        let at = *queue;
        if u16::from_le_bytes(self.peek(at.device() + 2)) == seen {
            return None;
        }
        let queue = if events {
            &mut self.events
        } else {
            &mut self.requests
        };
        queue.seen = seen.wrapping_add(1);
        let element = at.device() + 4 + 8 * u64::from(seen % SIZE);
        Some(u32::from_le_bytes(self.peek(element + 4)))
    }
}
