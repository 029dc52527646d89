//! Lending a device to the hypervisor.
//!
//! A device without migration support of its own has its state read out by its
//! own DMA, into a page of the hypervisor. For that time it is taken away from the
//! guest: it reaches that page and nothing else, and afterwards what it reached
//! before.

use crate::layer::Iommu;
use crate::space::{Access, Attachment, DmaSpace, SpaceError};
use crate::tables::{EntryFormat, Extent, Pages};
use crate::unit::{DomainId, HostUnit, SourceId};
use crate::{Iova, IovaRange};
use hv_core::Hpa;
use hv_core::memory::PhysMemory;

/// A device that is lent to the hypervisor; to be given back with
/// [`Iommu::give_back`].
#[derive(Debug)]
#[must_use = "the guest does not get its device back by itself"]
pub struct Loan {
    device: SourceId,
    domain: DomainId,
    former: Attachment,
}

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// Takes `device` away from the guest and lets it read and write the
    /// hypervisor's page `page` at `iova`. The page is no guest memory, so it is
    /// neither pinned nor reported.
    ///
    /// # Errors
    /// Out of domains or table memory, or the hardware failed; the device then
    /// stays where it was.
    pub fn borrow_device(
        &mut self,
        device: SourceId,
        page: Hpa,
        iova: Iova,
    ) -> Result<Loan, SpaceError> {
        let range = IovaRange::new(iova, 1).map_err(|_| SpaceError::OutOfRange)?;
        let domain = self.create_domain()?;
        let lent = self.lend_page(domain, Pages::from(range), page);
        let former = self.attachment(device);
        let moved = lent.and_then(|()| self.attach(device, Attachment::Domain(domain)));
        if let Err(error) = moved {
            self.destroy_domain(domain)?;
            return Err(error);
        }
        Ok(Loan {
            device,
            domain,
            former,
        })
    }

    /// Ends a loan: the device reaches again what it did before, and the page no
    /// more.
    pub fn give_back(&mut self, loan: Loan) -> Result<(), SpaceError> {
        self.attach(loan.device, loan.former)?;
        self.destroy_domain(loan.domain)
    }

    fn lend_page(&mut self, domain: DomainId, pages: Pages, page: Hpa) -> Result<(), SpaceError> {
        let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
        if pages.last > self.tables.last_page() {
            return Err(SpaceError::OutOfRange);
        }
        let extent = Extent { pages, hpa: page };
        // The domain is new, so nothing is in the way.
        let missing = self.tables.missing_tables(root, extent).unwrap_or(u64::MAX);
        if missing > self.pool.available() {
            return Err(SpaceError::OutOfMemory);
        }
        self.tables
            .enter(&mut self.pool, root, extent, pages, Access::ReadWrite);
        Ok(())
    }
}
