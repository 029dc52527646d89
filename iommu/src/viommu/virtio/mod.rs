//! A virtio-iommu: the paravirtual IOMMU, behind registers of virtio-mmio.
//!
//! Virtio 1.2, section 5.13 "IOMMU Device". The guest keeps no tables: it asks for
//! each mapping and each unmap in a request, and the host's tables are the only
//! store of what is mapped:
//!
//! ```text
//!  guest memory                   this module                       host side
//!  available ring ---> ring     one chain, each field read once
//!                       |
//!                       v
//!                    request    decoded
//!                       |
//!                       v
//!                  plan, work   checked, then done in steps ------> DmaSpace
//!                       |       endpoints: who is in which domain
//!  used ring <----------+       after all that the request asked for
//!  event buffers <--- fault     a DMA that was refused
//! ```
//!
//! - `registers`, `config`, `features`: what MMIO reads and writes.
//! - `ring`: a virtqueue. `request`, `property`, `fault`: what goes through it.
//! - `plan`: checking a request. `work`, `endpoints`, `portion`: carrying it out.
//! - `state`, `mappings`: save and restore.
//!
//! # Bounds
//! A request takes as many steps as it covers tables of the host's, in as few calls
//! as a turn's steps allow (`portion`), so a map of all memory or an unmap of the whole
//! address space holds up its own guest and nobody else. Mappings take no memory but the host's tables and counters; one
//! that does not fit is refused with NOMEM, and whatever was made of it before is
//! taken back.

mod config;
mod endpoints;
mod fault;
mod features;
mod mappings;
mod plan;
mod portion;
mod property;
mod registers;
mod request;
mod ring;
mod state;
mod work;

pub use fault::FaultReason;
pub use features::Features;
pub use mappings::{Cursor, MAPPING_BYTES};
pub use request::Status;
pub use state::{STATE_VERSION, VirtioState};

use super::steps::Stepwise;
use super::{Msi, Passthroughs, Service, StateError, Viommu};
use crate::space::{Attachment, DmaSpace, Piece, SpaceError};
use crate::unit::{DomainId, SourceId};
use crate::{Iova, IovaRange};
use endpoints::Endpoints;
use fault::Fault;
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::sabotage::HeldBack;
use hv_core::{Gpa, PAGE_SIZE};
use registers::{EVENTS, Registers};
use ring::Chain;
use work::Job;
use zerocopy::IntoBytes;

/// The size of the register window in bytes.
pub const WINDOW: u64 = 0x1000;

/// What a unit is built from.
#[derive(Clone, Debug)]
pub struct VirtioConfig {
    /// The number of IOVA bits offered. Not more than the host side's
    /// [`DmaSpace::address_width`]: wider IOVAs would be refused.
    pub width: u8,
    /// The devices behind the unit. An endpoint's number is the guest's id for it.
    pub devices: Passthroughs,
}

/// The emulated unit.
#[derive(Debug)]
pub struct VirtioIommu {
    width: u8,
    registers: Registers,
    endpoints: Endpoints,
    job: Option<Job>,
    /// The request that `job` is for.
    chain: Option<Chain>,
    /// Every endpoint has been sent somewhere since the unit began or was restored.
    started: bool,
    /// The mapping, with its domain, of which the last piece that was restored is not
    /// the end.
    torn: Option<(u32, Piece)>,
    /// Faults that the guest was not told of, for want of a buffer.
    dropped_faults: u64,
    /// See [`hv_core::sabotage::Sabotage::UnmapOrder`].
    held_back: HeldBack<(DomainId, IovaRange)>,
}

impl VirtioIommu {
    /// A unit as after power on. Its devices are attached by the first
    /// [`Viommu::service`].
    pub fn new(config: &VirtioConfig) -> Self {
        Self {
            width: config.width,
            registers: Registers::new(config.width),
            endpoints: Endpoints::new(&config.devices),
            job: None,
            chain: None,
            started: false,
            torn: None,
            dropped_faults: 0,
            held_back: HeldBack::NOTHING,
        }
    }

    /// How many faults the guest was not told of, because it had provided no
    /// buffer for them.
    pub fn dropped_faults(&self) -> u64 {
        self.dropped_faults
    }

    /// Where a DMA of the device that the guest sees as `source` ends. The guest keeps
    /// no tables, so this is what `space` has.
    pub fn translate(
        &self,
        space: &impl DmaSpace,
        source: SourceId,
        iova: Iova,
        write: bool,
    ) -> Option<Gpa> {
        let domain = match self.endpoints.place_of(source)? {
            Attachment::Identity => return Some(Gpa::new(iova.raw())),
            Attachment::Blocked => return None,
            Attachment::Domain(domain) => domain,
        };
        let page = IovaRange::new(iova.page_base(), 1).ok()?;
        let piece = space.next_piece(domain, page.start())?.part(page)?;
        let is_allowed = match write {
            true => piece.access.writes(),
            false => piece.access.reads(),
        };
        let offset = iova.raw() % PAGE_SIZE;
        is_allowed.then(|| Gpa::new(piece.gfn.gpa().raw() + offset))
    }

    /// Puts a report into the oldest event buffer. One that is too small is given
    /// back empty, so that it is not in the way for ever.
    fn report<M: PhysMemory>(&mut self, guest: &GuestMemory<'_, M>, fault: &Fault) {
        let [_, queue] = &self.registers.queues;
        let peeked = match self.registers.is_live() && queue.is_ready {
            true => queue.ring.peek(guest),
            false => Ok(None),
        };
        let Ok(chain) = peeked else {
            self.registers.demand_reset();
            return;
        };
        let written = chain.as_ref().and_then(|chain| {
            let fits = chain.writable() >= size_of::<Fault>() as u64;
            fits.then(|| chain.write(guest, fault.as_bytes()))?
        });
        if let Some(chain) = chain {
            let length = written.map_or(0, |()| size_of::<Fault>() as u32);
            self.give_back_to(EVENTS, guest, &chain, length);
        }
        if written.is_none() {
            self.dropped_faults = self.dropped_faults.saturating_add(1);
        }
    }
}

impl Viommu for VirtioIommu {
    type State = VirtioState;

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

    /// A fault becomes a report on the event queue. One that comes while the guest
    /// has no driver ready for it is dropped, as is one without a buffer.
    fn inject_fault<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        device: SourceId,
        iova: Iova,
        write: bool,
    ) {
        let Some(endpoint) = self.endpoints.of_host(device) else {
            return;
        };
        let reason = match endpoint.membership {
            Some(_) => FaultReason::Mapping,
            None => FaultReason::Domain,
        };
        let number = endpoint.ids.guest.raw();
        self.report(guest, &Fault::new(reason, number.into(), iova, write));
    }

    /// The device has an interrupt line and sends no messages.
    fn take_interrupt(&mut self) -> Option<Msi> {
        None
    }

    /// High as long as the driver has not acknowledged everything.
    fn interrupt_line(&self) -> bool {
        !self.registers.interrupt.is_empty()
    }

    fn save(&self) -> VirtioState {
        state::save(self)
    }

    /// The mappings are apart: see [`VirtioIommu::restore_mappings`].
    fn restore(&mut self, state: &VirtioState) -> Result<(), StateError> {
        let (registers, memberships) = state::restored(self, state)?;
        self.registers = registers;
        self.endpoints.forget(&memberships);
        self.job = None;
        self.chain = None;
        self.started = false;
        self.torn = None;
        self.held_back = HeldBack::NOTHING;
        Ok(())
    }
}
