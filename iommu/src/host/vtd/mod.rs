//! The driver for an Intel VT-d unit in legacy mode.
//!
//! It owns the unit's root and context tables and its invalidation queue. The
//! second-stage tables belong to the domains and only pass through here as a root
//! address.
//!
//! The life of one device's context entry:
//!
//! ```text
//!             attach                      attach (first blocks)
//!   absent ------------> present, domain A ------------> present, domain B
//!     ^                       |
//!     +-----------------------+
//!               block
//! ```
//!
//! An entry never goes from one domain to another in one step: hardware may read
//! its two halves separately and would mix them.

mod fault;
mod queue;
mod registers;
mod start;
mod tables;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use start::{Coherency, StartError};

use crate::IovaRange;
use crate::unit::{DmaFault, DomainId, HostUnit, Scope, SourceId, UnitError};
use crate::vtd::{
    AddressWidth, Capabilities, ContextCacheScope, ContextEntry, Descriptor, IotlbScope,
    TranslationType,
};
use fault::FaultReader;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;
use hv_core::{Hpa, PAGE_SHIFT};
use queue::Queue;
use registers::Registers;
use tables::Tables;

/// A running VT-d unit, reached through the register window `R`, its tables
/// through `M`.
///
/// Devices it was not told to attach cannot reach any memory.
pub struct VtdUnit<R, M> {
    registers: Registers<R>,
    mem: M,
    pool: FramePool,
    capabilities: Capabilities,
    width: AddressWidth,
    tables: Tables,
    queue: Queue,
    faults: FaultReader,
}

impl<R: Mmio, M: PhysMemory> VtdUnit<R, M> {
    /// What the unit said it can do, for the operator's log.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The number the context entry shall carry. 0 belongs to the unit: in
    /// caching mode it tags entries that were absent.
    fn number(&self, domain: DomainId) -> Result<u16, UnitError> {
        let number = domain.number();
        let valid = number != 0 && u32::from(number) < self.capabilities.domain_count();
        valid.then_some(number).ok_or(UnitError::OutOfRange)
    }

    /// Drops what is cached of `device`'s context entry and then everything that
    /// was translated by it, and drains.
    ///
    /// The context cache comes first, and is waited for: a DMA that still used a
    /// cached context entry could otherwise refill the IOTLB right behind its
    /// invalidation. The drain at the end covers every DMA that got through by
    /// then.
    fn forget(&mut self, device: SourceId, tag: u16, domain: u16) -> Result<(), UnitError> {
        self.execute(Descriptor::ContextCache(ContextCacheScope::Device {
            domain: tag,
            source: device,
            function_mask: 0,
        }))?;
        self.execute(drained(IotlbScope::Domain { domain }))
    }

    fn execute(&mut self, descriptor: Descriptor) -> Result<(), UnitError> {
        self.queue.execute(&self.registers, &self.mem, descriptor)
    }
}

impl<R: Mmio, M: PhysMemory> HostUnit for VtdUnit<R, M> {
    fn levels(&self) -> u8 {
        self.width.levels()
    }

    fn has_large_leaves(&self) -> bool {
        self.capabilities.large_2m
    }

    fn caches_absent(&self) -> bool {
        // A new entry may also linger in the unit's write buffer, which every
        // invalidation flushes.
        self.capabilities.caching_mode || self.capabilities.write_buffer_flush
    }

    fn attach(&mut self, device: SourceId, domain: DomainId, root: Hpa) -> Result<(), UnitError> {
        let number = self.number(domain)?;
        if !root.is_page_aligned() {
            return Err(UnitError::OutOfRange);
        }
        let entry = ContextEntry {
            silent: false,
            translation: TranslationType::Untranslated,
            table: root.raw(),
            width: self.width,
            domain: number,
        };
        // The only step that can fail with the unit in good health comes first, so
        // that the device keeps its old translation then.
        self.tables.reserve(&self.mem, &mut self.pool, device)?;
        self.block(device)?;
        self.tables.publish(&self.mem, device, entry)?;
        // In caching mode the absence may be cached, under domain 0. The IOTLB is
        // cleaned as well, so that a domain number used before starts afresh.
        self.forget(device, 0, number)
    }

    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        match self.tables.withdraw(&self.mem, device) {
            Some(domain) => self.forget(device, domain, domain),
            // Blocked before; but is it known that the invalidation succeeded?
            None => self.queue.health(),
        }
    }

    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        let domain = self.number(domain)?;
        let scope = match scope {
            Scope::Pages(range) => pages(&self.capabilities, domain, range),
            Scope::Domain => IotlbScope::Domain { domain },
        };
        self.execute(drained(scope))
    }

    fn take_fault(&mut self) -> Option<DmaFault> {
        self.faults.take(&self.registers)
    }
}

/// The invalidation that waits for the DMA in flight, reads and writes.
fn drained(scope: IotlbScope) -> Descriptor {
    Descriptor::Iotlb {
        scope,
        drain_reads: true,
        drain_writes: true,
    }
}

/// The smallest invalidation the unit knows that covers `range`: an aligned power
/// of two of pages, or the domain where that is too large for it.
fn pages(capabilities: &Capabilities, domain: u16, range: IovaRange) -> IotlbScope {
    let first = range.start().raw() >> PAGE_SHIFT;
    let last = range.last_page().raw() >> PAGE_SHIFT;
    // Page numbers that share all bits from `order` up lie in one such block.
    let order = (u64::BITS - (first ^ last).leading_zeros()) as u8;
    if !capabilities.page_selective || order > capabilities.max_address_mask {
        return IotlbScope::Domain { domain };
    }
    IotlbScope::Pages {
        domain,
        address: (first >> order << order) << PAGE_SHIFT,
        order,
        // Whole tables may have been unlinked: entries above the leaves go too.
        leaves_only: false,
    }
}
