//! Device registers in memory, and whose they are.

use super::time::Time;
use super::{IoEffect, Platform, apic, ioapic, pci};
use crate::Gpa;

/// Registers in memory.
enum Window {
    Apic,
    IoApic,
    Pci,
}

impl Platform {
    /// Whether CPU `cpu` has device registers at `gpa`.
    pub fn has_registers(&mut self, cpu: usize, gpa: Gpa) -> bool {
        self.window(cpu, gpa).is_some() || self.pci.read_memory(gpa).is_some()
    }

    /// Reads `width` bytes of device registers in memory for CPU `cpu`: all ones where
    /// there are none. Configuration space is read in up to 32 bits and MSI-X
    /// structures in 64 as well; everything else in 32.
    pub fn read_memory(&mut self, cpu: usize, gpa: Gpa, width: u8, now: Time) -> u64 {
        if width == 8 {
            return self.read_memory_wide(gpa).unwrap_or(u64::MAX);
        }
        let value = match self.window(cpu, gpa) {
            Some((Window::Pci, offset)) if width <= 4 => Some(self.pci.read_window(offset, width)),
            _ if width != 4 => None,
            Some((Window::Apic, offset)) => Some(self.cpus.get(cpu).apic.read_memory(offset, now)),
            Some((Window::IoApic, offset)) => Some(self.ioapic.read(offset)),
            Some((Window::Pci, _)) => None,
            None => self.pci.read_memory(gpa),
        };
        value.map_or(u64::MAX, u64::from)
    }

    /// Writes likewise; what is written where nothing is, is dropped.
    pub fn write_memory(
        &mut self,
        cpu: usize,
        gpa: Gpa,
        width: u8,
        value: u64,
        now: Time,
    ) -> IoEffect {
        if width == 8 {
            self.write_memory_wide(gpa, value);
            return IoEffect::None;
        }
        let value = value as u32;
        match self.window(cpu, gpa) {
            Some((Window::Pci, offset)) => {
                let has_changed = self.pci.write_window(offset, width, value);
                return self.after_pci_write(has_changed);
            }
            _ if width != 4 => {}
            Some((Window::Apic, offset)) => {
                let apic = &mut self.cpus.get(cpu).apic;
                if let Some(message) = apic.write_memory(offset, value, now) {
                    self.cpus.send(message, Some(cpu));
                }
            }
            Some((Window::IoApic, offset)) => {
                let sent = self.ioapic.write(offset, value);
                self.send_from_ioapic(sent);
            }
            None => {
                if self.pci.write_memory(gpa, value) {
                    self.deliver_due();
                }
            }
        }
        IoEffect::None
    }

    /// Reads 8 bytes of device registers in memory: `None` unless they are MSI-X
    /// structures, the only ones that may be read so (PCI Local Bus Specification 3.0,
    /// section 6.8.2), and aligned.
    fn read_memory_wide(&self, gpa: Gpa) -> Option<u64> {
        let [low, high] = halves(gpa)?.map(|half| self.pci.read_memory(half));
        Some(u64::from(high?) << 32 | u64::from(low?))
    }

    /// Writes likewise. The upper half goes last: it has a vector's mask.
    fn write_memory_wide(&mut self, gpa: Gpa, value: u64) {
        let Some([low, high]) = halves(gpa) else {
            return;
        };
        let is_there = self.pci.write_memory(low, value as u32);
        if is_there && self.pci.write_memory(high, (value >> 32) as u32) {
            self.deliver_due();
        }
    }

    fn window(&mut self, cpu: usize, gpa: Gpa) -> Option<(Window, u64)> {
        let within = |start: u64, bytes: u64| {
            let offset = gpa.raw().checked_sub(start);
            offset.filter(|at| *at < bytes)
        };
        if let Some(at) = within(pci::WINDOW.raw(), pci::WINDOW_BYTES) {
            return Some((Window::Pci, at));
        }
        let apic = within(apic::WINDOW, 0x1000)
            .filter(|_| self.cpus.get(cpu).apic.is_in_memory())
            .map(|at| (Window::Apic, at));
        apic.or_else(|| within(ioapic::WINDOW, 0x1000).map(|at| (Window::IoApic, at)))
    }
}

/// Where the two halves of 8 aligned bytes are.
fn halves(gpa: Gpa) -> Option<[Gpa; 2]> {
    let high = Gpa::new(gpa.raw() | 4);
    gpa.raw().is_multiple_of(8).then_some([gpa, high])
}
