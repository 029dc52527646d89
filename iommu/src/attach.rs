//! Sending a device's DMA elsewhere, and the identity domain.

use crate::device_tlb::{AtsCapability, DeviceTlb, NoDeviceTlb, Trust};
use crate::domain::IDENTITY;
use crate::layer::{Iommu, extents};
use crate::pins::LastWritable;
use crate::space::{Access, Attachment, SpaceError};
use crate::tables::{Detached, EntryFormat, Leaves, Leaving, Pages, Place};
use crate::unit::{HostUnit, SourceId};
use hv_core::Hpa;
use hv_core::memory::PhysMemory;

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// Where the DMA of `device` goes at present.
    pub fn attachment(&self, device: SourceId) -> Attachment {
        self.domains.attachment(device)
    }

    /// Lets `device`, which reaches nothing at present, have a TLB of its own: see
    /// [`crate::device_tlb`] for who may. `ats` is its capability, if it has one. Only
    /// after this may ATS be turned on in the device.
    ///
    /// # Errors
    /// It may not, and nothing changes.
    pub fn allow_device_tlb(
        &mut self,
        device: SourceId,
        ats: Option<AtsCapability>,
        trust: Trust,
    ) -> Result<(), NoDeviceTlb> {
        let tlb = DeviceTlb::decide(ats, trust)?;
        if self.attachment(device) != Attachment::Blocked {
            return Err(NoDeviceTlb::InUse);
        }
        self.unit.allow_device_tlb(device, tlb)
    }

    /// See [`crate::space::DmaSpace::attach`].
    pub(crate) fn attach_device(
        &mut self,
        device: SourceId,
        to: Attachment,
    ) -> Result<(), SpaceError> {
        self.check_unit()?;
        let target = match to {
            Attachment::Identity => Some((IDENTITY, self.identity_root()?)),
            Attachment::Domain(domain) => {
                let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
                Some((domain, root))
            }
            Attachment::Blocked => None,
        };
        let from = self.domains.attachment(device);
        // The note first: with it there is room for the one that counts below.
        self.domains.set_attachment(device, from)?;

        let moved = match target {
            Some((domain, root)) => self.unit.attach(device, domain, root),
            None => self.unit.block(device),
        };
        match moved {
            Ok(()) => {
                self.domains.set_attachment(device, to)?;
                if from == Attachment::Identity && !self.domains.identity_is_used() {
                    // Drained by the unit, and nobody will ask for these pages
                    // later: the identity domain's are not pinned one by one.
                    self.mark_identity_unmapped();
                    self.identity_was_used = LastWritable::In(self.pins.epoch());
                }
                Ok(())
            }
            Err(error) => {
                if error.is_lasting() {
                    self.unit_is_lost = true;
                    // The device may be at either. The one that reaches more counts.
                    if to == Attachment::Identity {
                        self.domains.set_attachment(device, to)?;
                    }
                }
                Err(SpaceError::Unit(error))
            }
        }
    }

    /// The root of the identity domain's tables: every page of the guest's memory,
    /// and nothing else, at the IOVA that equals its guest address. Made when a
    /// device first needs it, and kept.
    fn identity_root(&mut self) -> Result<Hpa, SpaceError> {
        if let Some(root) = self.identity_root {
            return Ok(root);
        }
        let root = self
            .pool
            .take(self.tables.mem)
            .ok_or(SpaceError::OutOfMemory)?;
        let filled = self.fill_identity(root);
        if filled.is_err() {
            // No device has seen these tables: no drain is due.
            let pages = self.tables.all_pages();
            let everything = Leaves {
                place: Place::Tables { root, pages },
                keep: None,
            };
            everything.detach(&self.tables);
            let pool = Some(&mut self.pool);
            everything.settle(&self.tables, pool, &mut |_: Detached| {});
            self.pool.give_back(self.tables.mem, root);
        }
        filled?;
        self.identity_root = Some(root);
        Ok(root)
    }

    fn fill_identity(&mut self, root: Hpa) -> Result<(), SpaceError> {
        for slot in self.guest.slots() {
            let pages = Pages {
                first: slot.gfn.number(),
                last: slot.gfn.number() + slot.frames - 1,
            };
            if pages.last > self.tables.last_page() {
                return Err(SpaceError::OutOfRange);
            }
            self.check_room(root, pages, slot.gfn)?;
            for extent in extents(self.guest, pages, slot.gfn) {
                self.tables
                    .enter(&mut self.pool, root, extent, pages, Access::ReadWrite);
            }
        }
        Ok(())
    }
}
