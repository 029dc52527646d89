//! The [`Iommu`]: one guest's device mappings on one host remapping unit.

use crate::IovaRange;
use crate::dirty_mode::DirtyDecision;
use crate::domain::Domains;
use crate::pins::{LastWritable, PinTracker};
use crate::space::{Access, Piece, SpaceError};
use crate::tables::{
    EntryFormat, Extent, LastTable, LeafPart, Pages, Place, Tables, VtdSecondStage,
};
use crate::unit::{DomainId, Fault, HostUnit, Scope, UnitError};
use hv_core::memory::{FramePool, GuestMemory, PhysMemory};
use hv_core::sabotage::{Sabotage, is_active};
use hv_core::{Gfn, Gpa, Hpa, PAGE_SIZE};

/// What passthrough devices can reach of one guest, and which of its pages they
/// may have written.
///
/// It owns the remapping unit and the domains' tables; nobody else changes them.
/// Memory is given at construction: frames for tables, and four bytes a guest
/// page for the pins.
///
/// # When the unit fails
/// A unit that does not answer an invalidation may go on using translations that
/// are gone from the tables. From then on the unit counts as lost: nothing that
/// was mapped is unpinned or freed, and every call but the reporting ones fails
/// with [`UnitError::NoAnswer`].
pub struct Iommu<'m, M, U, F = VtdSecondStage> {
    pub(crate) tables: Tables<'m, M, F>,
    /// How [`Iommu::leaf_part`] saves walks.
    last_table: LastTable<'m>,
    pub(crate) unit: U,
    pub(crate) unit_is_lost: bool,
    pub(crate) guest: &'m GuestMemory<'m, M>,
    pub(crate) pool: FramePool,
    pub(crate) pins: PinTracker<'m>,
    pub(crate) domains: Domains,
    /// The tables of the identity domain, once a device needed it.
    pub(crate) identity_root: Option<Hpa>,
    /// When a device was last attached to all of the guest's memory, if none is now.
    pub(crate) identity_was_used: LastWritable,
    pub(crate) tracking: bool,
    pub(crate) dirty: DirtyDecision,
}

/// The memory given to [`Iommu::new`] is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pin tracker needs 4 bytes for each of {needed} guest frames")]
pub struct TooFewPins {
    /// The number of frames up to the guest's last.
    pub needed: u64,
}

/// What an [`Iommu`] is made of.
pub struct Parts<'m, M, U, F = VtdSecondStage> {
    /// The host's memory, where `pool` lies.
    pub mem: &'m M,
    /// The entry format that `unit` walks.
    pub format: F,
    /// The remapping unit, which refuses all DMA as yet.
    pub unit: U,
    /// The guest, with all its slots.
    pub guest: &'m GuestMemory<'m, M>,
    /// Frames for tables.
    pub pool: FramePool,
    /// One word for each guest frame number up to the guest's last.
    pub pins: &'m mut [u32],
}

/// Why [`Iommu::map`] refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no such domain.
    #[error("no such domain")]
    NoDomain,
    /// The range lies beyond the domain's address width.
    #[error("the range is beyond what the unit translates")]
    OutOfRange,
    /// The guest address does not start a page.
    #[error("the guest address is not page aligned")]
    Unaligned,
    /// Some of the pages are not the guest's memory.
    #[error("the guest has no memory there")]
    NotGuestMemory,
    /// Some of the range is mapped already.
    #[error("the range overlaps a mapping")]
    Overlap,
    /// A page is mapped too often already, with or without the right to write: see
    /// [`crate::pins::Holder`].
    #[error("a page is mapped too many times")]
    TooManyMappings,
    /// There may be too few frames for tables.
    #[error("out of memory for tables")]
    OutOfMemory,
    /// The hardware failed.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

impl<'m, M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'m, M, U, F> {
    /// A layer without domains; every device is blocked.
    pub fn new(parts: Parts<'m, M, U, F>) -> Result<Self, TooFewPins> {
        let needed = parts
            .guest
            .slots()
            .iter()
            .map(|slot| slot.gfn.number() + slot.frames)
            .max()
            .unwrap_or(0);
        let pins = PinTracker::new(parts.pins);
        if pins.frames() < needed {
            return Err(TooFewPins { needed });
        }
        let dirty = DirtyDecision::new(parts.format, parts.unit.dirty_hardware());
        Ok(Self {
            tables: Tables {
                mem: parts.mem,
                format: parts.format,
                levels: parts.unit.levels(),
                large_leaves: parts.unit.has_large_leaves(),
                evidence: dirty.evidence(parts.format),
                altered_counts: dirty.altered_counts(),
                preset: dirty.preset(parts.format),
            },
            last_table: LastTable::default(),
            unit: parts.unit,
            unit_is_lost: false,
            guest: parts.guest,
            pool: parts.pool,
            pins,
            domains: Domains::new(),
            identity_root: None,
            identity_was_used: LastWritable::Never,
            tracking: false,
            dirty,
        })
    }

    /// Maps `range` to the guest's memory from `gpa` on: one mapping, which is
    /// only ever unmapped as a whole. On an error nothing changes, unless it is
    /// [`MapError::Unit`], after which the unit is lost.
    pub fn map(
        &mut self,
        domain: DomainId,
        range: IovaRange,
        gpa: Gpa,
        access: Access,
    ) -> Result<(), MapError> {
        self.check_unit()?;
        let root = self.domains.root(domain).ok_or(MapError::NoDomain)?;
        let pages = Pages::from(range);
        if pages.last > self.tables.last_page() {
            return Err(MapError::OutOfRange);
        }
        if !gpa.is_page_aligned() {
            return Err(MapError::Unaligned);
        }
        self.enter(root, pages, Gfn::containing(gpa), access)?;
        if self.unit.caches_absent() {
            self.drain(domain, Scope::Pages(range))?;
        }
        Ok(())
    }

    /// Enters one mapping, of guest memory from `gfn` on. On an error nothing
    /// changes.
    pub(crate) fn enter(
        &mut self,
        root: Hpa,
        pages: Pages,
        gfn: Gfn,
        access: Access,
    ) -> Result<(), MapError> {
        if let Some(part) = self.leaf_part(root, pages)
            && let Some(extent) = extents(self.guest, pages, gfn).next()
            && extent.pages == pages
        {
            let free = self.tables.check_free_part(&part);
            free.map_err(|_| MapError::Overlap)?;
            self.pin(gfn, pages, access)?;
            self.tables.enter_part(&part, extent, pages, access);
            return Ok(());
        }
        self.check_room(root, pages, gfn)?;
        self.pin(gfn, pages, access)?;
        for extent in extents(self.guest, pages, gfn) {
            self.tables
                .enter(&mut self.pool, root, extent, pages, access);
        }
        Ok(())
    }

    /// Pins what is to be mapped, before a device can reach it. The last step of a map
    /// that can fail.
    #[inline]
    fn pin(&mut self, gfn: Gfn, pages: Pages, access: Access) -> Result<(), MapError> {
        let pinned = self.pins.pin(gfn, pages.count(), access);
        pinned.map_err(|_| MapError::TooManyMappings)
    }

    /// See [`crate::space::DmaSpace::map_piece`].
    pub(crate) fn enter_piece(&mut self, domain: DomainId, piece: &Piece) -> Result<(), MapError> {
        self.check_unit()?;
        let root = self.domains.root(domain).ok_or(MapError::NoDomain)?;
        let pages = Pages::from(piece.range);
        if pages.last > self.tables.last_page() {
            return Err(MapError::OutOfRange);
        }
        self.check_room(root, pages, piece.gfn)?;
        self.pin(piece.gfn, pages, piece.access)?;
        // All the tables want to know of the mapping is whether it begins and ends here.
        let mapping = Pages {
            first: pages.first.saturating_sub(u64::from(!piece.first)),
            last: pages.last + u64::from(!piece.last),
        };
        for extent in extents(self.guest, pages, piece.gfn) {
            self.tables
                .enter(&mut self.pool, root, extent, mapping, piece.access);
        }
        if self.unit.caches_absent() {
            self.drain(domain, Scope::Pages(piece.range))?;
        }
        Ok(())
    }

    /// Whether `pages` are free and can be entered with guest memory from `gfn`
    /// on. Where they run over several of the guest's slots, up to three more
    /// frames are asked for at each crossing than will be used.
    pub(crate) fn check_room(&self, root: Hpa, pages: Pages, gfn: Gfn) -> Result<(), MapError> {
        let mut backed = 0;
        let mut missing = 0;
        for extent in extents(self.guest, pages, gfn) {
            backed += extent.pages.count();
            missing += self
                .tables
                .missing_tables(root, extent)
                .map_err(|_| MapError::Overlap)?;
        }
        if backed != pages.count() {
            return Err(MapError::NotGuestMemory);
        }
        if missing > self.pool.available() {
            return Err(MapError::OutOfMemory);
        }
        Ok(())
    }

    /// The part of a leaf table that `pages` are; `None` if they are all of one, in
    /// several, or in none that is there.
    #[inline]
    pub(crate) fn leaf_part(&mut self, root: Hpa, pages: Pages) -> Option<LeafPart<'m>> {
        self.last_table.part(&self.tables, &self.pool, root, pages)
    }

    /// Where `pages` are, to be unmapped. `part` is their part of a leaf table.
    #[inline]
    pub(crate) fn place(&self, part: Option<LeafPart<'m>>, root: Hpa, pages: Pages) -> Place<'m> {
        match part {
            Some(part) if self.tables.is_shared(&part) => Place::Leaves(part),
            _ => Place::Tables { root, pages },
        }
    }

    /// Fails when the unit is lost.
    pub(crate) fn check_unit(&self) -> Result<(), UnitError> {
        if self.unit_is_lost {
            return Err(UnitError::NoAnswer);
        }
        Ok(())
    }

    /// Has the unit drop what it caches and waits until no DMA uses it any more.
    /// On an error the unit is lost.
    #[inline]
    pub(crate) fn drain(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        if is_active(Sabotage::Iotlb) {
            return Ok(());
        }
        self.unit.invalidate(domain, scope).inspect_err(|error| {
            self.unit_is_lost = true;
            log::error!("the remapping unit is lost, its domain {domain:?}: {error}");
        })
    }

    /// Whether the unit tells of the DMA it refuses.
    pub fn reports_faults(&self) -> bool {
        self.unit.reports_faults()
    }

    /// The oldest of what the unit refused and that was not yet taken.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.unit.take_fault()
    }

    /// Whether the unit failed, so that nothing can be mapped or unmapped.
    pub fn unit_is_lost(&self) -> bool {
        self.unit_is_lost
    }

    /// How many frames for tables are left.
    pub fn frames_available(&self) -> u64 {
        self.pool.available()
    }

    /// Whether anybody holds `gfn`, or a device may reach it, so that the page must
    /// stay where it is.
    pub fn is_pinned(&self, gfn: Gfn) -> bool {
        self.domains.identity_is_used() && self.guest.translate(gfn.gpa()).is_ok()
            || self.pins.is_pinned(gfn)
    }
}

impl From<MapError> for SpaceError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::NoDomain => Self::NoDomain,
            MapError::OutOfRange | MapError::Unaligned => Self::OutOfRange,
            MapError::NotGuestMemory | MapError::Overlap => Self::OutOfRange,
            MapError::TooManyMappings | MapError::OutOfMemory => Self::OutOfMemory,
            MapError::Unit(error) => Self::Unit(error),
        }
    }
}

/// `pages`, with the guest's memory from `gfn` on behind them, cut where it is
/// not contiguous in host memory. Ends early where the guest has no memory.
pub(crate) fn extents<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    pages: Pages,
    gfn: Gfn,
) -> impl Iterator<Item = Extent> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = pages.count() - done;
        let gfn = gfn.number().checked_add(done)?;
        let (slot, index) = guest.slots().iter().find_map(|slot| {
            let index = gfn.checked_sub(slot.gfn.number())?;
            (index < slot.frames).then_some((slot, index))
        })?;
        let count = left.min(slot.frames - index);
        if count == 0 {
            return None;
        }
        let first = pages.first + done;
        done += count;
        Some(Extent {
            pages: Pages {
                first,
                last: first + count - 1,
            },
            hpa: Hpa::new(slot.hpa.raw() + index * PAGE_SIZE),
        })
    })
}
