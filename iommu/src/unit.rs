//! What the layer needs of a host remapping unit; one trait for all vendors.

use crate::amdvi::event::Refusal;
use crate::device_tlb::{DeviceTlb, NoDeviceTlb};
use crate::dirty_mode::DirtyHardware;
use crate::vtd::{FaultReason, InterruptFaultReason, ScalableFaultReason};
use crate::{Iova, IovaRange};
use core::fmt;
use hv_core::Hpa;
use hv_core::platform::apic::Msi;

/// The tag under which a unit caches the translations of one domain. 0 is not
/// used (VT-d reserves it in caching mode).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DomainId(u16);

impl DomainId {
    /// The domain of that number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// A device's requester id: bus, device and function as on the PCI bus.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SourceId(u16);

impl SourceId {
    /// Wraps the 16-bit requester id.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The 16-bit requester id.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function, as they index a context table: `device * 8 + function`.
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, function) = (self.devfn() >> 3, self.devfn() & 7);
        write!(f, "{:02x}:{device:02x}.{function}", self.bus())
    }
}

/// An interrupt of the host: edge triggered, for one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptTarget {
    /// The CPU's APIC id.
    pub apic_id: u32,
    /// The vector.
    pub vector: u8,
}

impl InterruptTarget {
    /// The message that says itself where it goes.
    pub fn unremapped(self) -> Result<Msi, UnitError> {
        Msi::fixed(self.apic_id, self.vector).map_err(|_| UnitError::OutOfRange)
    }

    /// The CPU's APIC id for a remapping table of xAPIC mode, which has 8 bits for it.
    pub(crate) fn xapic_id(self) -> Result<u8, UnitError> {
        u8::try_from(self.apic_id).map_err(|_| UnitError::OutOfRange)
    }
}

/// What an invalidation drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Translations of these pages, and the cached table entries on the way to
    /// them.
    Pages(IovaRange),
    /// Everything cached for the domain.
    Domain,
}

/// Something that a unit refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A DMA.
    Dma(DmaFault),
    /// An interrupt request.
    Interrupt(InterruptFault),
}

impl Fault {
    /// The DMA, if it was one.
    pub fn dma(self) -> Option<DmaFault> {
        match self {
            Self::Dma(fault) => Some(fault),
            Self::Interrupt(_) => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dma(fault) => fault.fmt(f),
            Self::Interrupt(fault) => fault.fmt(f),
        }
    }
}

/// A DMA that a unit refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaFault {
    /// Who sent it.
    pub source: SourceId,
    /// Where it went.
    pub iova: Iova,
    /// Whether it was a write.
    pub write: bool,
    /// Why.
    pub cause: FaultCause,
}

impl fmt::Display for DmaFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            iova,
            cause,
            ..
        } = self;
        let access = if self.write { "write" } else { "read" };
        write!(f, "{source}: {access} at {iova} refused: {cause}")
    }
}

/// An interrupt request that a unit refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptFault {
    /// Who sent it.
    pub source: SourceId,
    /// The entry of the remapping table that it named, as far as it named one.
    pub index: u16,
    /// Why.
    pub cause: FaultCause,
}

impl fmt::Display for InterruptFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            index,
            cause,
        } = self;
        write!(f, "{source}: interrupt request {index} refused: {cause}")
    }
}

/// Why a unit refused something, as its specification says. Its display is words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultCause {
    /// The code in a VT-d fault record (table "Fault Reason Encodings").
    Vtd(u8),
    /// An AMD-Vi event.
    AmdVi(Refusal),
}

impl fmt::Display for FaultCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vtd(code) => {
                let legacy = FaultReason::from_code(*code);
                let scalable = ScalableFaultReason::from_code(*code);
                let interrupt = InterruptFaultReason::from_code(*code);
                match (legacy, scalable, interrupt) {
                    (Some(reason), ..) => reason.fmt(f),
                    (_, Some(reason), _) => reason.fmt(f),
                    (.., Some(reason)) => reason.fmt(f),
                    (None, None, None) => write!(f, "reason {code:#x}"),
                }
            }
            Self::AmdVi(refusal) => refusal.fmt(f),
        }
    }
}

/// Why a unit did not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// The unit did not answer in time, or reported a queue error. Nothing is
    /// known of what it caches: the layer treats the unit as lost.
    #[error("the remapping unit does not answer")]
    NoAnswer,
    /// A device with a TLB of its own did not confirm that it dropped its translations,
    /// and may go on using them. The layer treats the unit as lost.
    #[error("a device did not confirm that its TLB was invalidated")]
    DeviceTlb,
    /// No memory for a root, context or device table, or no free entry in the
    /// interrupt remapping table.
    #[error("out of memory for the remapping unit's tables")]
    OutOfMemory,
    /// The unit has no such domain number, device or CPU.
    #[error("the remapping unit cannot address this domain, device or CPU")]
    OutOfRange,
}

impl UnitError {
    /// Whether translations that are gone from the tables may be in use for good.
    pub const fn is_lasting(self) -> bool {
        matches!(self, Self::NoAnswer | Self::DeviceTlb)
    }
}

/// One host remapping unit.
///
/// Each method returns only after the hardware acknowledged, so that what the
/// method promises already holds; no caller has to remember a second step.
pub trait HostUnit {
    /// How many table levels a domain has: 3 for 39-bit, 4 for 48-bit IOVAs.
    fn levels(&self) -> u8;

    /// Whether leaves of 2 MiB (level 2) are allowed; 4 KiB ones always are.
    fn has_large_leaves(&self) -> bool;

    /// Whether the unit may go on taking a page for not mapped (VT-d: caching mode
    /// or a write buffer). Then a mapping newly made is sure to be seen only after
    /// [`HostUnit::invalidate`] over it; otherwise at once.
    fn caches_absent(&self) -> bool;

    /// What is known of the dirty bits it sets; by default that it sets none.
    fn dirty_hardware(&self) -> DirtyHardware {
        DirtyHardware::NONE
    }

    /// Makes `device` translate through the table at `root`. On return no DMA of
    /// the device under its former translation is in flight.
    fn attach(&mut self, device: SourceId, domain: DomainId, root: Hpa) -> Result<(), UnitError>;

    /// Refuses every DMA of `device`. On return none is in flight.
    fn block(&mut self, device: SourceId) -> Result<(), UnitError>;

    /// Lets `device`, which is blocked, have a TLB of its own from its next attachment
    /// on, so that ATS can be turned on in it; `tlb` is the proof that this was decided.
    /// All other devices' translated and translation requests are refused.
    ///
    /// # Errors
    /// It cannot have one, and nothing changes.
    fn allow_device_tlb(&mut self, device: SourceId, tlb: DeviceTlb) -> Result<(), NoDeviceTlb> {
        let _ = (device, tlb);
        Err(NoDeviceTlb::Unit)
    }

    /// Drops cached translations, those in the TLBs of devices too, and waits until every DMA that used one has
    /// landed and is visible to this CPU (drain of reads and writes).
    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError>;

    /// Whether devices can raise those interrupts only that they were granted.
    fn remaps_interrupts(&self) -> bool {
        false
    }

    /// Lets `device`, and nobody else, raise an interrupt. Returns the message by
    /// which it does; where interrupts are not remapped, that is the one by which
    /// anybody does.
    fn grant_interrupt(&mut self, _: SourceId, to: InterruptTarget) -> Result<Msi, UnitError> {
        to.unremapped()
    }

    /// Takes all interrupts back that `device` was granted. On return none is on its
    /// way.
    fn revoke_interrupts(&mut self, _: SourceId) -> Result<(), UnitError> {
        Ok(())
    }

    /// Whether the unit tells of the DMA it refuses. One that does not refuses all
    /// the same; [`HostUnit::take_fault`] just never has anything.
    fn reports_faults(&self) -> bool {
        true
    }

    /// The oldest fault not yet taken, and forgets it.
    fn take_fault(&mut self) -> Option<Fault>;
}
