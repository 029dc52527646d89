//! Whatever model a guest was given.

use super::virtio::{self, Cursor, VirtioConfig, VirtioIommu, VirtioState};
use super::vtd::{self, VtdConfig, VtdState, VtdViommu};
use super::{Msi, Passthroughs, Service, StateError, Viommu};
use crate::Iova;
use crate::space::{DmaSpace, SpaceError};
use crate::unit::SourceId;
use crate::vtd::AddressWidth;
use hv_core::Gpa;
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::platform::apic::Message;
use zerocopy::{FromBytes, IntoBytes};

/// The kinds of models.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Intel VT-d in caching mode: every stock kernel on a PC has a driver.
    #[default]
    Vtd,
    /// virtio-iommu.
    Virtio,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Vtd, Self::Virtio];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vtd => "vtd",
            Self::Virtio => "virtio",
        }
    }

    /// The size of the register window in bytes.
    pub const fn window(self) -> u64 {
        match self {
            Self::Vtd => vtd::WINDOW,
            Self::Virtio => virtio::WINDOW,
        }
    }

    /// The version of the layout of its state.
    pub const fn state_version(self) -> u32 {
        match self {
            Self::Vtd => vtd::STATE_VERSION,
            Self::Virtio => virtio::STATE_VERSION,
        }
    }
}

/// A model of either kind, chosen when the guest is made.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one a guest, and no heap to put it on"
)]
#[derive(Debug)]
pub enum AnyViommu {
    /// Intel VT-d.
    Vtd(VtdViommu),
    /// virtio-iommu.
    Virtio(VirtioIommu),
}

/// The state of a model of either kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnyState {
    /// Of a VT-d unit.
    Vtd(VtdState),
    /// Of a virtio-iommu.
    Virtio(VirtioState),
}

impl AnyState {
    /// The layout that travels.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Vtd(state) => state.as_bytes(),
            Self::Virtio(state) => state.as_bytes(),
        }
    }

    /// The state that is laid out there; `None` if it has not the size of one.
    pub fn read(kind: Kind, bytes: &[u8]) -> Option<Self> {
        match kind {
            Kind::Vtd => VtdState::read_from_bytes(bytes).ok().map(Self::Vtd),
            Kind::Virtio => VirtioState::read_from_bytes(bytes).ok().map(Self::Virtio),
        }
    }
}

/// Evaluates an expression with `$unit` as the model there is.
macro_rules! with {
    ($any:expr, $unit:ident => $what:expr) => {
        match $any {
            AnyViommu::Vtd($unit) => $what,
            AnyViommu::Virtio($unit) => $what,
        }
    };
}

impl AnyViommu {
    /// A model as after power on, for IOVAs of `width` bits. Whether it offers to remap
    /// interrupts is asked of a VT-d unit only; no other can.
    pub fn new(
        kind: Kind,
        width: AddressWidth,
        devices: Passthroughs,
        interrupt_remapping: bool,
    ) -> Self {
        match kind {
            Kind::Vtd => Self::Vtd(VtdViommu::new(&VtdConfig {
                width,
                devices,
                interrupt_remapping,
            })),
            Kind::Virtio => Self::Virtio(VirtioIommu::new(&VirtioConfig {
                width: width.bits(),
                devices,
            })),
        }
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Vtd(_) => Kind::Vtd,
            Self::Virtio(_) => Kind::Virtio,
        }
    }

    /// See [`VtdViommu::refused_pages`]. A virtio-iommu refuses none behind its guest's
    /// back: each MAP is answered.
    pub fn refused_pages(&self) -> u64 {
        match self {
            Self::Vtd(unit) => unit.refused_pages(),
            Self::Virtio(_) => 0,
        }
    }

    /// See [`VtdViommu::translate`] and [`VirtioIommu::translate`].
    pub fn translate<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        space: &impl DmaSpace,
        device: SourceId,
        iova: Iova,
        write: bool,
    ) -> Option<Gpa> {
        match self {
            Self::Vtd(unit) => unit.translate(guest, device, iova, write).ok(),
            Self::Virtio(unit) => unit.translate(space, device, iova, write),
        }
    }

    /// What a message of the device that the guest sees as `source` asks for: see
    /// [`VtdViommu::remap_interrupt`].
    pub fn remap_interrupt<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        source: SourceId,
        msi: Msi,
    ) -> Option<Message> {
        match self {
            Self::Vtd(unit) => unit.remap_interrupt(guest, source, msi),
            Self::Virtio(_) => Message::from_msi(msi),
        }
    }

    /// See [`VirtioIommu::save_mappings`]. A model whose guest keeps the tables
    /// itself has none to save.
    pub fn save_mappings(
        &self,
        space: &impl DmaSpace,
        cursor: &mut Cursor,
        to: &mut [u8],
    ) -> usize {
        match self {
            Self::Vtd(_) => 0,
            Self::Virtio(unit) => unit.save_mappings(space, cursor, to),
        }
    }

    /// See [`VirtioIommu::has_mappings`].
    pub fn has_mappings(&self, space: &impl DmaSpace, cursor: Cursor) -> bool {
        match self {
            Self::Vtd(_) => false,
            Self::Virtio(unit) => unit.has_mappings(space, cursor),
        }
    }

    /// See [`VirtioIommu::restore_mappings`].
    pub fn restore_mappings(
        &mut self,
        space: &mut impl DmaSpace,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        match self {
            Self::Vtd(_) => Err(StateError::Configuration),
            Self::Virtio(unit) => unit.restore_mappings(space, bytes),
        }
    }
}

impl Viommu for AnyViommu {
    type State = AnyState;

    fn read(&self, offset: u64, width: u8) -> u64 {
        with!(self, unit => unit.read(offset, width))
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) {
        with!(self, unit => unit.write(offset, width, value));
    }

    fn service<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        budget: u32,
    ) -> Result<Service, SpaceError> {
        with!(self, unit => unit.service(guest, space, budget))
    }

    fn is_idle(&self) -> bool {
        with!(self, unit => unit.is_idle())
    }

    fn inject_fault<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        device: SourceId,
        iova: Iova,
        write: bool,
    ) {
        with!(self, unit => unit.inject_fault(guest, device, iova, write));
    }

    fn take_interrupt(&mut self) -> Option<Msi> {
        with!(self, unit => unit.take_interrupt())
    }

    fn interrupt_line(&self) -> bool {
        with!(self, unit => unit.interrupt_line())
    }

    fn save(&self) -> AnyState {
        match self {
            Self::Vtd(unit) => AnyState::Vtd(unit.save()),
            Self::Virtio(unit) => AnyState::Virtio(unit.save()),
        }
    }

    fn restore(&mut self, state: &AnyState) -> Result<(), StateError> {
        match (self, state) {
            (Self::Vtd(unit), AnyState::Vtd(state)) => unit.restore(state),
            (Self::Virtio(unit), AnyState::Virtio(state)) => unit.restore(state),
            _ => Err(StateError::Configuration),
        }
    }
}
