//! Holding guest pages for others than mappings.

use crate::layer::Iommu;
use crate::pins::{CannotPin, Epoch, Holder, Holders, LastWritable};
use crate::tables::EntryFormat;
use crate::unit::HostUnit;
use hv_core::Gfn;
use hv_core::memory::PhysMemory;

/// Who, other than a mapping, may hold a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeldBy {
    /// A device that the hypervisor emulates.
    EmulatedDevice,
    /// A copy that is under way.
    Copy,
}

impl From<HeldBy> for Holder {
    fn from(by: HeldBy) -> Self {
        match by {
            HeldBy::EmulatedDevice => Self::EmulatedDevice,
            HeldBy::Copy => Self::Copy,
        }
    }
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// Keeps `gfn` where it is until [`Iommu::release`].
    ///
    /// # Errors
    /// The page is no memory of the guest, or is held too often in this way: see
    /// [`Holder`]. Nothing changes.
    pub fn hold(&mut self, gfn: Gfn, by: HeldBy) -> Result<(), CannotPin> {
        self.guest
            .translate(gfn.gpa())
            .map_err(|_| CannotPin(gfn))?;
        self.pins.pin(gfn, 1, by)
    }

    /// Ends one [`Iommu::hold`].
    pub fn release(&mut self, gfn: Gfn, by: HeldBy) {
        self.pins.unpin(gfn, 1, by);
    }

    /// Who holds `gfn`. A device under the identity domain is not counted page by
    /// page; [`Iommu::is_pinned`] knows of it.
    pub fn holders(&self, gfn: Gfn) -> Holders {
        self.pins.holders(gfn)
    }

    /// When some device could last write `gfn`, attached or not.
    pub fn last_writable(&self, gfn: Gfn) -> LastWritable {
        let mapped = self.pins.last_writable(gfn);
        if self.guest.translate(gfn.gpa()).is_err() {
            return mapped;
        }
        let identity = if self.domains.identity_is_used() {
            LastWritable::Now
        } else {
            self.identity_was_used
        };
        mapped.max(identity)
    }

    /// The present epoch. One begins when tracking starts, and with each
    /// [`Iommu::harvest`].
    pub fn epoch(&self) -> Epoch {
        self.pins.epoch()
    }
}
