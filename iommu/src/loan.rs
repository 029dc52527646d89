//! Lending a device to the hypervisor.
//!
//! A device without migration support of its own has its state read out by its
//! own DMA, into a page of the hypervisor. For that time it is taken away from the
//! guest: it reaches that page and nothing else, and afterwards what it reached
//! before.

use crate::IovaRange;
use crate::layer::Iommu;
use crate::space::{Access, Attachment, DmaSpace, SpaceError};
use crate::tables::{EntryFormat, Extent, Pages};
use crate::unit::{DomainId, HostUnit, SourceId};
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
    /// Takes `device` away from the guest and lets it read and write pages of the
    /// hypervisor: at every page of each range it finds the page that is given with
    /// it. They are no guest memory, so they are neither pinned nor reported.
    ///
    /// # Errors
    /// Ranges overlap, out of domains or table memory, or the hardware failed; the
    /// device then stays where it was.
    pub fn borrow_device(
        &mut self,
        device: SourceId,
        pages: impl IntoIterator<Item = (IovaRange, Hpa)>,
    ) -> Result<Loan, SpaceError> {
        let domain = self.create_domain()?;
        let lent = pages
            .into_iter()
            .try_for_each(|(range, page)| self.lend_pages(domain, range.into(), page));
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

    fn lend_pages(&mut self, domain: DomainId, range: Pages, page: Hpa) -> Result<(), SpaceError> {
        let root = self.domains.root(domain).ok_or(SpaceError::NoDomain)?;
        if range.last > self.tables.last_page() {
            return Err(SpaceError::OutOfRange);
        }
        for pages in range.parts(1) {
            let extent = Extent { pages, hpa: page };
            let missing = self.tables.missing_tables(root, extent);
            if missing.map_err(|_| SpaceError::OutOfRange)? > self.pool.available() {
                return Err(SpaceError::OutOfMemory);
            }
            self.tables
                .enter(&mut self.pool, root, extent, pages, Access::ReadWrite);
        }
        Ok(())
    }
}
