//! An I/O APIC for the interrupts of what is wired to this board.
//!
//! Intel 82093AA data sheet, sections 3.1 and 3.2. All inputs are edge triggered,
//! whatever their entries say: no level-triggered source is on this platform.
//!
//! An entry becomes a message in the way that lets an IOMMU remap it (Intel VT-d
//! specification, section "Programming of I/OxAPIC"): bits 63:48 are bits 19:4 of the
//! address, and bit 11 is bit 2. In an entry that is not to be remapped these are the
//! destination and its mode, and bits 55:48 are zero.

use super::apic::Msi;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the registers are.
pub const WINDOW: u64 = 0xfec0_0000;
/// Its id, in the MADT and for IOMMUs.
pub const ID: u8 = 0;
/// The requester id under which an IOMMU sees it: f0:1f.0, which no PCI function has.
pub const REQUESTER: u16 = 0xf0f8;
/// Inputs.
const PINS: usize = 24;
/// Offset of the register select.
const SELECT: u64 = 0x00;
/// Offset of the window to the register selected.
const DATA: u64 = 0x10;
/// Version 11h, and the number of the last entry.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x11;
/// The first of the redirection entries, two registers each.
const FIRST_ENTRY: u32 = 0x10;
/// Entry: masked.
const MASKED: u64 = 1 << 16;
/// Entry: vector, delivery mode, destination mode, polarity, trigger, mask and
/// destination, which has 16 bits for an IOMMU.
const WRITABLE: u64 = 0xffff_0000_0001_afff;

/// The state of the I/O APIC. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoApicState {
    entries: [u64; PINS],
    /// The inputs that are high.
    high: u32,
    /// The inputs that rose while masked.
    waiting: u32,
    select: u32,
    id: u32,
}

/// The I/O APIC.
pub struct IoApic(IoApicState);

impl Default for IoApic {
    /// As after reset: all masked.
    fn default() -> Self {
        Self(IoApicState {
            entries: [MASKED; PINS],
            high: 0,
            waiting: 0,
            select: 0,
            id: 0,
        })
    }
}

impl IoApic {
    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.0.select) {
            (SELECT, select) => select,
            (DATA, 0 | 2) => self.0.id,
            (DATA, 1) => VERSION,
            (DATA, select) => match self.entry(select) {
                Some((index, shift)) => (self.0.entries[index] >> shift) as u32,
                None => 0,
            },
            _ => 0,
        }
    }

    /// Writes a register. An interrupt that waited for its entry to be unmasked
    /// comes back.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Msi> {
        match (offset, self.0.select) {
            (SELECT, _) => self.0.select = value & 0xff,
            (DATA, 0) => self.0.id = value & 0x0f00_0000,
            (DATA, select) => {
                let (index, shift) = self.entry(select)?;
                let entry = self.0.entries.get_mut(index)?;
                let kept = *entry & !(0xffff_ffff << shift);
                *entry = (kept | u64::from(value) << shift) & WRITABLE;
                return self.deliver(index);
            }
            _ => {}
        }
        None
    }

    /// An input changes to high or low; the interrupt that it raises.
    pub fn set_input(&mut self, pin: usize, is_high: bool) -> Option<Msi> {
        let bit = 1 << Some(pin).filter(|pin| *pin < PINS)?;
        let rises = is_high && self.0.high & bit == 0;
        self.0.high = if is_high {
            self.0.high | bit
        } else {
            self.0.high & !bit
        };
        if !rises {
            return None;
        }
        self.0.waiting |= bit;
        self.deliver(pin)
    }

    /// The state of the I/O APIC.
    pub fn save(&self) -> IoApicState {
        self.0
    }

    /// An I/O APIC in a state from outside, unless it is impossible.
    pub fn restored(state: &IoApicState) -> Option<Self> {
        let pins = (1u32 << PINS) - 1;
        let valid = state.entries.iter().all(|entry| entry & !WRITABLE == 0)
            && (state.high | state.waiting) & !pins == 0
            && state.select <= 0xff
            && state.id & !0x0f00_0000 == 0;
        valid.then_some(Self(*state))
    }

    /// The entry that a register is half of, and the shift of this half.
    fn entry(&self, register: u32) -> Option<(usize, u32)> {
        let half = register.checked_sub(FIRST_ENTRY)?;
        let index = half as usize / 2;
        (index < PINS).then_some((index, half % 2 * 32))
    }

    fn deliver(&mut self, pin: usize) -> Option<Msi> {
        let entry = *self.0.entries.get(pin)?;
        let bit = 1 << pin;
        if entry & MASKED != 0 || self.0.waiting & bit == 0 {
            return None;
        }
        self.0.waiting &= !bit;
        let logical = entry >> 11 & 1;
        Some(Msi {
            address: 0xfee0_0000 | entry >> 48 << 4 | logical << 2,
            data: (entry & 0x7ff) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ioapic: &mut IoApic, register: u32, value: u32) -> Option<Msi> {
        ioapic.write(SELECT, register);
        ioapic.write(DATA, value)
    }

    #[test]
    fn a_rising_input_is_one_message() {
        let mut ioapic = IoApic::default();
        write(&mut ioapic, 0x19, 1 << 24);
        write(&mut ioapic, 0x18, 0x841);
        let msi = Msi {
            address: 0xfee0_1004,
            data: 0x41,
        };
        assert_eq!(ioapic.set_input(4, true), Some(msi));
        assert_eq!(ioapic.set_input(4, true), None, "it did not rise");
        ioapic.set_input(4, false);
        assert_eq!(ioapic.set_input(4, true), Some(msi));
        ioapic.write(SELECT, 0x18);
        assert_eq!(ioapic.read(DATA), 0x841);
    }

    #[test]
    fn an_entry_for_an_iommu_names_an_index_of_16_bits() {
        let mut ioapic = IoApic::default();
        // Index 9001h, remappable.
        write(&mut ioapic, 0x19, 0x1001 << 17 | 1 << 16);
        write(&mut ioapic, 0x18, 0x841);
        let msi = ioapic.set_input(4, true).unwrap();
        assert_eq!(msi.address, 0xfee0_0000 | 0x1001 << 5 | 1 << 4 | 1 << 2);
    }

    #[test]
    fn an_interrupt_waits_while_its_entry_is_masked() {
        let mut ioapic = IoApic::default();
        assert_eq!(ioapic.set_input(4, true), None);
        assert_eq!(
            write(&mut ioapic, 0x18, 0x41).map(|msi| msi.data),
            Some(0x41)
        );
        assert_eq!(write(&mut ioapic, 0x18, 0x41), None);
    }

    #[test]
    fn registers_and_inputs_that_are_not_there_do_nothing() {
        let mut ioapic = IoApic::default();
        assert_eq!(write(&mut ioapic, 0x40, u32::MAX), None);
        assert_eq!(ioapic.read(DATA), 0);
        assert_eq!(ioapic.set_input(24, true), None);
        assert_eq!(ioapic.set_input(99, true), None);
        let mut state = IoApic::default().save();
        assert!(IoApic::restored(&state).is_some());
        state.high = 1 << 24;
        assert!(IoApic::restored(&state).is_none());
    }
}
