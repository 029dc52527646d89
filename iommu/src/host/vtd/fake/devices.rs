//! The devices behind the unit, their DMA and interrupt requests. Those with TLBs keep
//! what they are told, and whenever they can they ask anew for every page they ever used.

use super::memory::{pasid_in, scalable_entry_in};
use super::{FakeUnit, State};
use crate::host::testing::read128;
use crate::unit::SourceId;
use crate::vtd::{
    Global, InterruptEntry, InterruptFaultReason, InterruptRequest, InterruptTableAddress,
    TranslationType,
};
use hv_core::platform::apic::Msi;
use hv_core::testing::Arena;
use std::collections::hash_map::Entry;

/// How devices and unit go about TLBs of devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::host::vtd) enum DeviceConduct {
    Obey,
    /// They never answer.
    KeepSilent,
    /// They answer, and keep all.
    KeepTheirs,
    /// They are told before the unit has dropped its own translations.
    ObeyTooEarly,
}

impl FakeUnit<'_> {
    /// A DMA of `device` to `page`: the table it is translated by, `None` where it
    /// is refused. What it needs on the way is cached.
    pub(in crate::host::vtd) fn dma(&self, device: SourceId, page: u64) -> Option<u64> {
        let mut state = self.state();
        assert!(state.status.contains(Global::TRANSLATION));
        state.dma(self.arena, device, page)
    }

    /// An interrupt request of `device`: what reaches the CPUs, or why nothing does.
    pub(in crate::host::vtd) fn interrupt(
        &self,
        device: SourceId,
        msi: Msi,
    ) -> Result<Msi, InterruptFaultReason> {
        let mut state = self.state();
        if !state.status.contains(Global::INTERRUPT_REMAPPING) {
            return Ok(msi);
        }
        let table = InterruptTableAddress::decode(state.interrupt_table);
        let index = match InterruptRequest::decode(msi)? {
            InterruptRequest::Remappable { index } => index,
            InterruptRequest::Compatibility
                if state.status.contains(Global::COMPATIBILITY_INTERRUPTS) =>
            {
                return Ok(msi);
            }
            InterruptRequest::Compatibility => {
                return Err(InterruptFaultReason::CompatibilityFormat);
            }
        };
        if index >= table.entries() {
            return Err(InterruptFaultReason::BeyondTable);
        }
        let in_memory = read128(self.arena, table.base + u64::from(index) * 16);
        let raw = *state.interrupts.entry(index).or_insert(in_memory);
        let entry = InterruptEntry::decode(raw, device)?;
        assert!(!table.extended && !entry.level && entry.delivery == 0);
        Ok(Msi::fixed(entry.destination >> 8, entry.vector).unwrap())
    }
}

impl State {
    pub(super) fn dma(&mut self, arena: &Arena, device: SourceId, page: u64) -> Option<u64> {
        let in_memory = self.context_in(arena, device);
        let permits_tlb = in_memory.is_some() && self.permits_tlb_in(arena, device);
        if let Entry::Vacant(entry) = self.contexts.entry(device) {
            entry.insert(in_memory);
            self.with_tlb.remove(&device);
            self.with_tlb.extend(permits_tlb.then_some(device));
        }
        let mut context = self.contexts[&device]?;
        let has_tlb = self.with_tlb.contains(&device);
        // Translated: the unit asks no more than whether the device may.
        if let Some(kept) = self.device_tlbs.get(&(device, page))
            && has_tlb
        {
            return Some(*kept);
        }
        if self.is_scalable() {
            let (_, directory) = context;
            let in_memory = pasid_in(arena, directory);
            context = (*self.pasids.entry(directory).or_insert(in_memory))?;
        }
        let (domain, table) = context;
        let now = table + self.version;
        let found = *self.translations.entry((domain, page)).or_insert(now);
        if has_tlb {
            self.device_tlbs.insert((device, page), found);
            self.used.insert((device.raw(), page));
        }
        Some(found)
    }

    /// Whether `device` keeps a translation of `page`.
    pub(in crate::host::vtd) fn keeps(&self, device: SourceId, page: u64) -> bool {
        self.device_tlbs.contains_key(&(device, page))
    }

    pub(super) fn ask_anew(&mut self, arena: &Arena) {
        for (device, page) in self.used.clone() {
            self.dma(arena, SourceId::new(device), page);
        }
    }

    /// Whether the entry in memory, which is present, permits a TLB.
    fn permits_tlb_in(&self, arena: &Arena, device: SourceId) -> bool {
        if self.is_scalable() {
            let entry = scalable_entry_in(arena, self.root & !0xfff, device);
            return entry.is_some_and(|entry| entry.device_tlb);
        }
        let entry = self.legacy_entry_in(arena, device);
        entry.is_some_and(|entry| entry.translation == TranslationType::DeviceTlb)
    }
}
