//! Feeds the IOMMU what no driver would, before the real work begins.
//!
//! Nothing is checked here but that the machine survives: the work that follows
//! needs a unit that comes up as if nothing had been, and memory that is whole.

use crate::machine::{MachineError, find_device, registers};
use crate::remapping::{find_virtio, unit_range};
mod virtio;

use hv_core::PAGE_SIZE;
use hv_core::memory::Frame;
use hv_core::mmio::Mmio;
use iommu::unit::SourceId;
use iommu::vtd::registers as register;
use ledger_guest::rng::Rng;
use strandline_rt::BootInfo;
use strandline_rt::physical::MmioWindow;

/// How often everything below is done.
const ROUNDS: u32 = 50;
/// How many registers are written at random in one round.
const WRITES: u32 = 40;
/// How long a command is awaited, in register reads.
const PATIENCE: u32 = 1000;

/// GCMD: translation enable, set root table pointer, queued invalidation enable.
const TRANSLATE: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUE: u32 = 1 << 26;

/// Memory for tables and a queue that are nonsense.
static TABLE: Frame = Frame::zeroed();
static DESCRIPTORS: Frame = Frame::zeroed();

/// Feeds garbage, then turns everything off again.
pub(crate) fn feed(boot: &BootInfo, seed: u64) -> Result<(), MachineError> {
    if let Some(unit) = find_virtio(boot) {
        return virtio::feed(unit.registers.raw(), seed);
    }
    let (_, function) = find_device()?;
    let device = SourceId::new(function.requester_id());
    let unit = registers(unit_range(boot, device)?)?;
    let mut rng = Rng::new(seed ^ 0x6761_7262);
    for round in 0..ROUNDS {
        scribble(&TABLE, &mut rng, round);
        scribble(&DESCRIPTORS, &mut rng, round);
        malformed_tables(&unit, &mut rng, round);
        malformed_queue(&unit, &mut rng);
        for _ in 0..WRITES {
            random_write(&unit, &mut rng);
        }
        turn_off(&unit);
    }
    log::info!("garbage: {ROUNDS} rounds survived");
    Ok(())
}

/// Random words; in every second round with low bits that look like tables which
/// lead back to themselves, as deep as any walk goes.
fn scribble(frame: &Frame, rng: &mut Rng, round: u32) {
    let here = core::ptr::from_ref(frame) as u64;
    for word in frame.words() {
        let value = match (round % 2, rng.below(4)) {
            (0, _) => rng.next(),
            (_, 0) => rng.next() & !0xfff | 3,
            _ => here | 3,
        };
        word.store(value, core::sync::atomic::Ordering::Relaxed);
    }
}

fn malformed_tables(unit: &MmioWindow, rng: &mut Rng, round: u32) {
    let table = core::ptr::from_ref(&TABLE) as u64;
    let root = match round % 4 {
        0 => rng.next(),
        1 => !(PAGE_SIZE - 1),
        _ => table,
    };
    unit.write64(register::RTADDR, root);
    command(unit, SET_ROOT);
    command(unit, TRANSLATE);
}

fn malformed_queue(unit: &MmioWindow, rng: &mut Rng) {
    let queue = core::ptr::from_ref(&DESCRIPTORS) as u64;
    let base = match rng.below(3) {
        0 => rng.next(),
        _ => queue | rng.below(2),
    };
    unit.write64(register::IQA, base);
    command(unit, QUEUE | TRANSLATE);
    for _ in 0..4 {
        let tail = match rng.below(3) {
            0 => rng.next(),
            _ => rng.below(256) * 16,
        };
        unit.write64(register::IQT, tail);
        // Whatever went wrong is acknowledged, so that the queue goes on.
        unit.write32(register::FSTS, u32::MAX);
    }
}

fn random_write(unit: &MmioWindow, rng: &mut Rng) {
    let offset = rng.below(PAGE_SIZE / 8) as usize * 8;
    match rng.below(3) {
        0 => unit.write64(offset, rng.next()),
        1 => unit.write32(offset, rng.next() as u32),
        _ => unit.write32(offset + 4, rng.next() as u32),
    }
    unit.read64(offset);
}

/// Gives a command and waits a while for the answer; garbage may never get one.
fn command(unit: &MmioWindow, command: u32) {
    unit.write32(register::GCMD, command);
    for _ in 0..PATIENCE {
        if unit.read32(register::GSTS) & command == command {
            break;
        }
    }
}

fn turn_off(unit: &MmioWindow) {
    unit.write32(register::GCMD, 0);
    for _ in 0..PATIENCE {
        if unit.read32(register::GSTS) & (TRANSLATE | QUEUE) == 0 {
            break;
        }
    }
}
