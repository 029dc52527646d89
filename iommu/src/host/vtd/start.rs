//! Bringing a unit up.

use super::VtdUnit;
use super::drained;
use super::fault::FaultReader;
use super::queue::Queue;
use super::registers::Registers;
use super::tables::Tables;
use crate::unit::UnitError;
use crate::vtd::registers::VER;
use crate::vtd::{
    AddressWidth, Capabilities, ContextCacheScope, Descriptor, ExtendedCapabilities, Global,
    IotlbScope,
};
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// Whether a unit sees what this CPU stored, without the cache lines being written
/// back first. This driver, like the domains' tables, never writes any back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coherency {
    /// As the unit says (ECAP.C). Right on hardware.
    AsReported,
    /// It does, whatever it says. Right for an emulated unit only, which reads
    /// memory as any CPU does: QEMU's works so and leaves ECAP.C clear.
    Assured,
}

/// Why a unit cannot be used. The capability names are those of the
/// specification, for whoever has to look for another machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing answers at the register window, or something else does.
    #[error("no VT-d unit at this address (version register reads {0:#x})")]
    NoUnit(u32),
    /// Neither 39-bit nor 48-bit tables (CAP.SAGAW).
    #[error("the unit offers neither 3-level nor 4-level second-stage tables (CAP.SAGAW)")]
    NoTableWidth,
    /// No invalidation queue (ECAP.QI).
    #[error("the unit has no invalidation queue (ECAP.QI)")]
    NoQueue,
    /// An invalidation cannot wait for DMA in flight (CAP.DWD, CAP.DRD): a page
    /// could be written after its unmap was reported.
    #[error("the unit cannot drain DMA in flight on invalidation (CAP.DWD, CAP.DRD)")]
    NoDrain,
    /// The unit does not snoop the CPU's caches (ECAP.C), and nobody vouched that
    /// it need not; see [`Coherency`].
    #[error("the unit does not read its tables coherently (ECAP.C)")]
    NotCoherent,
    /// The pool has fewer than three frames.
    #[error("out of memory for the unit's root table and queue")]
    OutOfMemory,
    /// The unit did not carry out a command.
    #[error("during start-up: {0}")]
    Unit(#[from] UnitError),
}

impl<R: Mmio, M: PhysMemory> VtdUnit<R, M> {
    /// Takes the unit over from whoever used it, with every device blocked.
    ///
    /// `window` is the unit's register window, of 4 KiB or what the DMAR table
    /// says. `pool` gives three frames now and one for each PCI bus a device is
    /// attached on; the unit must be able to read `mem`'s frames at their
    /// addresses. Until this returns DMA may pass as it did before; on an error it
    /// may go on doing so, untranslated.
    pub fn start(
        window: R,
        mem: M,
        mut pool: FramePool,
        coherency: Coherency,
    ) -> Result<Self, StartError> {
        let registers = Registers { window };
        let version = registers.window.read32(VER);
        if version == 0 || version == u32::MAX {
            return Err(StartError::NoUnit(version));
        }
        let capabilities = registers.capabilities();
        let width = check(&capabilities, &registers.extended_capabilities(), coherency)?;

        for leftover in [Global::TRANSLATION, Global::INTERRUPT_REMAPPING] {
            if registers.state().contains(leftover) {
                registers.turn(leftover, false)?;
            }
        }
        if capabilities.protected_low || capabilities.protected_high {
            registers.unprotect_memory()?;
        }
        let faults = FaultReader::start(&registers, &capabilities);
        Queue::stop_leftover(&registers)?;

        let flush_first = capabilities.write_buffer_flush;
        let mut queue = Queue::start(&registers, &mem, &mut pool, flush_first)?;
        let tables = Tables::new(&mem, &mut pool).ok_or(StartError::OutOfMemory)?;
        if flush_first {
            registers.flush_write_buffer()?;
        }
        registers.set_root_table(tables.root())?;
        // Nothing cached may outlive the old root table. The context cache goes
        // first, so that the IOTLB cannot be refilled through it.
        for descriptor in [
            Descriptor::ContextCache(ContextCacheScope::Global),
            drained(IotlbScope::Global),
        ] {
            queue.execute(&registers, &mem, descriptor)?;
        }
        registers.turn(Global::TRANSLATION, true)?;
        Ok(Self {
            registers,
            mem,
            pool,
            capabilities,
            width,
            tables,
            queue,
            faults,
        })
    }
}

/// Whether the unit has all that the promises of `HostUnit` need, and which table
/// width it is used with: the smaller one, for it has the shorter walk.
fn check(
    capabilities: &Capabilities,
    extended: &ExtendedCapabilities,
    coherency: Coherency,
) -> Result<AddressWidth, StartError> {
    if !extended.queued_invalidation {
        return Err(StartError::NoQueue);
    }
    if !extended.coherent && coherency != Coherency::Assured {
        return Err(StartError::NotCoherent);
    }
    if !(capabilities.drain_writes && capabilities.drain_reads) {
        return Err(StartError::NoDrain);
    }
    [AddressWidth::Bits39, AddressWidth::Bits48]
        .into_iter()
        .find(|width| capabilities.supports(*width))
        .ok_or(StartError::NoTableWidth)
}
