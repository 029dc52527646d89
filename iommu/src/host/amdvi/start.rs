//! Bringing a unit up.

use super::AmdUnit;
use super::events::EventLog;
use super::interrupts::{InterruptTables, MAX_TABLES};
use super::queue::Queue;
use super::registers::Registers;
use super::table::Table;
use crate::amdvi::features::{
    CAPABILITY_DEVICE_TLB, CAPABILITY_IS_IOMMU, CAPABILITY_KIND, CAPABILITY_NP_CACHE,
};
use crate::amdvi::registers::{CONTROL, DEVICE_TABLE, EXCLUSION_BASE, FEATURES};
use crate::amdvi::{Command, Control, DeviceInterrupts, Features};
use crate::host::device_tlbs::DeviceTlbs;
use crate::ivrs::IvhdFlags;
use crate::unit::UnitError;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;
use hv_core::sabotage::{Sabotage, is_active};

/// What is to be known of a unit beside its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// How firmware wants it set up, from the IVRS table.
    pub flags: IvhdFlags,
    /// The capability header in its PCI configuration space, to which the IVRS
    /// table leads.
    pub capability: u32,
    /// Whether firmware is prepared for interrupts to be remapped
    /// ([`Ivrs::names_io_apics`](crate::ivrs::Ivrs::names_io_apics)). Every unit can.
    pub remaps_interrupts: bool,
}

/// Why a unit cannot be used. The names are those of the specification, for
/// whoever has to look for another machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// The PCI function has no IOMMU capability where firmware says.
    #[error("no AMD-Vi unit at this PCI function (its capability header reads {0:#x})")]
    NoCapability(u32),
    /// Nothing answers at the register window.
    #[error("no AMD-Vi unit at this address (the control register reads as all ones)")]
    NoUnit,
    /// INVALIDATE_IOMMU_ALL is not known (EFR.IASup): what an earlier owner had it
    /// cache could not be dropped.
    #[error("the unit cannot drop all that it caches (EFR.IASup)")]
    NoInvalidateAll,
    /// The pool has fewer frames than [`AmdUnit::FRAMES`] in one piece.
    #[error("out of memory for the unit's tables and buffers")]
    OutOfMemory,
    /// The unit did not carry out a command.
    #[error("during start-up: {0}")]
    Unit(#[from] UnitError),
}

impl<'m, R: Mmio, M: PhysMemory> AmdUnit<'m, R, M> {
    /// The frames a unit takes: the device table in one piece, the command buffer
    /// with its answers, the event log, interrupt remapping tables.
    pub const FRAMES: u64 = super::table::FRAMES + 3 + MAX_TABLES as u64;

    /// Takes the unit over from whoever used it, with every device blocked: its DMA,
    /// and its interrupt requests if those are to be remapped. Destinations are the 8-bit
    /// ids of xAPIC mode then.
    ///
    /// `window` is the unit's register window of
    /// [`WINDOW`](crate::amdvi::registers::WINDOW) bytes. `pool` gives
    /// [`AmdUnit::FRAMES`] frames that nobody had before; the unit must be able to
    /// read `mem`'s frames at their addresses. Until this returns DMA and interrupts
    /// may pass as they did before; on an error they may go on doing so.
    pub fn start(
        window: R,
        mem: &'m M,
        mut pool: FramePool,
        facts: Facts,
    ) -> Result<Self, StartError> {
        if facts.capability & CAPABILITY_KIND != CAPABILITY_IS_IOMMU {
            return Err(StartError::NoCapability(facts.capability));
        }
        let registers = Registers { window };
        if registers.window.read64(CONTROL) == u64::MAX {
            return Err(StartError::NoUnit);
        }
        let features = Features::from_bits_truncate(registers.window.read64(FEATURES));
        if !features.contains(Features::INVALIDATE_ALL) {
            return Err(StartError::NoInvalidateAll);
        }
        if pool.available() < Self::FRAMES {
            return Err(StartError::OutOfMemory);
        }

        // Off before anything moves. What it logged goes with the old log.
        registers.turn(Control::ENABLE, false);
        Queue::turn_off(&registers)?;
        EventLog::turn_off(&registers)?;
        // DMA in an exclusion range is not translated.
        registers.window.write64(EXCLUSION_BASE, 0);
        registers.turn(Control::COHERENT, true);
        // What would make a remapping table's entries others than are made here.
        registers.turn(Control::WIDE_INTERRUPTS | Control::MORE_INTERRUPTS, false);
        for (flag, control) in WIRING {
            registers.turn(control, facts.flags.contains(flag));
        }

        let remaps = facts.remaps_interrupts && !is_active(Sabotage::InterruptRemapping);
        let interrupts = match remaps {
            true => DeviceInterrupts::Blocked,
            false => DeviceInterrupts::Unremapped,
        };
        let table = Table::new(mem, &mut pool, interrupts).ok_or(StartError::OutOfMemory)?;
        registers.window.write64(DEVICE_TABLE, table.register());
        let mut queue = Queue::new(mem, &mut pool)?;
        queue.turn_on(&registers);
        let mut events = EventLog::start(&registers, mem, &mut pool)?;
        // Commands are fetched only by an enabled unit, so what an earlier owner
        // had it cache goes right after. The table blocks all devices already.
        registers.turn(Control::ENABLE, true);
        queue.execute(&registers, &[Command::All.encode()])?;

        // QEMU 10.0 never writes its log. Whoever waits for a fault has to know.
        queue.provoke_event(&registers)?;
        events.expect_event(&registers, mem);
        Ok(Self {
            registers,
            mem,
            caches_absent: facts.capability & CAPABILITY_NP_CACHE != 0,
            // What does not tell of events does not tell of devices that keep silent.
            knows_device_tlbs: facts.capability & CAPABILITY_DEVICE_TLB != 0
                && facts.flags.contains(IvhdFlags::DEVICE_TLB)
                && events.works(),
            device_tlbs: DeviceTlbs::default(),
            sets_dirty_bits: features.contains(Features::HOST_ACCESSED | Features::HOST_DIRTY),
            table,
            interrupts: remaps.then(|| InterruptTables::new(pool)),
            queue,
            events,
        })
    }
}

/// What firmware knows of the board's wiring, and which control asks for it.
const WIRING: [(IvhdFlags, Control); 4] = [
    (IvhdFlags::TUNNEL, Control::TUNNEL),
    (IvhdFlags::PASS_POSTED, Control::PASS_POSTED),
    (
        IvhdFlags::RESPONSE_PASS_POSTED,
        Control::RESPONSE_PASS_POSTED,
    ),
    (IvhdFlags::ISOCHRONOUS, Control::ISOCHRONOUS),
];
