//! What the layer must do, said naively: a list of mappings.

use iommu::pins::{Epoch, LastWritable};
use iommu::space::{Access, Attachment};
use iommu::unit::{DomainId, SourceId};
use std::collections::{BTreeMap, BTreeSet};

/// One mapping of `pages` pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    pub domain: u16,
    pub page: u64,
    pub pages: u64,
    pub gfn: u64,
    pub access: Access,
}

impl Mapped {
    fn last(&self) -> u64 {
        self.page + (self.pages - 1)
    }

    fn touches(&self, domain: DomainId, page: u64, pages: u64) -> bool {
        self.domain == domain.number()
            && pages > 0
            && self.page < page + pages
            && page <= self.last()
    }
}

#[derive(Default)]
pub struct Oracle {
    pub mappings: Vec<Mapped>,
    pub attached: BTreeMap<u16, Attachment>,
    /// The guest pages that were writable when this was last looked at.
    was_writable: BTreeSet<u64>,
    /// When those that are not any more ceased to be.
    ceased: BTreeMap<u64, Epoch>,
    /// The same of the identity domain: whether it was used, and when that ended.
    identity: (bool, Option<Epoch>),
}

impl Oracle {
    /// What is mapped in a range.
    pub fn in_range(&self, domain: DomainId, page: u64, pages: u64) -> Vec<Mapped> {
        let touched = self.mappings.iter().copied();
        touched
            .filter(|mapping| mapping.touches(domain, page, pages))
            .collect()
    }

    /// Whether the range cuts a mapping in two.
    pub fn bisects(&self, domain: DomainId, page: u64, pages: u64) -> bool {
        self.in_range(domain, page, pages)
            .iter()
            .any(|mapping| mapping.page < page || mapping.last() >= page + pages)
    }

    /// The guest page behind a page, and what devices may do there.
    pub fn lookup(&self, domain: DomainId, page: u64) -> Option<(u64, Access)> {
        let mapping = self.in_range(domain, page, 1).into_iter().next()?;
        Some((mapping.gfn + (page - mapping.page), mapping.access))
    }

    pub fn remove(&mut self, domain: DomainId, page: u64, pages: u64) {
        self.mappings
            .retain(|mapping| !mapping.touches(domain, page, pages));
    }

    pub fn attachment(&self, device: SourceId) -> Attachment {
        let known = self.attached.get(&device.raw());
        *known.unwrap_or(&Attachment::Blocked)
    }

    pub fn identity_is_used(&self) -> bool {
        self.attached.values().any(|to| *to == Attachment::Identity)
    }

    /// Looks at what is writable after an operation that was in `now`.
    pub fn note_writable(&mut self, now: Epoch) {
        let writable = self.writable();
        for gone in self.was_writable.difference(&writable) {
            self.ceased.insert(*gone, now);
        }
        self.was_writable = writable;
        let identity = self.identity_is_used();
        if self.identity.0 && !identity {
            self.identity.1 = Some(now);
        }
        self.identity.0 = identity;
    }

    /// When a device could last write a guest page.
    pub fn last_writable(&self, gfn: u64) -> LastWritable {
        if self.identity.0 || self.was_writable.contains(&gfn) {
            return LastWritable::Now;
        }
        let last = self.ceased.get(&gfn).copied().max(self.identity.1);
        last.map_or(LastWritable::Never, LastWritable::In)
    }

    /// The guest pages some mapping lets devices write.
    pub fn writable(&self) -> BTreeSet<u64> {
        self.mappings
            .iter()
            .filter(|mapping| mapping.access.writes())
            .flat_map(|mapping| mapping.gfn..mapping.gfn + mapping.pages)
            .collect()
    }
}
