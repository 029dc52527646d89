//! A host side that keeps the promises of `DmaSpace` and checks that nobody breaks
//! their preconditions.

use super::FRAMES;
use iommu::layer::MapError;
use iommu::space::{
    Attachment, DmaSpace, Front, MAX_REPLACE, Mapping, Piece, Replaced, SpaceError,
};
use iommu::unit::{DomainId, SourceId, UnitError};
use iommu::{Iova, IovaRange};
use std::collections::BTreeMap;

/// What a domain maps: page number to mapping.
pub type Pages = BTreeMap<u64, Mapping>;

/// The host side.
#[derive(Default)]
pub struct FakeSpace {
    pub domains: BTreeMap<u16, Pages>,
    pub devices: BTreeMap<u16, Attachment>,
    /// Calls that may each take a table's worth of work.
    pub calls: u64,
    pub attaches: u64,
    pub max_pages: usize,
    pub max_domains: usize,
    pub address_width: u8,
    /// There is room for more context entries.
    pub has_entries: bool,
    /// The unit does not answer any more.
    pub is_lost: bool,
    next: u16,
}

impl FakeSpace {
    pub fn new() -> Self {
        Self {
            max_pages: 4096,
            max_domains: 16,
            address_width: 48,
            has_entries: true,
            ..Self::default()
        }
    }

    fn call(&mut self) -> Result<(), SpaceError> {
        self.calls += 1;
        if self.is_lost {
            return Err(SpaceError::Unit(UnitError::NoAnswer));
        }
        Ok(())
    }

    fn pages(&mut self, domain: DomainId) -> &mut Pages {
        self.domains
            .get_mut(&domain.number())
            .expect("the domain exists")
    }
}

impl DmaSpace for FakeSpace {
    fn address_width(&self) -> u8 {
        self.address_width
    }

    fn create_domain(&mut self) -> Result<DomainId, SpaceError> {
        self.call()?;
        if self.domains.len() == self.max_domains {
            return Err(SpaceError::OutOfMemory);
        }
        self.next += 1;
        self.domains.insert(self.next, Pages::new());
        Ok(DomainId::new(self.next))
    }

    fn destroy_domain(&mut self, domain: DomainId) -> Result<(), SpaceError> {
        self.call()?;
        let in_use = self
            .devices
            .values()
            .any(|&to| to == Attachment::Domain(domain));
        assert!(!in_use, "a domain in use is not destroyed");
        self.domains
            .remove(&domain.number())
            .expect("the domain exists");
        Ok(())
    }

    fn replace(
        &mut self,
        domain: DomainId,
        start: Iova,
        wanted: &[Option<Mapping>],
    ) -> Result<Replaced, SpaceError> {
        self.call()?;
        assert!(start.is_page_aligned() && !wanted.is_empty() && wanted.len() <= MAX_REPLACE);
        let max_pages = self.max_pages;
        let pages = self.pages(domain);
        let mut done = Replaced::default();
        for (page, wanted) in (start.raw() >> 12..).zip(wanted) {
            if pages.get(&page) == wanted.as_ref() {
                continue;
            }
            done.unmapped += u64::from(pages.remove(&page).is_some());
            match *wanted {
                Some(_) if pages.len() >= max_pages => done.refused += 1,
                Some(mapping) => {
                    assert!(
                        mapping.gfn.number() < FRAMES,
                        "only guest frames are mapped"
                    );
                    pages.insert(page, mapping);
                    done.mapped += 1;
                }
                None => {}
            }
        }
        Ok(done)
    }

    fn unmap_range(&mut self, domain: DomainId, range: IovaRange) -> Result<u64, SpaceError> {
        self.call()?;
        let (first, last) = (range.start().raw() >> 12, range.last_page().raw() >> 12);
        let pages = self.pages(domain);
        let before = pages.len();
        pages.retain(|page, _| !(first..=last).contains(page));
        Ok((before - pages.len()) as u64)
    }

    fn map_piece(&mut self, _: DomainId, _: &Piece) -> Result<(), MapError> {
        unreachable!("a VT-d unit reads its guest's own tables")
    }

    fn unmap_front(&mut self, _: DomainId, _: IovaRange, _: u32) -> Result<Front, SpaceError> {
        unreachable!("a VT-d unit reads its guest's own tables")
    }

    fn bisects(&self, _: DomainId, _: IovaRange) -> bool {
        false
    }

    fn next_piece(&self, _: DomainId, _: Iova) -> Option<Piece> {
        unreachable!("a VT-d unit reads its guest's own tables")
    }

    fn attach(&mut self, device: SourceId, to: Attachment) -> Result<(), SpaceError> {
        self.call()?;
        self.attaches += 1;
        if !self.has_entries && to != Attachment::Blocked {
            return Err(SpaceError::Unit(UnitError::OutOfMemory));
        }
        if let Attachment::Domain(domain) = to {
            self.pages(domain);
        }
        self.devices.insert(device.raw(), to);
        Ok(())
    }
}
