//! Interrupt remapping: a device raises those interrupts only that it was granted.
//!
//! The order in which it is switched on is all here. Until the last step every
//! request passes as it is; from then on none does but those that name an entry of
//! the requester's own.
//!
//! ```text
//!   empty table -> its address (IRTA) -> taken (SIRTP) -> cache dropped, waited for
//!               -> compatibility format blocked (CFI off) -> remapping on (IRE)
//! ```

use super::VtdUnit;
use super::registers::Registers;
use super::start::StartError;
use crate::unit::{InterruptTarget, SourceId, UnitError};
use crate::vtd::interrupt_entry::SourceCheck;
use crate::vtd::{
    Descriptor, Global, InterruptCacheScope, InterruptEntry, InterruptRequest,
    InterruptTableAddress,
};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::Hpa;
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;
use hv_core::sabotage::{Sabotage, is_active};

/// The interrupt remapping table, of one frame. An entry is free while it is not
/// present.
pub(super) struct InterruptTable {
    base: Hpa,
}

impl InterruptTable {
    /// The two words of each entry.
    fn entries<'m>(&self, mem: &'m impl PhysMemory) -> Result<&'m [[AtomicU64; 2]], UnitError> {
        let frame = mem.frame(self.base).ok_or(UnitError::NoAnswer)?;
        Ok(frame.words().as_chunks().0)
    }

    /// Fills the first free entry; its index.
    fn publish(&self, mem: &impl PhysMemory, entry: InterruptEntry) -> Result<u16, UnitError> {
        let entries = self.entries(mem)?.iter().zip(0u16..);
        let is_free = |words: &[AtomicU64; 2]| words[0].load(Ordering::Relaxed) & 1 == 0;
        let ([low, high], index) = entries
            .clone()
            .find(|(words, _)| is_free(words))
            .ok_or(UnitError::OutOfMemory)?;
        let raw = entry.encode();
        // The half with P last: the unit may look at any time.
        high.store((raw >> 64) as u64, Ordering::Relaxed);
        low.store(raw as u64, Ordering::Release);
        Ok(index)
    }

    /// Empties the entries of `owner`; whether there were any.
    fn withdraw(&self, mem: &impl PhysMemory, owner: SourceId) -> Result<bool, UnitError> {
        let mut any = false;
        for [low, high] in self.entries(mem)? {
            let (low_half, high_half) = (low.load(Ordering::Relaxed), high.load(Ordering::Relaxed));
            let raw = u128::from(high_half) << 64 | u128::from(low_half);
            let is_owners = InterruptEntry::decode(raw, owner)
                .is_ok_and(|entry| entry.check == SourceCheck::Function(owner, 0));
            if is_owners {
                low.store(0, Ordering::Release);
                any = true;
            }
        }
        Ok(any)
    }
}

impl<R: Mmio, M: PhysMemory> VtdUnit<'_, R, M> {
    /// Has every interrupt request remapped from now on, if the unit can. None is let
    /// through before it is granted. Destinations are the 8-bit ids of xAPIC mode.
    ///
    /// # Errors
    /// Out of memory, or the unit did not carry out a command.
    pub fn remap_interrupts(&mut self) -> Result<(), StartError> {
        let is_able = self.registers.extended_capabilities().interrupt_remapping;
        if !is_able || is_active(Sabotage::InterruptRemapping) {
            return Ok(());
        }
        let base = self.pool.take(self.mem).ok_or(StartError::OutOfMemory)?;
        let address = InterruptTableAddress {
            base: base.raw(),
            extended: false,
            order: InterruptTableAddress::ONE_PAGE,
        };
        self.registers.set_interrupt_table(address)?;
        self.drop_cached(InterruptCacheScope::Global)?;
        for (what, on) in [
            (Global::COMPATIBILITY_INTERRUPTS, false),
            (Global::INTERRUPT_REMAPPING, true),
        ] {
            if self.registers.state().contains(what) != on {
                self.registers.turn(what, on)?;
            }
        }
        self.interrupts = Some(InterruptTable { base });
        Ok(())
    }

    /// See [`crate::unit::HostUnit::grant_interrupt`].
    pub(super) fn grant(
        &mut self,
        device: SourceId,
        to: InterruptTarget,
    ) -> Result<Msi, UnitError> {
        let Some(table) = &self.interrupts else {
            return to.unremapped();
        };
        let entry = InterruptEntry::xapic(device, to.xapic_id()?, to.vector);
        let index = table.publish(self.mem, entry)?;
        // In caching mode its absence may be cached.
        self.drop_cached(InterruptCacheScope::Entries { index, order: 0 })?;
        Ok(InterruptRequest::message(index))
    }

    /// See [`crate::unit::HostUnit::revoke_interrupts`].
    pub(super) fn revoke(&mut self, device: SourceId) -> Result<(), UnitError> {
        let Some(table) = &self.interrupts else {
            return Ok(());
        };
        // An entry may be given to somebody else only when no cache has it.
        match table.withdraw(self.mem, device)? {
            true => self.drop_cached(InterruptCacheScope::Global),
            false => self.queue.health(),
        }
    }

    fn drop_cached(&mut self, scope: InterruptCacheScope) -> Result<(), UnitError> {
        self.execute(Descriptor::InterruptCache(scope).encode())
    }
}

impl<R: Mmio> Registers<R> {
    fn set_interrupt_table(&self, address: InterruptTableAddress) -> Result<(), UnitError> {
        self.window
            .write64(crate::vtd::registers::IRTA, address.encode());
        self.turn(Global::INTERRUPT_TABLE, true)
    }
}
