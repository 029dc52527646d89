//! The driver for an AMD-Vi unit with version 1 tables.
//!
//! It owns the unit's device table, command buffer and event log. The page tables
//! belong to the domains and only pass through here as a root address.
//!
//! The life of one device's entry, which is never absent, since an entry that is
//! not valid lets DMA pass:
//!
//! ```text
//!             attach                      attach (first blocks)
//!   blocked -----------> domain A ---------------------> domain B
//!     ^                     |
//!     +---------------------+
//!              block
//! ```
//!
//! An entry never goes from one domain to another in one step: hardware may read
//! its words separately and would mix them.

mod events;
mod queue;
mod registers;
mod start;
mod table;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use start::{Facts, StartError};

use crate::IovaRange;
use crate::amdvi::command::PageBlock;
use crate::amdvi::{Command, DeviceEntry};
use crate::dirty_mode::{DirtyHardware, DirtyUpdate};
use crate::unit::{DomainId, Fault, HostUnit, Scope, SourceId, UnitError};
use events::EventLog;
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::{Hpa, PAGE_SHIFT};
use queue::Queue;
use registers::Registers;
use table::Table;

/// How many levels the tables have: enough for 39-bit IOVAs, for that is the
/// shortest walk in use with VT-d as well. Every unit knows one to four.
const LEVELS: u8 = 3;

/// A running AMD-Vi unit, reached through the register window `R`, its tables
/// through `M`.
///
/// Devices it was not told to attach cannot reach any memory.
pub struct AmdUnit<R, M> {
    registers: Registers<R>,
    mem: M,
    caches_absent: bool,
    /// Whether it is made to set accessed and dirty bits.
    sets_dirty_bits: bool,
    table: Table,
    queue: Queue,
    events: EventLog,
}

impl<R: Mmio, M: PhysMemory> AmdUnit<R, M> {
    /// Drops what is cached of `device`'s entry and then everything that was
    /// translated by it.
    ///
    /// The entry comes first, and is waited for: a DMA that still used a cached
    /// entry could otherwise refill the IOTLB right behind its invalidation. The
    /// second wait covers every DMA that got through by then.
    fn forget(&mut self, device: SourceId, domain: u16) -> Result<(), UnitError> {
        self.execute(Command::DeviceEntry { device })?;
        self.execute(invalidation(domain, PageBlock::ALL))
    }

    fn execute(&mut self, command: Command) -> Result<(), UnitError> {
        self.queue
            .execute(&self.registers, &self.mem, &[command.encode()])
    }
}

impl<R: Mmio, M: PhysMemory> HostUnit for AmdUnit<R, M> {
    fn levels(&self) -> u8 {
        LEVELS
    }

    fn has_large_leaves(&self) -> bool {
        true
    }

    fn caches_absent(&self) -> bool {
        self.caches_absent
    }

    fn dirty_hardware(&self) -> DirtyHardware {
        if !self.sets_dirty_bits {
            return DirtyHardware::NONE;
        }
        // The update is interlocked, and skipped if the entry "no longer appears to
        // require" it (2.2.7.4, on guest tables): by what changes is left open.
        DirtyHardware {
            update: DirtyUpdate::Skipped,
            coherent: true,
            drains_updates: true,
            read_hides_write: false,
            spares_marked: false,
        }
    }

    fn attach(&mut self, device: SourceId, domain: DomainId, root: Hpa) -> Result<(), UnitError> {
        let domain = number(domain)?;
        if !root.is_page_aligned() {
            return Err(UnitError::OutOfRange);
        }
        let entry = DeviceEntry::Translated {
            root: root.raw(),
            levels: LEVELS,
            dirty: self.sets_dirty_bits,
            domain,
        };
        self.block(device)?;
        self.table.publish(&self.mem, device, entry)?;
        // The blocked entry may be cached. The translations go as well, so that a
        // domain number used before starts afresh.
        self.forget(device, domain)
    }

    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        match self.table.withdraw(&self.mem, device) {
            Some(domain) => self.forget(device, domain),
            // Blocked before; but is it known that the invalidation succeeded?
            None => self.queue.health(),
        }
    }

    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        let block = match scope {
            Scope::Pages(range) => block_over(range),
            Scope::Domain => PageBlock::ALL,
        };
        self.execute(invalidation(number(domain)?, block))
    }

    fn reports_faults(&self) -> bool {
        self.events.works()
    }

    fn take_fault(&mut self) -> Option<Fault> {
        self.events.take(&self.registers, &self.mem)
    }
}

/// The number the device table shall carry. 0 is what blocked entries have.
fn number(domain: DomainId) -> Result<u16, UnitError> {
    match domain.number() {
        0 => Err(UnitError::OutOfRange),
        number => Ok(number),
    }
}

fn invalidation(domain: u16, block: PageBlock) -> Command {
    Command::Pages {
        domain,
        block,
        // Whole tables may have been unlinked: entries above the leaves go too.
        tables: true,
    }
}

/// The smallest block of pages that an invalidation can name and that covers
/// `range`.
fn block_over(range: IovaRange) -> PageBlock {
    let first = range.start().raw() >> PAGE_SHIFT;
    let last = range.last_page().raw() >> PAGE_SHIFT;
    // Page numbers that share all bits from `order` up lie in one such block.
    let order = u64::BITS - (first ^ last).leading_zeros();
    if order >= 52 {
        return PageBlock::ALL;
    }
    PageBlock {
        page: first >> order << order,
        order: order as u8,
    }
}
