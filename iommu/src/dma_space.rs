//! The layer as the host side of an emulated IOMMU.

use crate::layer::{Iommu, MapError};
use crate::space::{
    Attachment, DmaSpace, Front, MAX_REPLACE, Mapping, Piece, Replaced, SpaceError,
};
use crate::tables::{EntryFormat, Leaf, Pages, Place};
use crate::unit::{DomainId, HostUnit, Scope, SourceId};
use crate::unmap::UnmapError;
use crate::{Iova, IovaRange};
use hv_core::memory::PhysMemory;
use hv_core::{Hpa, PAGE_SHIFT};

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> DmaSpace for Iommu<'_, M, U, F> {
    fn address_width(&self) -> u8 {
        self.tables.address_width()
    }

    fn create_domain(&mut self) -> Result<DomainId, SpaceError> {
        self.check_unit()?;
        let domain = self.domains.vacant().ok_or(SpaceError::OutOfMemory)?;
        let root = self
            .pool
            .take(self.tables.mem)
            .ok_or(SpaceError::OutOfMemory)?;
        self.domains.set_root(domain, Some(root));
        Ok(domain)
    }

    fn destroy_domain(&mut self, domain: DomainId) -> Result<(), SpaceError> {
        self.check_unit()?;
        let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
        if self.domains.is_used(domain) {
            return Err(SpaceError::NoDomain);
        }
        let pages = self.tables.all_pages();
        let everything = Place::Tables { root, pages };
        self.remove_any(domain, everything, None, None)?;
        // Not even an empty root may be cached under a number that is used anew.
        self.drain(domain, Scope::Domain)?;
        self.domains.set_root(domain, None);
        self.pool.give_back(self.tables.mem, root);
        Ok(())
    }

    fn replace(
        &mut self,
        domain: DomainId,
        start: Iova,
        wanted: &[Option<Mapping>],
    ) -> Result<Replaced, SpaceError> {
        self.check_unit()?;
        let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
        let Some(window) = self.window(start, wanted)? else {
            return Ok(Replaced::default());
        };
        self.check_single_pages(root, window)?;

        let guest = self.guest;
        let is_as_wanted = |page: u64, leaf: Leaf| {
            wanted_at(wanted, window, page).is_some_and(|mapping| {
                mapping.access == leaf.access
                    && guest
                        .translate(mapping.gfn.gpa())
                        .is_ok_and(|hpa| hpa == leaf.hpa)
            })
        };
        let part = self.leaf_part(root, window);
        let place = self.place(part, root, window);
        let unmapped = self.remove_any(domain, place, Some(&is_as_wanted), None)?;

        let mut replaced = Replaced {
            unmapped: unmapped.mappings,
            ..Replaced::default()
        };
        for page in window.parts(1) {
            let Some(Mapping { gfn, access }) = wanted_at(wanted, window, page.first) else {
                continue;
            };
            match self.enter(root, page, gfn, access) {
                Ok(()) => replaced.mapped += 1,
                // What is still there is as wanted.
                Err(MapError::Overlap) => {}
                Err(_) => replaced.refused += 1,
            }
        }
        if replaced.mapped > 0 && self.unit.caches_absent() {
            self.drain(domain, Scope::Pages(window.range()))?;
        }
        Ok(replaced)
    }

    fn unmap_range(&mut self, domain: DomainId, range: IovaRange) -> Result<u64, SpaceError> {
        self.check_unit()?;
        let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
        let Some(pages) = self.translated(range) else {
            return Ok(0);
        };
        let unmapped = match self.take_out(domain, root, pages, None) {
            Ok(unmapped) => unmapped,
            Err(UnmapError::Unit(error)) => return Err(error.into()),
            Err(_) => return Err(SpaceError::OutOfRange),
        };
        Ok(unmapped.mappings)
    }

    fn map_piece(&mut self, domain: DomainId, piece: &Piece) -> Result<(), MapError> {
        self.enter_piece(domain, piece)
    }

    fn unmap_front(
        &mut self,
        domain: DomainId,
        range: IovaRange,
        tables: u32,
    ) -> Result<Front, SpaceError> {
        self.check_unit()?;
        let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
        let Some(pages) = self.translated(range) else {
            return Ok(Front::default());
        };
        let Some((front, tables)) = self.tables.front(root, pages, tables) else {
            return Ok(Front::default());
        };
        let part = self.leaf_part(root, front);
        let place = self.place(part, root, front);
        self.remove_any(domain, place, None, None)?;
        let rest = Pages {
            first: front.last + 1,
            last: pages.last,
        };
        Ok(Front {
            tables,
            rest: (front.last < pages.last).then(|| rest.range()),
        })
    }

    fn bisects(&self, domain: DomainId, range: IovaRange) -> bool {
        let root = self.domains.root(domain);
        root.zip(self.translated(range))
            .is_some_and(|(root, pages)| self.tables.bisects(root, pages))
    }

    fn next_piece(&self, domain: DomainId, from: Iova) -> Option<Piece> {
        let root = self.domains.root(domain)?;
        let pages = Pages {
            first: from.raw() >> PAGE_SHIFT,
            last: self.tables.last_page(),
        };
        if pages.first > pages.last {
            return None;
        }
        let (leaf, span) = self.tables.next_leaf(root, pages)?;
        Some(Piece {
            range: span.range(),
            gfn: self.guest.gfn_of(leaf.hpa)?,
            access: leaf.access,
            first: leaf.first,
            last: leaf.last,
        })
    }

    fn attach(&mut self, device: SourceId, to: Attachment) -> Result<(), SpaceError> {
        self.attach_device(device, to)
    }
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// The pages of `range` that a domain can translate.
    fn translated(&self, range: IovaRange) -> Option<Pages> {
        let (pages, last) = (Pages::from(range), self.tables.last_page());
        let last = pages.last.min(last);
        (pages.first <= last).then_some(Pages { last, ..pages })
    }

    /// The pages that `wanted` speaks of, `None` if it is empty.
    fn window(&self, start: Iova, wanted: &[Option<Mapping>]) -> Result<Option<Pages>, SpaceError> {
        if wanted.is_empty() {
            return Ok(None);
        }
        if wanted.len() > MAX_REPLACE {
            return Err(SpaceError::OutOfRange);
        }
        let range =
            IovaRange::new(start, wanted.len() as u64).map_err(|_| SpaceError::OutOfRange)?;
        let window = Pages::from(range);
        if window.last > self.tables.last_page() {
            return Err(SpaceError::OutOfRange);
        }
        Ok(Some(window))
    }

    /// A window is replaced page by page, so it must have been filled page by
    /// page: a larger mapping from [`Iommu::map`] would be bisected.
    fn check_single_pages(&self, root: Hpa, window: Pages) -> Result<(), SpaceError> {
        let single = window.parts(1).all(|page| {
            self.tables
                .lookup(root, page.first)
                .is_none_or(|(leaf, span)| leaf.first && leaf.last && span == page)
        });
        if !single {
            return Err(SpaceError::OutOfRange);
        }
        Ok(())
    }
}

/// What is wanted at `page` of `window`.
fn wanted_at(wanted: &[Option<Mapping>], window: Pages, page: u64) -> Option<Mapping> {
    let index = usize::try_from(page.checked_sub(window.first)?).ok()?;
    *wanted.get(index)?
}
