//! Bringing a unit up.

use super::VtdUnit;
use super::choice::{Implementation, Translation};
use super::fault::FaultReader;
use super::invalidation::drained;
use super::queue::{DescriptorSize, Queue};
use super::registers::Registers;
use super::tables::Tables;
use crate::host::device_tlbs::DeviceTlbs;
use crate::unit::UnitError;
use crate::vtd::registers::VER;
use crate::vtd::{
    Capabilities, ContextCacheScope, Descriptor, ExtendedCapabilities, Global, IotlbScope,
    PasidCacheScope, PasidDescriptor,
};
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;

/// Why a unit cannot be used. The capability names are those of the
/// specification, for whoever has to look for another machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing answers at the register window, or something else does.
    #[error("no VT-d unit at this address (version register reads {0:#x})")]
    NoUnit(u32),
    /// Neither 39-bit nor 48-bit tables (CAP.SAGAW), nor usable first-stage ones.
    #[error(
        "the unit offers neither 3-level nor 4-level second-stage tables (CAP.SAGAW), nor first-stage ones (ECAP.FSTS)"
    )]
    NoTableWidth,
    /// No invalidation queue (ECAP.QI).
    #[error("the unit has no invalidation queue (ECAP.QI)")]
    NoQueue,
    /// An invalidation cannot wait for DMA in flight (CAP.DWD, CAP.DRD): a page
    /// could be written after its unmap was reported.
    #[error("the unit cannot drain DMA in flight on invalidation (CAP.DWD, CAP.DRD)")]
    NoDrain,
    /// The unit does not snoop the CPU's caches (ECAP.C), and nobody vouched that
    /// it need not; see [`Implementation`].
    #[error("the unit does not read its tables coherently (ECAP.C)")]
    NotCoherent,
    /// The pool has fewer than three frames.
    #[error("out of memory for the unit's root table and queue")]
    OutOfMemory,
    /// The unit did not carry out a command.
    #[error("during start-up: {0}")]
    Unit(#[from] UnitError),
}

impl<'m, R: Mmio, M: PhysMemory> VtdUnit<'m, R, M> {
    /// Takes the unit over from whoever used it, with every device blocked.
    ///
    /// `window` is the unit's register window, of 4 KiB or what the DMAR table
    /// says. `pool` gives three frames now, another for interrupts and, for devices that are attached, one
    /// for each PCI bus in legacy mode; in scalable mode one for each half of a bus
    /// and two for each device. The unit must be able to read `mem`'s frames at their
    /// addresses. Until this returns DMA may pass as it did before; on an error it
    /// may go on doing so, untranslated.
    pub fn start(
        window: R,
        mem: &'m M,
        mut pool: FramePool,
        implementation: Implementation,
    ) -> Result<Self, StartError> {
        let registers = Registers { window };
        let version = registers.window.read32(VER);
        if version == 0 || version == u32::MAX {
            return Err(StartError::NoUnit(version));
        }
        let capabilities = registers.capabilities();
        let extended = registers.extended_capabilities();
        check(&capabilities, &extended)?;
        let translation = Translation::choose(&capabilities, &extended, implementation)?;

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
        let size = match translation.is_scalable() {
            true => DescriptorSize::Bits256,
            false => DescriptorSize::Bits128,
        };
        let mut queue = Queue::start(&registers, mem, &mut pool, size, flush_first)?;
        let tables = Tables::new(mem, &mut pool, translation, extended.walk_snoops)
            .ok_or(StartError::OutOfMemory)?;
        if flush_first {
            registers.flush_write_buffer()?;
        }
        registers.set_root_table(tables.root_register())?;
        for descriptor in everything(translation) {
            queue.execute(&registers, &[descriptor])?;
        }
        registers.turn(Global::TRANSLATION, true)?;
        Ok(Self {
            registers,
            mem,
            pool,
            capabilities,
            extended,
            implementation,
            translation,
            tables,
            queue,
            device_tlbs: DeviceTlbs::default(),
            faults,
            interrupts: None,
        })
    }
}

/// Drops all that is cached, so that nothing outlives the old root table. In this
/// order, so that no cache is refilled through the one before it (6.6 "Set Root
/// Table Pointer Operation").
fn everything(translation: Translation) -> impl Iterator<Item = u128> {
    let contexts = Descriptor::ContextCache(ContextCacheScope::Global).encode();
    let pasids = PasidDescriptor::Cache(PasidCacheScope::Global).encode();
    let translations = drained(IotlbScope::Global).encode();
    [
        Some(contexts),
        translation.is_scalable().then_some(pasids),
        Some(translations),
    ]
    .into_iter()
    .flatten()
}

/// Whether the unit has all that the promises of `HostUnit` need in any mode.
fn check(capabilities: &Capabilities, extended: &ExtendedCapabilities) -> Result<(), StartError> {
    if !extended.queued_invalidation {
        return Err(StartError::NoQueue);
    }
    if !(capabilities.drain_writes && capabilities.drain_reads) {
        return Err(StartError::NoDrain);
    }
    Ok(())
}
