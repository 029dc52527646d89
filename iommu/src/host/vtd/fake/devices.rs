//! The devices behind the unit, those with TLBs too. These keep what they are told, and
//! whenever they can they ask anew for every page they ever used.

use super::State;
use super::memory::{pasid_in, scalable_entry_in};
use crate::unit::SourceId;
use crate::vtd::TranslationType;
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
