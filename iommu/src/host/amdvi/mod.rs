//! The driver for an AMD-Vi unit with version 1 tables.
//!
//! It owns the unit's device table, interrupt remapping tables, command buffer and event
//! log. The page tables belong to the domains and only pass through here as a root
//! address.
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
mod interrupts;
mod queue;
mod registers;
mod start;
mod table;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use start::{Facts, StartError};

use crate::amdvi::{Command, DeviceEntry};
use crate::device_tlb::{DeviceTlb, NoDeviceTlb};
use crate::dirty_mode::{DirtyHardware, DirtyUpdate};
use crate::domain::MAX_DEVICES;
use crate::host::device_tlbs::{DeviceTlbs, MAX_COMMANDS};
use crate::page_block::PageBlock;
use crate::unit::{DomainId, Fault, HostUnit, InterruptTarget, Scope, SourceId, UnitError};
use events::EventLog;
use hv_core::Hpa;
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;
use interrupts::InterruptTables;
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
pub struct AmdUnit<'m, R, M> {
    registers: Registers<R>,
    mem: &'m M,
    caches_absent: bool,
    /// Whether it is made to set accessed and dirty bits.
    sets_dirty_bits: bool,
    /// Whether it can tell devices to forget, and tell when one does not answer.
    knows_device_tlbs: bool,
    device_tlbs: DeviceTlbs,
    table: Table,
    /// `None`: every interrupt request passes as it is.
    interrupts: Option<InterruptTables>,
    queue: Queue<'m>,
    events: EventLog,
}

impl<R: Mmio, M: PhysMemory> AmdUnit<'_, R, M> {
    /// Drops what is cached of `device`'s entry and then everything that was
    /// translated by it.
    ///
    /// The entry comes first, and is waited for: a DMA that still used a cached
    /// entry could otherwise refill the IOTLB right behind its invalidation. The
    /// second wait covers every DMA that got through by then.
    fn forget(&mut self, device: SourceId, domain: u16) -> Result<(), UnitError> {
        self.execute(Command::DeviceEntry { device })?;
        let tlb = self.device_tlbs.of(device).map(|tlb| (device, tlb));
        self.execute_with(
            invalidation(domain, PageBlock::ALL),
            PageBlock::ALL,
            tlb.into_iter().collect(),
        )
    }

    fn execute(&mut self, command: Command) -> Result<(), UnitError> {
        self.queue.execute(&self.registers, &[command.encode()])
    }
}

impl<R: Mmio, M: PhysMemory> AmdUnit<'_, R, M> {
    /// Has the unit carry out an invalidation of its own, and then has `devices` forget
    /// `block`. In this order, with a fence between: a device that forgets first could
    /// be told the old translation anew.
    ///
    /// A device that does not answer in time is an event in the log. The wait may
    /// complete or not then.
    #[inline(never)]
    fn execute_with(
        &mut self,
        command: Command,
        block: PageBlock,
        devices: heapless::Vec<(SourceId, DeviceTlb), MAX_DEVICES>,
    ) -> Result<(), UnitError> {
        if devices.is_empty() {
            return self.execute(command);
        }
        let told = devices.iter().map(|(device, tlb)| Command::DeviceTlb {
            device: *device,
            pending: tlb.queue_depth(),
            block,
        });
        let commands: heapless::Vec<u128, MAX_COMMANDS> = [command, Command::Fence]
            .into_iter()
            .chain(told)
            .map(Command::encode)
            .collect();
        let executed = self.queue.execute(&self.registers, &commands);
        if self.events.may_have_timeout(&self.registers, self.mem) {
            self.queue.give_up();
            return Err(UnitError::DeviceTlb);
        }
        executed
    }
}

impl<R: Mmio, M: PhysMemory> HostUnit for AmdUnit<'_, R, M> {
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
            device_tlb: self.device_tlbs.of(device).is_some(),
            domain,
        };
        self.block(device)?;
        self.table.publish(self.mem, device, entry)?;
        self.device_tlbs.moved(device, Some(domain));
        // The blocked entry may be cached. The translations go as well, so that a
        // domain number used before starts afresh.
        self.forget(device, domain)
    }

    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        match self.table.withdraw(self.mem, device) {
            Some(domain) => {
                self.device_tlbs.moved(device, None);
                self.forget(device, domain)
            }
            // Blocked before; but is it known that the invalidation succeeded?
            None => self.queue.health(),
        }
    }

    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        let block = match scope {
            Scope::Pages(range) => PageBlock::over(range),
            Scope::Domain => PageBlock::ALL,
        };
        let domain = number(domain)?;
        let command = invalidation(domain, block);
        if self.device_tlbs.is_empty() {
            return self.execute(command);
        }
        let filled = self.device_tlbs.filled_from(domain).collect();
        self.execute_with(command, block, filled)
    }

    fn allow_device_tlb(&mut self, device: SourceId, tlb: DeviceTlb) -> Result<(), NoDeviceTlb> {
        if !self.knows_device_tlbs {
            return Err(NoDeviceTlb::Unit);
        }
        self.device_tlbs.allow(device, tlb)
    }

    fn remaps_interrupts(&self) -> bool {
        self.interrupts.is_some()
    }

    fn grant_interrupt(&mut self, device: SourceId, to: InterruptTarget) -> Result<Msi, UnitError> {
        self.grant(device, to)
    }

    fn revoke_interrupts(&mut self, device: SourceId) -> Result<(), UnitError> {
        self.revoke(device)
    }

    fn reports_faults(&self) -> bool {
        self.events.works()
    }

    fn take_fault(&mut self) -> Option<Fault> {
        self.events.take(&self.registers, self.mem)
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
