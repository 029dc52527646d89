//! What the devices behind the unit send: DMA and interrupt requests.

use super::{Defect, FakeUnit, State, interrupt_fault, write_fault};
use crate::amdvi::{Control, DeviceEntry, DeviceInterrupts, InterruptEntry, InterruptRequest};
use crate::host::testing::{read64, read128};
use crate::page_block::PageBlock;
use crate::unit::SourceId;
use hv_core::platform::apic::Msi;
use hv_core::testing::Arena;

impl FakeUnit<'_> {
    /// A DMA of `device` to `page`: the table it is translated by, `None` where it
    /// is refused. What it needs on the way is cached.
    pub(in crate::host::amdvi) fn dma(&self, device: SourceId, page: u64) -> Option<u64> {
        let mut state = self.state();
        assert!(state.control.contains(Control::ENABLE) && state.exclusion == 0);
        let done = state.dma(self.arena, device, page);
        if done.is_none() {
            state.log_event(self.arena, write_fault(device, page << 12));
        }
        done
    }

    /// An interrupt request of `device`: what reaches the CPUs, `None` if it is refused.
    /// What it needs on the way is cached.
    pub(in crate::host::amdvi) fn interrupt(&self, device: SourceId, msi: Msi) -> Option<Msi> {
        let mut state = self.state();
        assert!(state.control.contains(Control::ENABLE));
        let others = Control::WIDE_INTERRUPTS | Control::MORE_INTERRUPTS;
        assert!(!state.control.intersects(others), "other entries");
        let sent = state.interrupt(self.arena, device, msi);
        if sent.is_none() {
            state.log_event(self.arena, interrupt_fault(device, msi));
        }
        sent
    }

    /// Whether it sets accessed and dirty bits for `device`.
    pub(in crate::host::amdvi) fn sets_dirty_bits(&self, device: SourceId) -> bool {
        let in_memory = self.state().entry_in(self.arena, device);
        matches!(in_memory, DeviceEntry::Translated { dirty: true, .. })
    }
}

impl State {
    pub(super) fn dma(&mut self, arena: &Arena, device: SourceId, page: u64) -> Option<u64> {
        let in_memory = self.entry_in(arena, device);
        let DeviceEntry::Translated {
            root,
            domain,
            device_tlb,
            ..
        } = *self.entries.entry(device).or_insert(in_memory)
        else {
            return None;
        };
        // Translated: the unit asks no more than whether the device may.
        if let Some(kept) = self.device_tlbs.get(&(device, page))
            && device_tlb
        {
            return Some(*kept);
        }
        let now = root + self.version;
        let found = *self.translations.entry((domain, page)).or_insert(now);
        if device_tlb {
            self.device_tlbs.insert((device, page), found);
            self.used.insert((device.raw(), page));
        }
        Some(found)
    }

    /// Everybody does once more what they ever could.
    pub(super) fn ask_anew(&mut self, arena: &Arena) {
        for (device, page) in self.used.clone() {
            self.dma(arena, SourceId::new(device), page);
        }
        for (device, index) in self.raised.clone() {
            let message = InterruptRequest::message(index);
            self.interrupt(arena, SourceId::new(device), message);
        }
    }

    fn interrupt(&mut self, arena: &Arena, device: SourceId, msi: Msi) -> Option<Msi> {
        let at = self.entry_at(device) + 16;
        let in_memory = read64(arena, at);
        let word = *self.interrupt_words.entry(device).or_insert(in_memory);
        let interrupts = DeviceInterrupts::decode(word).expect("a word that lets anything pass");
        let table = match interrupts {
            DeviceInterrupts::Unremapped => return Some(msi),
            DeviceInterrupts::Blocked => return None,
            DeviceInterrupts::Remapped { table } => table,
        };
        let InterruptRequest::Remappable { index } = InterruptRequest::decode(msi) else {
            return None;
        };
        let slot = read64(arena, table + u64::from(index / 2) * 8);
        let in_memory = (slot >> (index % 2 * 32)) as u32;
        let kept = self.interrupts.entry((device, index)).or_insert(in_memory);
        self.raised.insert((device.raw(), index));
        let entry = InterruptEntry::decode(*kept)?;
        Some(Msi::fixed(entry.destination.into(), entry.vector).unwrap())
    }

    fn entry_at(&self, device: SourceId) -> u64 {
        let bytes = ((self.device_table & 0x1ff) + 1) << 12;
        let offset = u64::from(device.raw()) * DeviceEntry::SIZE as u64;
        assert!(offset < bytes, "the device is beyond the table");
        (self.device_table & !0xfff) + offset
    }

    fn entry_in(&self, arena: &Arena, device: SourceId) -> DeviceEntry {
        let raw = read128(arena, self.entry_at(device));
        let entry = DeviceEntry::decode([raw as u64, (raw >> 64) as u64]);
        entry.expect("an entry that lets DMA pass")
    }

    /// Devices forget `block`, if they do as they are told.
    pub(super) fn forget_device_tlb(&mut self, device: SourceId, block: PageBlock) {
        let obeys = !matches!(
            self.defect,
            Defect::DevicesKeepTheirs | Defect::DevicesTooEarly
        );
        self.device_tlbs
            .retain(|(of, page), _| !obeys || *of != device || !block.contains(*page));
    }
}
