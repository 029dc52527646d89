//! A VT-d unit emulated in caching mode: the vIOMMU that every stock x86 kernel
//! has a driver for.
//!
//! Caching mode (CAP.CM) obliges the guest to invalidate after every change of
//! its tables, also when an entry becomes present. Each invalidation is compared
//! with what is mapped, and turned into maps and unmaps of a host domain that
//! shadows the guest's table:
//!
//! ```text
//!  guest memory                    this module                     host side
//!  root -> context -> tables  ---> walk   read each entry once
//!                                    |
//!  invalidation queue ------> queue  |
//!                               v    v
//!                              work -> shadow  ------------------> DmaSpace
//!                               |      one host domain per guest table
//!  wait status <----------------+      after all that came before it
//! ```
//!
//! - `registers`, `event`, `faults`: what MMIO reads and writes.
//! - `queue`: commands. `work`: carrying them out in bounded steps.
//! - `interrupts`: what devices' messages become.
//! - `walk`, `paging_entry`: the guest's tables. `shadow`: who goes where.
//! - `state`: save and restore.
//!
//! Before translation is on, devices see guest physical memory (identity). While
//! it is on, a device without a valid context entry is blocked. GSTS.TES tells
//! the guest of a change only when it holds for every device.

mod capability;
mod event;
mod faults;
mod interrupts;
mod paging_entry;
mod queue;
mod registers;
mod shadow;
mod state;
mod walk;
mod work;

pub use capability::HOST_ADDRESS_WIDTH;
pub use state::{STATE_VERSION, VtdState};

use super::steps::Stepwise;
use super::{Msi, Passthroughs, Service, StateError, Viommu};
use crate::Iova;
use crate::space::{DmaSpace, SpaceError};
use crate::unit::SourceId;
use crate::vtd::{AddressWidth, FaultReason, FaultRecord, Global, IotlbScope, RequestKind};
use hv_core::Gpa;
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::sabotage::HeldBack;
use registers::Registers;
use shadow::Shadows;
use walk::{Refusal, context, translate};
use work::Job;

/// The size of the register window in bytes.
pub const WINDOW: u64 = 0x1000;

/// What a unit is built from.
#[derive(Clone, Debug)]
pub struct VtdConfig {
    /// The widest IOVAs offered. Not more than the host side's
    /// [`DmaSpace::address_width`]: devices of wider tables would stay blocked.
    pub width: AddressWidth,
    /// The devices behind the unit.
    pub devices: Passthroughs,
    /// Whether the unit offers to remap interrupts. Its DMAR table has to say so too.
    pub interrupt_remapping: bool,
}

/// The emulated unit.
#[derive(Debug)]
pub struct VtdViommu {
    width: AddressWidth,
    registers: Registers,
    shadows: Shadows,
    job: Option<Job>,
    /// Every device has been attached somewhere since the unit began or was
    /// restored.
    started: bool,
    /// What devices are being attached according to; GSTS.TES follows when all
    /// are.
    translating: bool,
    /// See [`hv_core::sabotage::Sabotage::UnmapOrder`].
    held_back: HeldBack<IotlbScope>,
}

impl VtdViommu {
    /// A unit as after reset. Its devices are attached by the first
    /// [`Viommu::service`].
    pub fn new(config: &VtdConfig) -> Self {
        Self {
            width: config.width,
            registers: Registers::new(config.width, config.interrupt_remapping),
            shadows: Shadows::new(&config.devices),
            job: None,
            started: false,
            translating: false,
            held_back: HeldBack::NOTHING,
        }
    }

    /// Where a DMA of the device that the guest sees as `source` ends, by what
    /// the guest's structures say at this moment. It says nothing about what is
    /// mapped on the host side.
    ///
    /// # Errors
    /// The reason for which hardware would refuse it.
    pub fn translate<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        source: SourceId,
        iova: Iova,
        write: bool,
    ) -> Result<Gpa, FaultReason> {
        self.walk(guest, source, iova, write)
            .map_err(|refusal| refusal.reason)
    }

    /// How many times a page the guest has mapped could not be mapped for the
    /// device: outside the guest's memory, or out of means. The device faults
    /// there.
    pub fn refused_pages(&self) -> u64 {
        self.shadows.refused()
    }

    fn is_translating(&self) -> bool {
        self.registers.status.contains(Global::TRANSLATION)
    }

    fn walk<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        source: SourceId,
        iova: Iova,
        write: bool,
    ) -> Result<Gpa, Refusal> {
        if !self.is_translating() {
            return Ok(Gpa::new(iova.raw()));
        }
        let context = context(guest, self.registers.root, self.width, source)?;
        translate(guest, &context, iova, write).map_err(|reason| Refusal {
            reason,
            silent: context.silent,
        })
    }
}

impl Viommu for VtdViommu {
    type State = VtdState;

    fn read(&self, offset: u64, width: u8) -> u64 {
        self.registers.read(offset, width)
    }

    fn write(&mut self, offset: u64, width: u8, value: u64) {
        self.registers.write(offset, width, value);
    }

    fn service<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        budget: u32,
    ) -> Result<Service, SpaceError> {
        self.work(guest, space, budget)
    }

    fn is_idle(&self) -> bool {
        self.is_resting()
    }

    /// A fault becomes a record, with the reason that the guest's own tables give.
    /// While the unit is off there is no fault to speak of: the device met the
    /// end of the machine's memory, as it would without a unit.
    fn inject_fault<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        device: SourceId,
        iova: Iova,
        write: bool,
    ) {
        let mut devices = self.shadows.devices().iter();
        let Some(ids) = devices
            .find(|one| one.ids.host == device)
            .map(|one| one.ids)
        else {
            return;
        };
        if !self.is_translating() {
            return;
        }
        let (kind, denied) = if write {
            (RequestKind::Write, FaultReason::NotWritable)
        } else {
            (RequestKind::Read, FaultReason::NotReadable)
        };
        let refusal = match self.walk(guest, ids.guest, iova, write) {
            Err(refusal) => refusal,
            // The tables allow it by now, or the host had no means for the page:
            // at the time of the DMA the translation was not there.
            Ok(_) => Refusal {
                reason: denied,
                silent: context(guest, self.registers.root, self.width, ids.guest)
                    .is_ok_and(|context| context.silent),
            },
        };
        if refusal.silent {
            return;
        }
        self.registers.faults.record(FaultRecord {
            page: iova.page_base(),
            source: ids.guest,
            reason: refusal.reason.code(),
            kind,
        });
    }

    fn take_interrupt(&mut self) -> Option<Msi> {
        let faults = &mut self.registers.faults;
        faults
            .event
            .sent
            .take()
            .or_else(|| self.registers.completion.sent.take())
    }

    fn interrupt_line(&self) -> bool {
        false
    }

    fn save(&self) -> VtdState {
        state::save(self)
    }

    fn restore(&mut self, state: &VtdState) -> Result<(), StateError> {
        self.registers = state::registers(self, state)?;
        self.shadows.forget();
        self.job = None;
        self.started = false;
        self.held_back = HeldBack::NOTHING;
        Ok(())
    }
}
