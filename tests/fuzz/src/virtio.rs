//! A guest that does anything to the registers and the queues of its virtio-iommu,
//! with the real layer on the host side.

use crate::input::Input;
use crate::unit::{FRAMES, Layer, with_layer};
use hv_core::Gpa;
use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use iommu::Iova;
use iommu::unit::SourceId;
use iommu::viommu::virtio::{
    Cursor, Features, MAPPING_BYTES, VirtioConfig, VirtioIommu, VirtioState,
};
use iommu::viommu::{Passthrough, Passthroughs, Service, Viommu};
use zerocopy::{FromBytes, IntoBytes};

const NIC: Passthrough = Passthrough {
    guest: SourceId::new(0x18),
    host: SourceId::new(0x310),
};
/// The page of each queue: descriptors, driver area, device area.
const QUEUES: [u64; 2] = [0x1000, 0x2000];
const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x800;
const SIZE: u16 = 16;
/// Where requests and answers go.
const REQUEST: u64 = 0x3000;
const ANSWER: u64 = 0x4000;
/// More than any input of this length can ask for.
const STEPS: u32 = 200_000;

pub(crate) fn run(input: &[u8]) {
    with_layer(|mut layer, guest| {
        let mut unit = VirtioIommu::new(&config());
        start(&mut unit);
        let mut input = Input::new(input);
        let mut sent = [0u16; 2];
        while !input.is_empty() {
            match input.u8() % 8 {
                0 => {
                    let offset = u64::from(input.u16()) % 0x140;
                    let width = 1 << (input.u8() % 4);
                    unit.write(offset, width, input.u64());
                }
                1 => {
                    // Anything in either queue.
                    let at = QUEUES[0] + u64::from(input.u16()) % 0x2000;
                    poke(guest, at, &input.u64().to_le_bytes());
                }
                2 => {
                    let queue = usize::from(input.u8() % 2);
                    offer(guest, queue, &mut sent, input.u16());
                    unit.write(0x50, 4, queue as u64);
                }
                3 | 4 => {
                    request(guest, &mut input);
                    offer(guest, 0, &mut sent, 0);
                    unit.write(0x50, 4, 0);
                }
                5 => {
                    let budget = u32::from(input.u8());
                    let _ = unit.service(guest, &mut layer, budget).unwrap();
                }
                6 => {
                    let iova = Iova::new(input.u64());
                    unit.inject_fault(guest, NIC.host, iova, input.u8().is_multiple_of(2));
                }
                _ => restore(&mut unit, &mut layer, &mut input),
            }
        }
        for offset in (0..0x140).step_by(4) {
            let _ = unit.read(offset, 4);
        }
        // Whatever it was asked, it comes to rest.
        let end = unit.service(guest, &mut layer, STEPS);
        assert_eq!(end, Ok(Service::Idle), "work without end");
    });
}

/// A request of some type with plausible fields, under descriptors 0 and 1.
fn request(guest: &GuestMemory<'_, Arena>, input: &mut Input<'_>) {
    let mut bytes = [0; 36];
    bytes[0] = input.u8() % 7;
    bytes[4] = input.u8() % 4;
    match bytes[0] {
        1 | 2 => {
            bytes[8] = NIC.guest.raw() as u8;
            bytes[12] = input.u8() % 4;
        }
        _ => {
            let page = u64::from(input.u16() % 2048);
            let pages = u64::from(input.u8() % 80);
            let last = ((page + pages) << 12).wrapping_sub(u64::from(input.u8() % 3));
            let physical = u64::from(input.u8()) % (FRAMES + 2);
            bytes[8..16].copy_from_slice(&(page << 12).to_le_bytes());
            bytes[16..24].copy_from_slice(&last.to_le_bytes());
            if bytes[0] == 3 {
                bytes[24..32].copy_from_slice(&(physical << 12).to_le_bytes());
                bytes[32] = input.u8() % 8;
            }
        }
    }
    poke(guest, REQUEST, &bytes);
    let descriptor = |at: u64, address: u64, length: u32, flags: u16| {
        poke(guest, at, &address.to_le_bytes());
        poke(guest, at + 8, &length.to_le_bytes());
        poke(guest, at + 12, &flags.to_le_bytes());
        poke(guest, at + 14, &1u16.to_le_bytes());
    };
    descriptor(QUEUES[0], REQUEST, 36, 1);
    descriptor(QUEUES[0] + 16, ANSWER, 64, 2);
}

fn offer(guest: &GuestMemory<'_, Arena>, queue: usize, sent: &mut [u16; 2], head: u16) {
    let slot = u64::from(sent[queue] % SIZE);
    sent[queue] = sent[queue].wrapping_add(1);
    let driver = QUEUES[queue] + DRIVER;
    poke(guest, driver + 4 + 2 * slot, &head.to_le_bytes());
    poke(guest, driver + 2, &sent[queue].to_le_bytes());
}

/// Saved state and mappings with some bytes changed: they are refused, or work.
fn restore(unit: &mut VirtioIommu, layer: &mut Layer<'_>, input: &mut Input<'_>) {
    let mut state = unit.save();
    let mut mappings = [0; 8 * MAPPING_BYTES];
    let length = unit.save_mappings(layer, &mut Cursor::default(), &mut mappings);
    let mappings = &mut mappings[..length];
    let bytes = state.as_mut_bytes();
    for _ in 0..input.u8() % 4 {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] = input.u8();
        if let Some(byte) = mappings.get_mut(at) {
            *byte = input.u8();
        }
    }
    let Ok(state) = VirtioState::read_from_bytes(bytes) else {
        return;
    };
    // Into the unit as it is: what it had before goes.
    if unit.restore(&state).is_ok() {
        let _ = unit.restore_mappings(layer, mappings);
    }
}

fn config() -> VirtioConfig {
    let mut devices = Passthroughs::new();
    devices.push(NIC).unwrap();
    VirtioConfig { width: 39, devices }
}

/// What a driver does at first.
fn start(unit: &mut VirtioIommu) {
    let mut write = |offset: u64, value: u64| unit.write(offset, 4, value);
    write(0x70, 3);
    for half in 0..2 {
        write(0x24, half);
        write(0x20, Features::all().bits() >> (32 * half) & 0xffff_ffff);
    }
    write(0x70, 0xb);
    for (index, page) in (0..).zip(QUEUES) {
        write(0x30, index);
        write(0x38, SIZE.into());
        write(0x80, page);
        write(0x90, page + DRIVER);
        write(0xa0, page + DEVICE);
        write(0x44, 1);
    }
    write(0x70, 0xf);
}

fn poke(guest: &GuestMemory<'_, Arena>, at: u64, bytes: &[u8]) {
    guest.write(Gpa::new(at), bytes).unwrap();
}
