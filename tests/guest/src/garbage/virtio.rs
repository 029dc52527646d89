//! The same for a virtio-iommu: queues of nonsense behind registers that are written
//! at random.

use super::{DESCRIPTORS, ROUNDS, TABLE, WRITES, scribble};
use crate::machine::{MachineError, registers};
use hv_core::PAGE_SIZE;
use hv_core::mmio::Mmio;
use ledger_guest::rng::Rng;
use strandline_rt::physical::{MmioWindow, PhysRange};

const DRIVER_FEATURES: usize = 0x20;
const DRIVER_FEATURES_SELECT: usize = 0x24;
const QUEUE_SELECT: usize = 0x30;
const QUEUE_SIZE: usize = 0x38;
const QUEUE_READY: usize = 0x44;
const QUEUE_NOTIFY: usize = 0x50;
const STATUS: usize = 0x70;
const QUEUE_DESCRIPTORS: usize = 0x80;
const QUEUE_DRIVER: usize = 0x90;
const QUEUE_DEVICE: usize = 0xa0;
const END_OF_QUEUE: usize = 0xa8;
/// The end of the configuration.
const END: u64 = 0x128;

/// Acknowledge, driver, features agreed, driver ready.
const READY: u32 = 1 | 2 | 8 | 4;
/// All the device offers, below and from bit 32 on.
const FEATURES: [u32; 2] = [0x57, 1];

/// Feeds garbage, then resets the device.
pub(super) fn feed(base: u64, seed: u64) -> Result<(), MachineError> {
    let range = PhysRange::new(base, PAGE_SIZE).ok_or(MachineError::NoUnit)?;
    let unit = registers(range)?;
    let mut rng = Rng::new(seed ^ 0x6761_7262);
    for round in 0..ROUNDS {
        scribble(&TABLE, &mut rng, round);
        scribble(&DESCRIPTORS, &mut rng, round);
        start(&unit, &mut rng);
        for queue in [0, 1, 0, 0, 0] {
            unit.write32(QUEUE_NOTIFY, queue);
        }
        for _ in 0..WRITES {
            let offset = rng.below(END / 4) as usize * 4;
            // A device that writes its answers into the guest's code proves nothing.
            if (QUEUE_DESCRIPTORS..END_OF_QUEUE).contains(&offset) {
                continue;
            }
            unit.write32(offset, rng.next() as u32);
            unit.read32(offset);
        }
        unit.write32(STATUS, 0);
    }
    log::info!("garbage: {ROUNDS} rounds survived");
    Ok(())
}

/// Takes the device into use with queues that are anywhere, most often in memory.
fn start(unit: &MmioWindow, rng: &mut Rng) {
    for (select, features) in (0..).zip(FEATURES) {
        unit.write32(DRIVER_FEATURES_SELECT, select);
        unit.write32(DRIVER_FEATURES, features);
    }
    unit.write32(STATUS, READY & !4);
    for queue in 0..2 {
        unit.write32(QUEUE_SELECT, queue);
        unit.write32(QUEUE_SIZE, 1 << rng.below(7));
        for register in [QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE] {
            let frame = match rng.below(2) {
                0 => &TABLE,
                _ => &DESCRIPTORS,
            };
            let here = core::ptr::from_ref(frame) as u64 + rng.below(64) * 16;
            let address = match rng.below(8) {
                0 => rng.next() & !0xf,
                _ => here,
            };
            unit.write32(register, address as u32);
            unit.write32(register + 4, (address >> 32) as u32);
        }
        unit.write32(QUEUE_READY, 1);
    }
    unit.write32(STATUS, READY);
}
