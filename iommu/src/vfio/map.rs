//! `VFIO_IOMMU_MAP_DMA` (section B of the rules).

use super::abi::{DmaMap, MapFlags};
use super::caller::{CallerMemory, read};
use super::mappings::MappingSlot;
use super::{Container, VfioError};
use crate::addr::RangeError;
use crate::space::Access;
use crate::tables::{EntryFormat, Pages};
use crate::unit::HostUnit;
use crate::{Iova, IovaRange};
use hv_core::PAGE_SIZE;
use hv_core::memory::PhysMemory;

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Container<'_, '_, M, U, F> {
    pub(super) fn map_dma(
        &mut self,
        arg: u64,
        memory: &impl CallerMemory,
    ) -> Result<(), VfioError> {
        let request: DmaMap = read(memory, arg)?;
        if (request.argsz as usize) < size_of::<DmaMap>() {
            return Err(VfioError::TooShort);
        }
        let flags = MapFlags::from_bits(request.flags).ok_or(VfioError::Flags)?;
        let last = request.size.checked_sub(1).ok_or(VfioError::Empty)?;
        for start in [request.iova, request.vaddr] {
            start.checked_add(last).ok_or(VfioError::Wraps)?;
        }
        let access = Access::new(
            flags.contains(MapFlags::READ),
            flags.contains(MapFlags::WRITE),
        );
        if access.is_some() == flags.contains(MapFlags::VADDR) {
            return Err(VfioError::Flags);
        }
        if !request.vaddr.is_multiple_of(PAGE_SIZE) {
            return Err(VfioError::Unaligned);
        }
        let range = IovaRange::from_bytes(Iova::new(request.iova), request.size)?;
        match access {
            None => self.update_vaddr(range, request.vaddr, memory),
            Some(access) => self.map(range, request.vaddr, access, memory),
        }
    }

    /// The caller sees the memory behind a mapping elsewhere now. The memory stays
    /// what it is, which Linux trusts the caller with and is checked here.
    fn update_vaddr(
        &mut self,
        range: IovaRange,
        vaddr: u64,
        memory: &impl CallerMemory,
    ) -> Result<(), VfioError> {
        let pages = Pages::from(range);
        let run = self.mappings.touched(pages);
        let mapping = self.mappings.all()[run.clone()]
            .first()
            .ok_or(VfioError::NoMapping)?;
        let seen_at = memory.guest_address(vaddr, pages.count() * PAGE_SIZE);
        let is_it = mapping.pages == pages && seen_at == Some(mapping.gfn.gpa());
        if mapping.vaddr_is_valid || !is_it {
            return Err(VfioError::BadVaddr);
        }
        self.mappings.set_vaddr_validity(run, true);
        Ok(())
    }

    fn map(
        &mut self,
        range: IovaRange,
        vaddr: u64,
        access: Access,
        memory: &impl CallerMemory,
    ) -> Result<(), VfioError> {
        let pages = Pages::from(range);
        if !self.mappings.touched(pages).is_empty() {
            return Err(VfioError::Overlap);
        }
        if self.mappings.available() == 0 {
            return Err(VfioError::TooManyMappings);
        }
        let is_valid = |valid: &Pages| valid.first <= pages.first && pages.last <= valid.last;
        if !self.valid_ranges().iter().any(is_valid) {
            return Err(VfioError::OutsideValidRanges);
        }
        let gpa = memory
            .guest_address(vaddr, pages.count() * PAGE_SIZE)
            .ok_or(VfioError::Fault)?;
        let mapping = MappingSlot::new(pages, gpa, access);
        self.mappings.check_room(&mapping)?;
        self.iommu.map(self.domain, range, gpa, access)?;
        self.mappings.insert(mapping)
    }
}

impl From<RangeError> for VfioError {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Empty => Self::Empty,
            RangeError::Wraps => Self::Wraps,
            RangeError::Unaligned => Self::Unaligned,
        }
    }
}
