//! The driver for an Intel VT-d unit, in legacy and in scalable mode.
//!
//! It owns the unit's invalidation queue and the tables that lead from a device to
//! its domain. The paging tables belong to the domains and only pass through here
//! as a root address. Which mode and which paging tables are used is decided in
//! [`choice`].
//!
//! The life of one device's entry:
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

mod choice;
mod fault;
mod interrupts;
mod invalidation;
mod legacy_tables;
mod queue;
mod registers;
mod scalable_tables;
mod start;
mod tables;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use choice::Implementation;
pub use start::StartError;

use crate::device_tlb::{DeviceTlb, NoDeviceTlb};
use crate::dirty_mode::{DirtyHardware, DirtyUpdate};
use crate::domain::MAX_DEVICES;
use crate::host::device_tlbs::{DeviceTlbs, MAX_COMMANDS};
use crate::tables::AnyFormat;
use crate::unit::{DomainId, Fault, HostUnit, InterruptTarget, Scope, SourceId, UnitError};
use crate::vtd::{Capabilities, ExtendedCapabilities, FaultStatus};
use choice::Translation;
use core::fmt;
use fault::FaultReader;
use hv_core::Hpa;
use hv_core::memory::{FramePool, PhysMemory};
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;
use interrupts::InterruptTable;
use queue::Queue;
use registers::Registers;
use tables::{Tables, Target};

/// A running VT-d unit, reached through the register window `R`, its tables
/// through `M`.
///
/// Devices it was not told to attach cannot reach any memory.
pub struct VtdUnit<'m, R, M> {
    registers: Registers<R>,
    mem: &'m M,
    pool: FramePool,
    capabilities: Capabilities,
    extended: ExtendedCapabilities,
    implementation: Implementation,
    translation: Translation,
    tables: Tables,
    queue: Queue<'m>,
    device_tlbs: DeviceTlbs,
    faults: FaultReader,
    /// `None`: every interrupt request passes as it is.
    interrupts: Option<InterruptTable>,
}

impl<R: Mmio, M: PhysMemory> VtdUnit<'_, R, M> {
    /// What the unit said it can do, for the operator's log.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The mode and the tables it is used with, in words.
    pub fn description(&self) -> impl fmt::Display {
        self.translation
    }

    /// The number the device's entry shall carry. 0 belongs to the unit: in
    /// caching mode it tags entries that were absent.
    fn number(&self, domain: DomainId) -> Result<u16, UnitError> {
        let number = domain.number();
        let valid = number != 0 && u32::from(number) < self.capabilities.domain_count();
        valid.then_some(number).ok_or(UnitError::OutOfRange)
    }

    /// Drops what is cached of `device`'s entries and then everything that was
    /// translated by them, and drains.
    ///
    /// The entries come first, and each kind is waited for: a DMA that still used a
    /// cached one could otherwise refill the next cache right behind its
    /// invalidation. The drain at the end covers every DMA that got through by
    /// then.
    fn forget(&mut self, device: SourceId, tag: u16, domain: u16) -> Result<(), UnitError> {
        for descriptor in invalidation::entries(self.translation, device, tag) {
            self.execute(descriptor)?;
        }
        let own = invalidation::domain(self.translation, domain);
        let tlb = self.device_tlbs.of(device).map(|tlb| (device, tlb));
        self.execute_with(own, Scope::Domain, tlb.into_iter().collect())
    }

    /// Has the unit drop translations of its own, and then has `devices` drop theirs of
    /// `scope`. In this order: a device that forgets first could be told the old
    /// translation anew.
    ///
    /// When a device does not answer in time the unit says so, and completes no wait
    /// (VT-d 4.1, 6.5.2.10 "Queue Error Considerations").
    #[inline(never)]
    fn execute_with(
        &mut self,
        own: u128,
        scope: Scope,
        devices: heapless::Vec<(SourceId, DeviceTlb), MAX_DEVICES>,
    ) -> Result<(), UnitError> {
        let told = devices
            .iter()
            .map(|(device, tlb)| invalidation::device_tlb(&self.extended, *device, *tlb, scope));
        let descriptors: heapless::Vec<u128, MAX_COMMANDS> =
            [own].into_iter().chain(told).collect();
        let executed = self.queue.execute(&self.registers, &descriptors);
        let silent = FaultStatus::TIMEOUT_ERROR | FaultStatus::COMPLETION_ERROR;
        executed.map_err(|error| match self.registers.fault_status() {
            status if status.intersects(silent) => UnitError::DeviceTlb,
            _ => error,
        })
    }

    #[inline(never)]
    fn execute(&mut self, descriptor: u128) -> Result<(), UnitError> {
        self.queue.execute(&self.registers, &[descriptor])
    }
}

impl<R, M> VtdUnit<'_, R, M> {
    /// The format of the tables that it walks.
    pub fn format(&self) -> AnyFormat {
        self.translation.format()
    }
}

impl<R: Mmio, M: PhysMemory> HostUnit for VtdUnit<'_, R, M> {
    fn levels(&self) -> u8 {
        self.translation.levels()
    }

    fn has_large_leaves(&self) -> bool {
        match self.translation {
            // A unit that stores back what it read could undo the change when a
            // large leaf is split.
            Translation::FirstStage => self.dirty_hardware().update != DirtyUpdate::PlainStore,
            Translation::Legacy(_) | Translation::SecondStageDirty(_) => self.capabilities.large_2m,
        }
    }

    fn caches_absent(&self) -> bool {
        // A new entry may also linger in the unit's write buffer, which every
        // invalidation flushes.
        self.capabilities.caching_mode || self.capabilities.write_buffer_flush
    }

    fn dirty_hardware(&self) -> DirtyHardware {
        self.translation.dirty_hardware(self.implementation)
    }

    fn attach(&mut self, device: SourceId, domain: DomainId, root: Hpa) -> Result<(), UnitError> {
        let number = self.number(domain)?;
        if !root.is_page_aligned() {
            return Err(UnitError::OutOfRange);
        }
        let target = Target {
            domain: number,
            root,
            device_tlb: self.device_tlbs.of(device).is_some(),
        };
        // The only step that can fail with the unit in good health comes first, so
        // that the device keeps its old translation then.
        self.tables.reserve(self.mem, &mut self.pool, device)?;
        self.block(device)?;
        self.tables.publish(self.mem, device, target)?;
        self.device_tlbs.moved(device, Some(number));
        // In caching mode the absence may be cached, under domain 0. The IOTLB is
        // cleaned as well, so that a domain number used before starts afresh.
        self.forget(device, 0, number)
    }

    fn block(&mut self, device: SourceId) -> Result<(), UnitError> {
        match self.tables.withdraw(self.mem, device) {
            Some(domain) => {
                self.device_tlbs.moved(device, None);
                self.forget(device, domain, domain)
            }
            // Blocked before; but is it known that the invalidation succeeded?
            None => self.queue.health(),
        }
    }

    #[inline]
    fn invalidate(&mut self, domain: DomainId, scope: Scope) -> Result<(), UnitError> {
        let domain = self.number(domain)?;
        let own = match scope {
            Scope::Pages(range) => {
                invalidation::pages(self.translation, &self.capabilities, domain, range)
            }
            Scope::Domain => invalidation::domain(self.translation, domain),
        };
        if self.device_tlbs.is_empty() {
            return self.queue.execute(&self.registers, &[own]);
        }
        let filled = self.device_tlbs.filled_from(domain).collect();
        self.execute_with(own, scope, filled)
    }

    fn allow_device_tlb(&mut self, device: SourceId, tlb: DeviceTlb) -> Result<(), NoDeviceTlb> {
        if !self.extended.device_tlb {
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

    fn take_fault(&mut self) -> Option<Fault> {
        self.faults.take(&self.registers)
    }
}
