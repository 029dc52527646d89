//! A virtio-iommu (virtio 1.2, section 5.13), over the queues of `virtio-drivers`.
#![allow(unsafe_code)]

use super::{Fault, Remapping};
use crate::machine::{MachineError, registers, table};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use heapless::Vec;
use hv_core::memory::Frame;
use hv_core::mmio::Mmio;
use hv_core::platform::{IOMMU_PIN, ioapic};
use hv_core::{Gpa, PAGE_SIZE};
use iommu::space::Access;
use iommu::unit::SourceId;
use iommu::viommu::virtio::Features;
use iommu::viot::VirtioMmio;
use iommu::{Iova, IovaRange};
use ledger_guest::ledger::{DOMAINS, SLOT_PAGES, SLOTS};
use spin::{Mutex, MutexGuard};
use strandline_rt::acpi::VIOT;
use strandline_rt::apic::LocalApic;
use strandline_rt::physical::PhysRange;
use strandline_rt::{BootInfo, interrupts};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

const WINDOW: usize = 0x1000;
const REQUESTS: u16 = 0;
const EVENTS: u16 = 1;
/// The vector the device interrupts with.
const VECTOR: u8 = 0x42;
/// Descriptors of each queue.
const QUEUE: usize = 16;
/// Bytes of a fault report.
const FAULT: usize = 24;
/// The guest's number of its first domain.
const FIRST_DOMAIN: u32 = 1;
/// `VIRTIO_IOMMU_FAULT_F_WRITE`.
const FAULT_WRITE: u8 = 1 << 1;

const ATTACH: u8 = 1;
const MAP: u8 = 3;
const UNMAP: u8 = 4;
const PROBE: u8 = 5;

/// What went wrong between driver and device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VirtioError {
    #[error("the device cannot map and unmap")]
    Features,
    #[error("the transport: {0}")]
    Transport(#[from] virtio_drivers::transport::mmio::MmioError),
    #[error("a queue: {0}")]
    Queue(#[from] virtio_drivers::Error),
    #[error("request {request} was answered with status {status}")]
    Refused { request: u8, status: u8 },
    #[error("request {0} was not answered")]
    Unanswered(u8),
    #[error("more mappings than the plan has")]
    Mappings,
}

/// One mapping, to be made again with its domain: a domain that the device leaves
/// is gone.
#[derive(Clone, Copy)]
struct Mapping {
    range: IovaRange,
    gpa: Gpa,
    access: Access,
}

/// The device with its queues.
pub(crate) struct Virtio {
    transport: MmioTransport<'static>,
    requests: VirtQueue<Memory, QUEUE>,
    events: VirtQueue<Memory, QUEUE>,
    /// The buffers that the device has, under the tokens of the event queue.
    buffers: &'static mut [[u8; FAULT]; QUEUE],
    endpoint: u32,
    current: usize,
    /// A page each; those of all slots, and one for a moment.
    mappings: [Vec<Mapping, { SLOTS * SLOT_PAGES + 1 }>; DOMAINS],
}

static BUFFERS: Mutex<[[u8; FAULT]; QUEUE]> = Mutex::new([[0; FAULT]; QUEUE]);

/// The unit that ACPI names, `None` if it names none.
pub(crate) fn find(boot: &BootInfo) -> Option<VirtioMmio> {
    let mut bytes = [0; 256];
    VirtioMmio::find(table(boot, VIOT, &mut bytes).ok()?).ok()
}

impl Virtio {
    /// Takes the device into use, and asks it about the endpoint. Its interrupts go to
    /// `apic`.
    pub(crate) fn start(
        unit: VirtioMmio,
        source: SourceId,
        apic: &LocalApic,
    ) -> Result<Self, MachineError> {
        route_interrupt(apic)?;
        let header = NonNull::new(unit.registers.raw() as *mut _).ok_or(MachineError::NoUnit)?;
        // SAFETY: registers that ACPI names, on the identity map, and nobody else
        // drives them.
        let transport = unsafe { MmioTransport::new(header, WINDOW) };
        let mut transport = transport.map_err(VirtioError::from)?;
        let features = transport.begin_init(Features::all());
        if !features.contains(Features::MAP_UNMAP | Features::PROBE) {
            return Err(VirtioError::Features.into());
        }
        let queue = |transport: &mut _, index| {
            VirtQueue::new(transport, index, false, false).map_err(VirtioError::from)
        };
        let requests = queue(&mut transport, REQUESTS)?;
        let events = queue(&mut transport, EVENTS)?;
        transport.finish_init();
        let probe_size = transport
            .read_config_space::<u32>(32)
            .map_err(VirtioError::from)?;
        let mut virtio = Self {
            transport,
            requests,
            events,
            buffers: MutexGuard::leak(BUFFERS.lock()),
            endpoint: source.raw().into(),
            current: 0,
            mappings: [const { Vec::new() }; DOMAINS],
        };
        virtio.offer_buffers()?;
        virtio.probe(probe_size as usize)?;
        Ok(virtio)
    }

    fn offer_buffers(&mut self) -> Result<(), VirtioError> {
        for (buffer, expected) in self.buffers.iter_mut().zip(0..) {
            // SAFETY: static memory, touched again only when its token is popped.
            let token = unsafe { self.events.add(&[], &mut [buffer.as_mut_slice()]) }?;
            // So that the token tells the buffer.
            if token != expected {
                return Err(VirtioError::Mappings);
            }
        }
        self.transport.notify(EVENTS);
        Ok(())
    }

    /// What is reserved is shown; the plan's IOVAs lie below all of it.
    fn probe(&mut self, size: usize) -> Result<(), VirtioError> {
        let mut properties = [0; 64];
        let properties = properties.get_mut(..size).ok_or(VirtioError::Features)?;
        let mut request = [0; 72];
        request[0] = PROBE;
        request[4..8].copy_from_slice(&self.endpoint.to_le_bytes());
        self.ask(&request, properties)?;
        log::info!("virtio-iommu: properties {properties:02x?}");
        Ok(())
    }

    /// Sends a request and sleeps until its answer comes.
    fn ask(&mut self, request: &[u8], properties: &mut [u8]) -> Result<(), VirtioError> {
        let kind = request.first().copied().unwrap_or(0);
        let mut tail = [u8::MAX; 4];
        let written = match properties {
            [] => self.exchange(&[request], &mut [&mut tail]),
            properties => self.exchange(&[request], &mut [properties, &mut tail]),
        }?;
        match tail[0] {
            _ if written == 0 => Err(VirtioError::Unanswered(kind)),
            0 => Ok(()),
            status => Err(VirtioError::Refused {
                request: kind,
                status,
            }),
        }
    }

    /// Has the device take `request` and fill `answer`; returns how much it wrote.
    fn exchange<'b>(
        &mut self,
        request: &'b [&'b [u8]],
        answer: &'b mut [&'b mut [u8]],
    ) -> Result<u32, VirtioError> {
        // SAFETY: both stay where they are until they are popped below.
        let token = unsafe { self.requests.add(request, &mut *answer) }?;
        // What was signalled before, such as faults, is looked for when it is due. From
        // here on an answer raises the line anew, and without that this never ends.
        self.transport.ack_interrupt();
        self.transport.notify(REQUESTS);
        loop {
            while !interrupts::wait().contains(VECTOR) {}
            // Before the look: an answer that comes after it is another edge.
            self.transport.ack_interrupt();
            if self.requests.can_pop() {
                break;
            }
        }
        // SAFETY: the buffers that were added under this token.
        Ok(unsafe { self.requests.pop_used(token, request, answer) }?)
    }

    fn domain(&self) -> [u8; 4] {
        (FIRST_DOMAIN + self.current as u32).to_le_bytes()
    }

    fn ask_map(&mut self, mapping: &Mapping) -> Result<(), VirtioError> {
        let Mapping { range, gpa, access } = mapping;
        let flags = u32::from(access.reads()) | u32::from(access.writes()) << 1;
        let mut request = [0; 36];
        request[0] = MAP;
        request[4..8].copy_from_slice(&self.domain());
        request[8..24].copy_from_slice(&ends(*range));
        request[24..32].copy_from_slice(&gpa.raw().to_le_bytes());
        request[32..36].copy_from_slice(&flags.to_le_bytes());
        self.ask(&request, &mut [])
    }
}

/// Routes the device's input of the I/O APIC to this CPU: fixed, edge-triggered.
fn route_interrupt(apic: &LocalApic) -> Result<(), MachineError> {
    const SELECT: usize = 0x00;
    const DATA: usize = 0x10;
    const FIRST_ENTRY: u32 = 0x10;
    let range = PhysRange::new(ioapic::WINDOW, PAGE_SIZE).ok_or(MachineError::NoUnit)?;
    let ioapic = registers(range)?;
    let entry = FIRST_ENTRY + 2 * u32::from(IOMMU_PIN);
    for (register, value) in [(entry + 1, apic.id() << 24), (entry, VECTOR.into())] {
        ioapic.write32(SELECT, register);
        ioapic.write32(DATA, value);
    }
    Ok(())
}

/// First and last address.
fn ends(range: IovaRange) -> [u8; 16] {
    let mut ends = [0; 16];
    ends[..8].copy_from_slice(&range.start().raw().to_le_bytes());
    let last = range.last_page().raw() + (PAGE_SIZE - 1);
    ends[8..].copy_from_slice(&last.to_le_bytes());
    ends
}

impl Remapping for Virtio {
    /// The device leaves its old domain by that, which ends with it.
    fn attach(&mut self, domain: usize) -> Result<(), MachineError> {
        self.current = domain % DOMAINS;
        let mut request = [0; 20];
        request[0] = ATTACH;
        request[4..8].copy_from_slice(&self.domain());
        request[8..12].copy_from_slice(&self.endpoint.to_le_bytes());
        self.ask(&request, &mut [])?;
        for mapping in self.mappings[self.current].clone() {
            self.ask_map(&mapping)?;
        }
        Ok(())
    }

    fn map(&mut self, range: IovaRange, gpa: Gpa, access: Access) -> Result<(), MachineError> {
        let mapping = Mapping { range, gpa, access };
        self.ask_map(&mapping)?;
        let pushed = self.mappings[self.current].push(mapping);
        pushed.map_err(|_| VirtioError::Mappings)?;
        Ok(())
    }

    fn unmap(&mut self, range: IovaRange) -> Result<(), MachineError> {
        let mut request = [0; 28];
        request[0] = UNMAP;
        request[4..8].copy_from_slice(&self.domain());
        request[8..24].copy_from_slice(&ends(range));
        self.ask(&request, &mut [])?;
        self.mappings[self.current].retain(|mapping| !range.contains(mapping.range.start()));
        Ok(())
    }

    fn take_fault(&mut self) -> Option<Fault> {
        let token = self.events.peek_used()?;
        let buffer = self.buffers.get_mut(usize::from(token))?;
        // SAFETY: the buffer that was added under this token.
        let popped = unsafe {
            self.events
                .pop_used(token, &[], &mut [buffer.as_mut_slice()])
        };
        popped.ok()?;
        let fault = parse(buffer, self.endpoint);
        // SAFETY: as in `offer_buffers`. The descriptor that was freed last is the
        // next one used, so the token stays the buffer's.
        let added = unsafe { self.events.add(&[], &mut [buffer.as_mut_slice()]) };
        if added != Ok(token) {
            log::error!("an event buffer got lost");
        }
        self.transport.notify(EVENTS);
        fault
    }
}

fn parse(report: &[u8; FAULT], endpoint: u32) -> Option<Fault> {
    if report[8..12] != endpoint.to_le_bytes() {
        log::warn!("a fault of somebody else: {report:02x?}");
        return None;
    }
    let address = report.last_chunk()?;
    Some(Fault {
        iova: Iova::new(u64::from_le_bytes(*address)),
        write: report[4] & FAULT_WRITE != 0,
    })
}

/// Memory for the queues: physical addresses are the guest's own.
struct Memory;

/// Two pieces of a page for each queue.
static PAGES: [Frame; 4] = [const { Frame::zeroed() }; 4];
static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: pages are static, zeroed, aligned, and handed out once; the identity map
// makes pointers and physical addresses the same.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = TAKEN.fetch_add(pages, Ordering::Relaxed);
        match PAGES.get(first..first + pages) {
            Some([frame, ..]) => {
                let start = NonNull::from(frame).cast();
                (start.as_ptr() as u64, start)
            }
            // Address 0 is the caller's sign of failure.
            _ => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        // They stay taken: the driver lives as long as the guest.
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
