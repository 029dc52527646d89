//! IOMMUs emulated for the guest.
//!
//! A model is a register file in front of structures in the guest's memory. The
//! two are kept apart, so that a guest's exit stays short whatever it asks for:
//!
//! ```text
//!   guest's access ---> Viommu::read / write      registers only, no memory
//!                            |  leaves work behind
//!                            v
//!   main loop -------> Viommu::service(budget)    reads queue and tables, and has
//!                            |                    the DmaSpace follow them
//!                            v
//!                      Viommu::take_interrupt     until None, after each of them,
//!                      Viommu::interrupt_line     and before the second too
//! ```
//!
//! Nothing in a guest's memory is trusted, and every word of it is read once per
//! decision: the guest may change it meanwhile.

use crate::Iova;
use crate::layer::MapError;
use crate::space::{DmaSpace, SpaceError};
use crate::unit::SourceId;
use hv_core::memory::{GuestMemory, PhysMemory};
pub use hv_core::platform::apic::Msi;

pub mod any;
mod steps;
pub mod virtio;
pub mod vtd;

/// How many passthrough devices one model serves at the most.
pub const MAX_DEVICES: usize = 8;

/// A passthrough device under its two names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passthrough {
    /// Where the guest sees it on its PCI bus.
    pub guest: SourceId,
    /// Where it is on the host's.
    pub host: SourceId,
}

/// The passthrough devices of a guest.
pub type Passthroughs = heapless::Vec<Passthrough, MAX_DEVICES>;

/// Whether a model has work left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// None until the guest writes a register again.
    Idle,
    /// The budget was used up first: call again soon.
    More,
}

/// Why saved state was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// It was written by another version.
    #[error("vIOMMU state has version {0}, which this build does not know")]
    Version(u32),
    /// It belongs to a unit with other capabilities or other devices.
    #[error("vIOMMU state belongs to a unit of another configuration")]
    Configuration,
    /// A register holds what no guest could have brought about.
    #[error("vIOMMU state has an impossible value in {0}")]
    Register(&'static str),
    /// A mapping that travelled with it cannot be made here.
    #[error("a mapping in the vIOMMU state cannot be made: {0}")]
    Mapping(#[from] MapError),
}

/// What all models of an IOMMU have in common.
pub trait Viommu {
    /// Everything the guest can see and everything not yet done, in a fixed
    /// layout that goes across as it is.
    type State;

    /// The register at `offset` bytes into the window. `width` is in bytes; an
    /// access that the model does not allow there reads as all ones.
    fn read(&self, offset: u64, width: u8) -> u64;

    /// Writes a register; an access that the model does not allow there is ignored.
    /// Work it leads to is done by [`Viommu::service`].
    fn write(&mut self, offset: u64, width: u8, value: u64);

    /// Does what the guest asked for, `budget` steps of it at the most. A step is
    /// one command, one queue descriptor, or one table of the guest's or the host's.
    ///
    /// What the guest is told to be complete is complete: its view (registers,
    /// queue head, wait status) changes only after `space` has followed.
    ///
    /// # Errors
    /// The host side failed, so that nothing further can be promised to the
    /// guest, and nothing further was. The next call tries the same step again.
    fn service<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        budget: u32,
    ) -> Result<Service, SpaceError>;

    /// Whether there is nothing for [`Viommu::service`] to do.
    fn is_idle(&self) -> bool;

    /// Tells the guest that the host refused a DMA of `device` (its host id).
    /// Unknown devices are ignored.
    fn inject_fault<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        device: SourceId,
        iova: Iova,
        write: bool,
    );

    /// The oldest interrupt the unit has sent and nobody has taken.
    fn take_interrupt(&mut self) -> Option<Msi>;

    /// Whether the unit's interrupt line is high; one that sends messages has none.
    ///
    /// To be passed on after a register access and again after [`Viommu::service`]:
    /// an edge-triggered input must see the line fall by an acknowledgement before it
    /// rises by the next answer.
    fn interrupt_line(&self) -> bool;

    /// The state at this moment, also in the middle of work: what is half done
    /// counts as not begun, and is done again by the unit that restores it.
    fn save(&self) -> Self::State;

    /// Takes over the state of another unit with the same capabilities and
    /// devices. Where each device's DMA goes is established anew by
    /// [`Viommu::service`], from the guest's tables or, if the guest keeps none, from
    /// mappings restored before; until it is idle no device may run.
    ///
    /// # Errors
    /// The state is not one that [`Viommu::save`] can return; nothing changed.
    fn restore(&mut self, state: &Self::State) -> Result<(), StateError>;
}
