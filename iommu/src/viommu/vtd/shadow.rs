//! Which device goes where, and the host domains that shadow the guest's tables.
//!
//! A shadow belongs to one guest table: domain number, root and width together.
//! Two context entries that use one domain number for two tables break the
//! specification; each gets its own shadow, so that neither device sees the
//! other's pages.
//!
//! ```text
//!                   context entry valid              filled from the table
//!   (other place) ----------------------> filling ------------------------> attached
//!        ^                                                                     |
//!        +---- entry changed, absent or malformed; translation turned off -----+
//!              the shadow goes with its last device, its pages reported
//! ```
//!
//! The device stays where it was while a shadow is filled: it never meets a
//! half-filled one.

use super::walk::{Chunk, GuestTable, PageRun, next_chunk};
use crate::space::{Attachment, DmaSpace, SpaceError};
use crate::unit::{DomainId, UnitError};
use crate::viommu::{MAX_DEVICES, Passthrough, Passthroughs};
use crate::{Iova, IovaRange};
use heapless::Vec;
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::{PAGE_SHIFT, PAGE_SIZE};

/// One for each device, and one in the making.
const MAX_SHADOWS: usize = MAX_DEVICES + 1;

/// A host domain that follows a guest table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shadow {
    /// `None` for a leftover of a life before [`Shadows::forget`].
    table: Option<GuestTable>,
    /// The host's domain.
    pub(super) host: DomainId,
}

/// A passthrough device and where its DMA goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    /// Its names.
    pub(super) ids: Passthrough,
    /// `None` until it was attached for the first time.
    place: Option<Attachment>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Shadows {
    devices: Vec<Device, MAX_DEVICES>,
    shadows: Vec<Shadow, MAX_SHADOWS>,
    refused: u64,
}

impl Shadows {
    pub(super) fn new(devices: &Passthroughs) -> Self {
        Self {
            devices: devices
                .iter()
                .map(|&ids| Device { ids, place: None })
                .collect(),
            shadows: Vec::new(),
            refused: 0,
        }
    }

    /// Nothing is known of the guest's tables any more. Each shadow goes when its
    /// last device has been attached elsewhere.
    pub(super) fn forget(&mut self) {
        for shadow in &mut self.shadows {
            shadow.table = None;
        }
    }

    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// How many pages the guest has mapped that the host side refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// The guest's table that a device goes through.
    pub(super) fn table_of(&self, device: &Device) -> Option<GuestTable> {
        let place = device.place?;
        self.shadows
            .iter()
            .find(|shadow| place == Attachment::Domain(shadow.host))?
            .table
    }

    pub(super) fn find(&self, table: &GuestTable) -> Option<DomainId> {
        self.shadows
            .iter()
            .find(|shadow| shadow.table.as_ref() == Some(table))
            .map(|shadow| shadow.host)
    }

    /// The first shadow, from place `from` in the list on, that shadows a table
    /// used with that guest domain (`None`: with any), and its place.
    pub(super) fn next_of(
        &self,
        domain: Option<u16>,
        from: usize,
    ) -> Option<(usize, GuestTable, DomainId)> {
        self.shadows
            .iter()
            .enumerate()
            .skip(from)
            .find_map(|(place, shadow)| {
                let table = shadow.table?;
                domain
                    .is_none_or(|domain| domain == table.domain)
                    .then_some((place, table, shadow.host))
            })
    }

    /// An empty shadow of `table`; `None` when the host has no means for it.
    pub(super) fn create(
        &mut self,
        table: GuestTable,
        space: &mut impl DmaSpace,
    ) -> Result<Option<DomainId>, SpaceError> {
        self.release_unused(space)?;
        if self.shadows.is_full() || table.width.bits() > space.address_width() {
            return Ok(None);
        }
        let host = match space.create_domain() {
            Ok(host) => host,
            Err(SpaceError::OutOfMemory) => return Ok(None),
            Err(error) => return Err(error),
        };
        let shadow = Shadow {
            table: Some(table),
            host,
        };
        // There is room: see above.
        let _ = self.shadows.push(shadow);
        Ok(Some(host))
    }

    /// Has the shadow follow the guest's table for the first chunk of `run`.
    /// Returns the rest of the run.
    pub(super) fn sync_chunk<M: PhysMemory>(
        &mut self,
        table: &GuestTable,
        host: DomainId,
        run: PageRun,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
    ) -> Result<Option<PageRun>, SpaceError> {
        let start = Iova::new(run.first << PAGE_SHIFT);
        let last = match next_chunk(guest, table, run) {
            Chunk::Leaves { pages, count } => {
                let done = space.replace(host, start, &pages[..count])?;
                self.refused = self.refused.saturating_add(done.refused);
                run.first + count as u64 - 1
            }
            Chunk::Empty { last } => {
                let bytes = (last - run.first + 1) * PAGE_SIZE;
                if let Ok(range) = IovaRange::from_bytes(start, bytes) {
                    space.unmap_range(host, range)?;
                }
                last
            }
        };
        Ok((last < run.last).then_some(PageRun {
            first: last + 1,
            ..run
        }))
    }

    /// Sends the device at `index` there, unless it goes there already, and drops
    /// the shadow it leaves, if it was the last one there.
    pub(super) fn attach(
        &mut self,
        index: usize,
        to: Attachment,
        space: &mut impl DmaSpace,
    ) -> Result<(), SpaceError> {
        let Some(device) = self.devices.get_mut(index) else {
            return Ok(());
        };
        if device.place != Some(to) {
            let host = device.ids.host;
            let place = match space.attach(host, to) {
                Ok(()) => to,
                // Without the means to go where it shall, it goes nowhere.
                Err(SpaceError::OutOfMemory | SpaceError::Unit(UnitError::OutOfMemory)) => {
                    space.attach(host, Attachment::Blocked)?;
                    Attachment::Blocked
                }
                Err(error) => return Err(error),
            };
            log::debug!("vIOMMU: device {host} goes to {place:?}");
            device.place = Some(place);
        }
        self.release_unused(space)
    }

    /// Destroys the shadows that no device goes through. What devices could write
    /// there is reported by that.
    fn release_unused(&mut self, space: &mut impl DmaSpace) -> Result<(), SpaceError> {
        while let Some(index) = self.shadows.iter().position(|shadow| {
            let place = Some(Attachment::Domain(shadow.host));
            self.devices.iter().all(|device| device.place != place)
        }) {
            if let Some(shadow) = self.shadows.get(index) {
                space.destroy_domain(shadow.host)?;
                self.shadows.swap_remove(index);
            }
        }
        Ok(())
    }
}
