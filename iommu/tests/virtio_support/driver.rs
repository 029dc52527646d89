//! What a driver does, from the specification: takes the device into use, sends
//! requests and reads their answers.

use super::requests::{attach, detach, map, unmap};
use super::{EVENTS, Machine, OK, Queue, READ, REQUESTS, SIZE, WRITE};
use hv_core::{Gfn, Gpa, PAGE_SIZE};
use iommu::unit::HostUnit;
use iommu::viommu::virtio::Features;
use iommu::viommu::{Passthrough, Viommu};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};

/// Where requests and answers go; one page each.
const REQUEST: u64 = 0x3000;
const ANSWER: u64 = 0x4000;

impl<U: HostUnit + Clone> Machine<U> {
    /// What a driver does to get there.
    pub fn start(&mut self, features: u64) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.settle();
        let mut status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        self.write(VIRTIO_MMIO_STATUS, status);
        for half in 0..2 {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(
                VIRTIO_MMIO_DRIVER_FEATURES,
                (features >> (32 * half)) as u32,
            );
        }
        status |= VIRTIO_CONFIG_S_FEATURES_OK;
        self.write(VIRTIO_MMIO_STATUS, status);
        self.requests = Queue::new(REQUESTS, 0x1000);
        self.events = Queue::new(EVENTS, 0x2000);
        for queue in [self.requests, self.events] {
            self.memory
                .frame(Gfn::containing(Gpa::new(queue.page)))
                .unwrap()
                .clear();
            self.set_up(queue, SIZE);
        }
        self.write(VIRTIO_MMIO_STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    pub fn set_up(&mut self, queue: Queue, size: u16) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, queue.index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        let addresses = [
            (
                VIRTIO_MMIO_QUEUE_DESC_LOW,
                VIRTIO_MMIO_QUEUE_DESC_HIGH,
                queue.page,
            ),
            (
                VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                queue.driver(),
            ),
            (
                VIRTIO_MMIO_QUEUE_USED_LOW,
                VIRTIO_MMIO_QUEUE_USED_HIGH,
                queue.device(),
            ),
        ];
        for (low, high, address) in addresses {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn read(&self, register: u32) -> u32 {
        self.unit.read(register.into(), 4) as u32
    }

    pub fn write(&mut self, register: u32, value: u32) {
        self.unit.write(register.into(), 4, value.into());
    }

    /// Sets `bypass` of the configuration.
    pub fn set_bypass(&mut self, bypass: bool) {
        self.unit.write(0x100 + 36, 1, bypass.into());
        self.settle();
    }

    /// Submits a request with room for its answer.
    pub fn submit_request(&mut self, request: &[u8], room: u32) {
        // Four can be on their way.
        let place = u64::from(self.requests.sent % 4) * 0x200;
        self.poke(REQUEST + place, request);
        self.poke(ANSWER + place, &[0xee; 0x80]);
        self.submit(&[
            (REQUEST + place, request.len() as u32, false),
            (ANSWER + place, room, true),
        ]);
    }

    /// Sends a request and returns what was written of its answer.
    pub fn ask(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        let place = u64::from(self.requests.sent % 4) * 0x200;
        self.submit_request(request, room);
        self.settle();
        let length = self.used(false).unwrap() as usize;
        self.peek::<0x80>(ANSWER + place)[..length].to_vec()
    }

    /// The status of the youngest request, all having been answered.
    pub fn last_status(&mut self) -> u8 {
        while self.used(false).is_some() {}
        assert_eq!(self.requests.seen, self.requests.sent);
        let place = u64::from(self.requests.sent.wrapping_sub(1) % 4) * 0x200;
        let [status] = self.peek(ANSWER + place);
        status
    }

    /// Sends a request whose answer is a status.
    pub fn status_of(&mut self, request: &[u8]) -> u8 {
        let answer = self.ask(request, 4);
        assert_eq!(answer.len(), 4, "{request:x?}");
        assert_eq!(answer[1..], [0; 3]);
        answer[0]
    }

    pub fn attach(&mut self, domain: u32, device: Passthrough, flags: u32) -> u8 {
        self.status_of(&attach(domain, device.guest.raw().into(), flags))
    }

    pub fn detach(&mut self, domain: u32, device: Passthrough) -> u8 {
        self.status_of(&detach(domain, device.guest.raw().into()))
    }

    /// Maps `pages` pages with both rights.
    pub fn map_pages(&mut self, domain: u32, page: u64, pages: u64, gfn: u64) -> u8 {
        let last = (page + pages) * PAGE_SIZE - 1;
        self.map(
            domain,
            page * PAGE_SIZE,
            last,
            gfn * PAGE_SIZE,
            READ | WRITE,
        )
    }

    pub fn map(&mut self, domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> u8 {
        self.status_of(&map(domain, first, last, physical, flags))
    }

    pub fn unmap(&mut self, domain: u32, first: u64, last: u64) -> u8 {
        self.status_of(&unmap(domain, first, last))
    }

    pub fn unmap_pages(&mut self, domain: u32, page: u64, pages: u64) -> u8 {
        let last = (page + pages) * PAGE_SIZE - 1;
        self.unmap(domain, page * PAGE_SIZE, last)
    }
}
