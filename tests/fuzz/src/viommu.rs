//! A guest that does anything to the registers, the queue and the tables of its
//! unit, with the real layer on the host side.

use crate::input::Input;
use crate::unit::{FRAMES, with_layer};
use hv_core::Gfn;
use hv_core::memory::GuestMemory;
use hv_core::testing::Arena;
use iommu::Iova;
use iommu::unit::SourceId;
use iommu::viommu::vtd::{VtdConfig, VtdState, VtdViommu};
use iommu::viommu::{Passthrough, Passthroughs, Service, Viommu};
use iommu::vtd::registers::{GCMD, IQA, IQT, RTADDR};
use iommu::vtd::{AddressWidth, ContextEntry, Global, RootEntry, TranslationType};
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, IntoBytes};

const ROOT: u64 = 1;
const CONTEXT: u64 = 2;
const TABLE: u64 = 3;
const QUEUE: u64 = 9;
const NIC: Passthrough = Passthrough {
    guest: SourceId::new(0x18),
    host: SourceId::new(0x310),
};
/// More than any input of this length can ask for.
const STEPS: u32 = 200_000;

pub(crate) fn run(input: &[u8]) {
    with_layer(|mut layer, guest| {
        let mut unit = VtdViommu::new(&config());
        start(&mut unit, guest);
        let mut input = Input::new(input);
        while !input.is_empty() {
            match input.u8() % 8 {
                0 => {
                    let offset = u64::from(input.u16()) % 0x300;
                    let width = if input.u8().is_multiple_of(2) { 4 } else { 8 };
                    unit.write(offset, width, input.u64());
                }
                1 => {
                    let (frame, index) = (input.u8(), input.u16());
                    poke(guest, u64::from(frame) % FRAMES, index, input.u64());
                }
                2 => {
                    // A leaf with rights, for a page below 512.
                    let index = input.u8();
                    let leaf = u64::from(input.u8() % (FRAMES as u8 + 2)) << 12;
                    let rights = u64::from(input.u8() % 4);
                    poke(guest, TABLE + 2, index.into(), leaf | rights);
                }
                3 | 4 => {
                    let tail = unit.read(IQT as u64, 8) & 0xff0;
                    for half in 0..2 {
                        poke(guest, QUEUE, (tail / 8) as u16 + half, input.u64());
                    }
                    unit.write(IQT as u64, 8, (tail + 16) % 4096);
                }
                5 => {
                    let budget = u32::from(input.u8());
                    let _ = unit.service(guest, &mut layer, budget).unwrap();
                }
                6 => {
                    let iova = Iova::new(input.u64());
                    unit.inject_fault(guest, NIC.host, iova, input.u8().is_multiple_of(2));
                    let _ = unit.translate(guest, NIC.guest, iova, true);
                    let _ = unit.take_interrupt();
                }
                _ => restore(&mut unit, &mut input),
            }
        }
        for offset in (0..0x1000).step_by(4) {
            let _ = unit.read(offset, 4);
        }
        // Whatever it was asked, it comes to rest.
        let end = unit.service(guest, &mut layer, STEPS);
        assert_eq!(end, Ok(Service::Idle), "work without end");
    });
}

/// Saved state with some bytes changed: it is refused, or it works.
fn restore(unit: &mut VtdViommu, input: &mut Input<'_>) {
    let mut state = unit.save();
    let bytes = state.as_mut_bytes();
    for _ in 0..input.u8() % 4 {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] = input.u8();
    }
    let Ok(state) = VtdState::read_from_bytes(bytes) else {
        return;
    };
    let mut next = VtdViommu::new(&config());
    if next.restore(&state).is_ok() {
        *unit = next;
    }
}

fn config() -> VtdConfig {
    let mut devices = Passthroughs::new();
    devices.push(NIC).unwrap();
    VtdConfig {
        width: AddressWidth::Bits39,
        devices,
        interrupt_remapping: true,
    }
}

/// What a driver does at first: one device, in a domain of its own.
fn start(unit: &mut VtdViommu, guest: &GuestMemory<'_, Arena>) {
    let root = RootEntry {
        context_table: CONTEXT << 12,
    };
    poke(guest, ROOT, 0, root.encode() as u64);
    let context = ContextEntry {
        silent: false,
        translation: TranslationType::Untranslated,
        table: TABLE << 12,
        width: AddressWidth::Bits39,
        domain: 5,
    };
    let at = u16::from(NIC.guest.devfn()) * 2;
    poke(guest, CONTEXT, at, context.encode() as u64);
    poke(guest, CONTEXT, at + 1, (context.encode() >> 64) as u64);
    poke(guest, TABLE, 0, (TABLE + 1) << 12 | 3);
    poke(guest, TABLE + 1, 0, (TABLE + 2) << 12 | 3);
    unit.write(RTADDR as u64, 8, ROOT << 12);
    unit.write(IQA as u64, 8, QUEUE << 12);
    let mut command = Global::empty();
    for bit in [
        Global::ROOT_TABLE,
        Global::QUEUED_INVALIDATION,
        Global::TRANSLATION,
    ] {
        command |= bit;
        unit.write(GCMD as u64, 4, command.bits().into());
    }
}

fn poke(guest: &GuestMemory<'_, Arena>, frame: u64, index: u16, value: u64) {
    let frame = guest.frame(Gfn::new(frame)).unwrap();
    frame.words()[usize::from(index) % 512].store(value, Ordering::Release);
}
