//! Reading evidence of writes out of tables that stay in use, where
//! [`crate::dirty_mode`] says that there is any.
//!
//! ```text
//!             the tables             the device                 the report
//!  take       evidence cleared,      translations cached with
//!             kept in our own bit    it serve writes unseen
//!  drain      (the same)             those dropped, their
//!                                    last write has landed
//!  report     our own bit cleared    sets evidence anew         dirty log
//! ```
//!
//! *Drain before report*: a page reported earlier could be read and sent before a
//! write lands that left no evidence behind. A write after the drain leaves new
//! evidence, which the next harvest or the unmap finds. The layer is held
//! exclusively throughout, so no unmap comes between.

use crate::dirty_mode::DirtyDecision;
use crate::domain::IDENTITY;
use crate::layer::Iommu;
use crate::tables::EntryFormat;
use crate::unit::{DomainId, HostUnit, Scope, UnitError};
use heapless::Vec;
use hv_core::Hpa;
use hv_core::dirty::DirtySource;
use hv_core::memory::PhysMemory;

/// How many tables wait for one drain when leaves are merged.
const MERGED_PER_DRAIN: usize = 64;

impl<M: PhysMemory, U: HostUnit, F: EntryFormat> Iommu<'_, M, U, F> {
    /// What counts as evidence of a write on this unit, and why.
    pub fn dirty_decision(&self) -> DirtyDecision {
        self.dirty
    }

    /// A round of pre-copy: begins an epoch, marks every page written since the last
    /// harvest in the guest's dirty log, and says how many leaves' pages that were. Costs one
    /// invalidation and wait for each domain with such a page.
    ///
    /// Where no evidence is kept in the tables it marks nothing: there a page is
    /// reported by its unmap, or at the end by [`Iommu::mark_writable`].
    ///
    /// # Errors
    /// The unit is lost; what was taken so far is marked.
    pub fn harvest(&mut self) -> Result<u64, UnitError> {
        self.check_unit()?;
        self.pins.begin_epoch();
        if !self.dirty.reads_tables() {
            return Ok(0);
        }
        let mut marked = 0;
        let mut next = Some(IDENTITY);
        while let Some((domain, root)) = self.domain_from(&mut next) {
            let Some(touched) = self.tables.take_evidence(root) else {
                continue;
            };
            let drained = self.drain(domain, Scope::Pages(touched.range()));
            // Also when the drain failed: better a page too many than one too few.
            self.tables.for_each_taken(root, &mut |pages, leaf| {
                marked += pages.count();
                self.mark_pages(leaf.hpa, pages.count(), DirtySource::Mapped);
            });
            drained?;
        }
        Ok(marked)
    }

    /// The last harvest: marks every page a device may have written since the one
    /// before. The devices are stopped before, and migration drains the log after.
    ///
    /// # Errors
    /// The unit is lost; every page a device may write is marked then.
    pub fn harvest_stopped(&mut self) -> Result<(), UnitError> {
        if !self.dirty.reads_tables() {
            self.mark_writable();
            return Ok(());
        }
        // Evidence may be on its way until the drain: only then are the bits final.
        let mut next = Some(IDENTITY);
        while let Some((domain, root)) = self.domain_from(&mut next) {
            let drained = self
                .check_unit()
                .and_then(|()| self.drain(domain, Scope::Domain));
            drained.inspect_err(|_| self.mark_writable())?;
            self.tables.for_each_written(root, &mut |pages, leaf| {
                self.mark_pages(leaf.hpa, pages.count(), DirtySource::Mapped);
            });
        }
        Ok(())
    }

    /// Clears old evidence, and sees to it that each page has evidence of its own.
    pub(crate) fn start_evidence(&mut self) -> Result<(), UnitError> {
        self.check_unit()?;
        self.tables.large_leaves = false;
        let mut next = Some(IDENTITY);
        while let Some((domain, root)) = self.domain_from(&mut next) {
            self.tables.split_leaves(&mut self.pool, root);
            self.tables.clear_evidence(root);
            self.drain(domain, Scope::Domain)?;
        }
        Ok(())
    }

    /// Puts large leaves together again.
    pub(crate) fn stop_evidence(&mut self) -> Result<(), UnitError> {
        self.check_unit()?;
        self.tables.large_leaves = self.unit.has_large_leaves();
        if !self.tables.large_leaves {
            return Ok(());
        }
        let mut next = Some(IDENTITY);
        while let Some((domain, root)) = self.domain_from(&mut next) {
            while self.merge_some(domain, root)? {}
        }
        Ok(())
    }

    /// Merges as many tables as one drain pays for. Says whether there may be more.
    fn merge_some(&mut self, domain: DomainId, root: Hpa) -> Result<bool, UnitError> {
        let mut unlinked = Vec::<Hpa, MERGED_PER_DRAIN>::new();
        self.tables.merge_leaves(root, &mut |table| {
            unlinked.push(table).is_ok() && !unlinked.is_full()
        });
        if unlinked.is_empty() {
            return Ok(false);
        }
        self.drain(domain, Scope::Domain)?;
        for table in &unlinked {
            self.pool.give_back(self.tables.mem, *table);
        }
        Ok(unlinked.is_full())
    }

    /// The domain `next` stands for or the first after it, the identity domain
    /// before all others. Moves `next` behind it.
    fn domain_from(&self, next: &mut Option<DomainId>) -> Option<(DomainId, Hpa)> {
        let from = next.take()?;
        let identity = self.identity_root.filter(|_| from == IDENTITY);
        let found = identity
            .map(|root| (IDENTITY, root))
            .or_else(|| self.domains.first_from(from))?;
        *next = found.0.number().checked_add(1).map(DomainId::new);
        Some(found)
    }
}
