//! A container: one set of mappings, and the groups of devices that use it.

use super::abi::{self, extension};
use super::caller::{CallerMemory, EmulatedDevices};
use super::mappings::{MappingSlot, Mappings};
use super::pin::PinSlot;
use super::sorted::List;
use super::{VfioError, seed};
use crate::domain::MAX_DEVICES;
use crate::layer::Iommu;
use crate::space::{Attachment, DmaSpace};
use crate::tables::{EntryFormat, Pages, VtdSecondStage};
use crate::unit::{DomainId, HostUnit, SourceId};
use heapless::Vec;
use hv_core::PAGE_SHIFT;
use hv_core::memory::PhysMemory;

/// Every page an address of 64 bits can name.
pub(super) const ALL_PAGES: Pages = Pages {
    first: 0,
    last: u64::MAX >> PAGE_SHIFT,
};

/// Which version of the interface a container speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// `VFIO_TYPE1_IOMMU`. Its unmap takes whole mappings where the request has
    /// their beginning (C18); it neither tracks nor pins.
    V1,
    /// `VFIO_TYPE1v2_IOMMU`.
    V2,
}

/// A group of devices. In this layer each device is its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// A device behind the remapping unit.
    Device(SourceId),
    /// A device that the hypervisor emulates, by a number of the caller's. It
    /// reaches memory by [`super::DeviceAccess`] only.
    Emulated(u32),
}

#[derive(Debug)]
pub(super) struct AttachedGroup {
    pub(super) group: Group,
    /// Whether the group is known to write pages it has pinned only. Otherwise
    /// every page it may write counts as written.
    pub(super) writes_pinned_only: bool,
}

/// The memory a container keeps its state in.
pub struct Resources<'c> {
    /// One for each mapping there may be at a time: `dma_avail`.
    pub mappings: &'c mut [MappingSlot],
    /// One for each page that emulated devices may have pinned at a time.
    pub pins: &'c mut [PinSlot],
    /// While dirty pages are tracked, a word for each 64 pages begun of each
    /// mapping that devices may write.
    pub bitmaps: &'c mut [u64],
}

/// The state of an open container with a type 1 IOMMU.
///
/// It has a domain of its own in the native layer, which it does all of its work
/// through: every mapping here is one there.
pub struct Container<'c, 'm, M, U, F = VtdSecondStage> {
    pub(super) iommu: &'c mut Iommu<'m, M, U, F>,
    pub(super) domain: DomainId,
    pub(super) version: Version,
    pub(super) mappings: Mappings<'c>,
    pub(super) pins: List<'c, PinSlot>,
    pub(super) groups: Vec<AttachedGroup, MAX_DEVICES>,
    /// How many emulated devices want to be told of unmaps.
    pub(super) registered_devices: usize,
}

impl<'c, 'm, M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'c, 'm, M, U, F> {
    /// A container without mappings and groups.
    ///
    /// # Errors
    /// The native layer has no domain or no table left, or its unit is lost.
    pub fn open(
        iommu: &'c mut Iommu<'m, M, U, F>,
        version: Version,
        resources: Resources<'c>,
    ) -> Result<Self, VfioError> {
        let domain = iommu.create_domain()?;
        Ok(Self {
            iommu,
            domain,
            version,
            mappings: Mappings::new(resources.mappings, resources.bitmaps),
            pins: List::new(resources.pins),
            groups: Vec::new(),
            registered_devices: 0,
        })
    }

    /// Detaches every group, which unmaps and unpins everything, and gives the
    /// domain back.
    pub fn close(mut self) -> Result<(), VfioError> {
        while let Some(attached) = self.groups.first() {
            self.detach_group(attached.group)?;
        }
        self.unmap_everything()?;
        Ok(self.iommu.destroy_domain(self.domain)?)
    }

    /// The layer below, for what is not this container's.
    pub fn iommu(&mut self) -> &mut Iommu<'m, M, U, F> {
        self.iommu
    }

    /// Does one command, as `ioctl` on a container's file does. `arg` is the
    /// address of the structure in `memory`, or the number asked about. Returns
    /// what `ioctl` returns.
    pub fn ioctl(
        &mut self,
        command: u32,
        arg: u64,
        memory: &mut impl CallerMemory,
        devices: &mut impl EmulatedDevices,
    ) -> Result<u32, VfioError> {
        match command {
            abi::CHECK_EXTENSION => return Ok(self.check_extension(arg)),
            abi::GET_INFO => self.get_info(arg, memory)?,
            abi::MAP_DMA => self.map_dma(arg, memory)?,
            abi::UNMAP_DMA => self.unmap_dma(arg, memory, devices)?,
            abi::DIRTY_PAGES => self.dirty_pages(arg, memory)?,
            seed::UNMAP_DMA_GET_BITMAP => self.unmap_dma_get_bitmap(arg, memory, devices)?,
            _ => return Err(VfioError::UnknownCommand),
        }
        Ok(0)
    }

    fn check_extension(&self, extension: u64) -> u32 {
        match extension {
            extension::TYPE1 | extension::TYPE1_V2 | extension::UNMAP_ALL => 1,
            extension::UPDATE_VADDR => u32::from(!self.has_emulated_group()),
            _ => 0,
        }
    }

    /// Lets `group` use the container: a device's DMA goes through its mappings
    /// from now on.
    ///
    /// # Errors
    /// [`VfioError::VaddrInvalid`] while the caller's address of a mapping is;
    /// [`VfioError::BadGroup`] if it is attached; [`VfioError::OutOfMemory`] or
    /// [`VfioError::Unit`] from the layer below.
    pub fn attach_group(&mut self, group: Group) -> Result<(), VfioError> {
        if self.mappings.has_invalid_vaddr() {
            return Err(VfioError::VaddrInvalid);
        }
        if self.group_mut(group).is_ok() {
            return Err(VfioError::BadGroup);
        }
        if self.groups.is_full() {
            return Err(VfioError::OutOfMemory);
        }
        if let Group::Device(device) = group {
            let to = Attachment::Domain(self.domain);
            self.iommu.attach(device, to)?;
        }
        let attached = AttachedGroup {
            group,
            writes_pinned_only: matches!(group, Group::Emulated(_)),
        };
        self.groups
            .push(attached)
            .map_err(|_| VfioError::OutOfMemory)
    }

    /// Takes the container away from `group`; a device is blocked. With the last
    /// group all mappings and pins go. What the group may have written stays due:
    /// where every page counted as written, each is from now on marked as such.
    pub fn detach_group(&mut self, group: Group) -> Result<(), VfioError> {
        let writes_pinned_only = self.group_mut(group)?.writes_pinned_only;
        if let Group::Device(device) = group {
            self.iommu.attach(device, Attachment::Blocked)?;
        }
        self.groups.retain(|attached| attached.group != group);
        if !writes_pinned_only {
            self.mappings.mark_all();
        }
        if self.groups.is_empty() {
            self.unmap_everything()?;
        }
        Ok(())
    }

    /// An emulated device that pins pages says that it takes part in
    /// [`EmulatedDevices::dma_unmap`].
    pub fn register_device(&mut self) {
        self.registered_devices += 1;
    }

    /// The reverse of [`Container::register_device`].
    pub fn unregister_device(&mut self) {
        self.registered_devices = self.registered_devices.saturating_sub(1);
    }

    pub(super) fn group_mut(&mut self, group: Group) -> Result<&mut AttachedGroup, VfioError> {
        self.groups
            .iter_mut()
            .find(|attached| attached.group == group)
            .ok_or(VfioError::BadGroup)
    }

    pub(super) fn has_emulated_group(&self) -> bool {
        self.groups
            .iter()
            .any(|attached| matches!(attached.group, Group::Emulated(_)))
    }

    /// Whether some group may write any page its mappings permit.
    pub(super) fn has_unpinned_writer(&self) -> bool {
        self.groups
            .iter()
            .any(|attached| !attached.writes_pinned_only)
    }

    fn unmap_everything(&mut self) -> Result<(), VfioError> {
        while let Some(pin) = self.pins.last().copied() {
            self.unpin_page(pin.page);
        }
        let run = self.mappings.touched(ALL_PAGES);
        self.remove(ALL_PAGES.first, run, None).map(|_| ())
    }
}
