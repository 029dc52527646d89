//! MSI-X: a function's vector table and pending bits.
//!
//! PCI Local Bus Specification 3.0, section 6.8.2. The guest sees this table and
//! never the device's own, whose messages end at the host. A vector that the device
//! signals while it is masked is kept pending, and sent once nothing masks it.

use crate::platform::apic::Msi;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most vectors a function can have.
pub const MAX_VECTORS: usize = 8;
/// Bytes of a table entry.
const ENTRY_BYTES: u64 = 16;
/// Vector control: masked.
const MASKED: u32 = 1;
/// Message control: enabled, and the mask of all vectors.
pub(super) const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// Where a function has its MSI-X structures, all in BAR 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixLayout {
    /// How many vectors it has, 1 to [`MAX_VECTORS`].
    pub vectors: u16,
    /// The table's offset, a multiple of a page.
    pub table: u32,
    /// The pending bits' offset, a multiple of a page, in a page without the table.
    pub pending: u32,
}

/// One vector's entry of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// What a guest has set up. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MsixState {
    table: [Entry; MAX_VECTORS],
    /// One bit a vector.
    pending: u32,
    control: u16,
    reserved: u16,
}

impl Default for MsixState {
    /// As after reset: disabled, every vector masked.
    fn default() -> Self {
        let entry = Entry {
            address: 0,
            data: 0,
            control: MASKED,
        };
        Self {
            table: [entry; MAX_VECTORS],
            pending: 0,
            control: 0,
            reserved: 0,
        }
    }
}

impl MsixState {
    /// The state with the bits gone that no guest can set.
    pub(super) fn sanitised(mut self) -> Self {
        self.control &= ENABLE | FUNCTION_MASK;
        self.pending &= (1 << MAX_VECTORS) - 1;
        self.reserved = 0;
        for entry in &mut self.table {
            entry.address &= !3;
            entry.control &= MASKED;
        }
        self
    }

    /// Message control, without the table's size.
    pub(super) fn control(&self) -> u16 {
        self.control
    }

    pub(super) fn set_control(&mut self, value: u16) {
        self.control = value & (ENABLE | FUNCTION_MASK);
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// The device signals `vector`: the message to send now, if nothing masks it.
    pub(super) fn signal(&mut self, vector: usize) -> Option<Msi> {
        if !self.is_enabled() || vector >= MAX_VECTORS {
            return None;
        }
        self.pending |= 1 << vector;
        self.take_due()
    }

    /// A message that waits and that nothing masks any more.
    pub(super) fn take_due(&mut self) -> Option<Msi> {
        if self.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return None;
        }
        let due = |index: &usize| self.pending >> index & 1 != 0;
        let (index, entry) = (0..MAX_VECTORS)
            .filter(due)
            .filter_map(|index| Some((index, self.table.get(index)?)))
            .find(|(_, entry)| entry.control & MASKED == 0)?;
        self.pending &= !(1 << index);
        Some(Msi {
            address: entry.address,
            data: entry.data,
        })
    }

    /// Reads the 32 bits at `offset` into BAR 0; `None` outside the two pages.
    pub(super) fn read(&self, layout: &MsixLayout, offset: u64) -> Option<u32> {
        if let Some(at) = within_page(offset, layout.pending) {
            return Some(if at == 0 { self.pending } else { 0 });
        }
        let at = within_page(offset, layout.table)?;
        let entry = self.entry_at(layout, at).map(|index| self.table[index]);
        Some(entry.map_or(0, |entry| match at % ENTRY_BYTES {
            0 => entry.address as u32,
            4 => (entry.address >> 32) as u32,
            8 => entry.data,
            12 => entry.control,
            _ => 0,
        }))
    }

    /// Writes likewise. The pending bits are read-only.
    pub(super) fn write(&mut self, layout: &MsixLayout, offset: u64, value: u32) {
        let Some(at) = within_page(offset, layout.table) else {
            return;
        };
        let Some(index) = self.entry_at(layout, at) else {
            return;
        };
        let entry = &mut self.table[index];
        match at % ENTRY_BYTES {
            0 => entry.address = entry.address >> 32 << 32 | u64::from(value & !3),
            4 => entry.address = u64::from(value) << 32 | entry.address & 0xffff_ffff,
            8 => entry.data = value,
            12 => entry.control = value & MASKED,
            _ => {}
        }
    }

    fn entry_at(&self, layout: &MsixLayout, at: u64) -> Option<usize> {
        let index = (at / ENTRY_BYTES) as usize;
        (index < usize::from(layout.vectors).min(self.table.len())).then_some(index)
    }
}

/// How far `offset` is into the page at `page`.
fn within_page(offset: u64, page: u32) -> Option<u64> {
    offset
        .checked_sub(page.into())
        .filter(|at| *at < crate::PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: MsixLayout = MsixLayout {
        vectors: 2,
        table: 0x2000,
        pending: 0x3000,
    };

    fn enabled() -> MsixState {
        let mut msix = MsixState::default();
        for (offset, value) in [(0, 0xfee0_0003), (4, 0), (8, 0x41), (12, 0xffff_fffe)] {
            msix.write(&LAYOUT, 0x2010 + offset, value);
        }
        msix.set_control(ENABLE | 0x7ff);
        msix
    }

    const MESSAGE: Msi = Msi {
        address: 0xfee0_0000,
        data: 0x41,
    };

    #[test]
    fn a_vector_sends_its_own_message_and_reserved_bits_read_zero() {
        let mut msix = enabled();
        assert_eq!(msix.signal(1), Some(MESSAGE));
        assert_eq!(msix.read(&LAYOUT, 0x2010), Some(0xfee0_0000));
        assert_eq!(msix.read(&LAYOUT, 0x201c), Some(0));
        assert_eq!(msix.control(), ENABLE);
    }

    #[test]
    fn a_masked_vector_waits_until_it_is_unmasked() {
        let mut msix = enabled();
        msix.write(&LAYOUT, 0x201c, MASKED);
        assert_eq!(msix.signal(1), None);
        assert_eq!(msix.read(&LAYOUT, 0x3000), Some(2));
        msix.write(&LAYOUT, 0x201c, 0);
        assert_eq!(msix.take_due(), Some(MESSAGE));
        assert_eq!(
            (msix.take_due(), msix.read(&LAYOUT, 0x3000)),
            (None, Some(0))
        );
    }

    #[test]
    fn the_function_mask_holds_every_vector_back() {
        let mut msix = enabled();
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(msix.signal(1), None);
        msix.set_control(ENABLE);
        assert_eq!(msix.take_due(), Some(MESSAGE));
    }

    #[test]
    fn what_is_not_there_takes_no_writes_and_sends_nothing() {
        let mut msix = enabled();
        let before = msix;
        for offset in [0x1ffc, 0x2020, 0x2ffc, 0x3000, u64::MAX] {
            msix.write(&LAYOUT, offset, u32::MAX);
        }
        assert_eq!(msix, before);
        assert_eq!(msix.read(&LAYOUT, 0x1ffc), None);
        assert_eq!(msix.read(&LAYOUT, 0x2ffc), Some(0));
        assert_eq!(msix.signal(MAX_VECTORS), None);
        assert_eq!(msix.signal(0), None, "masked since reset");
        msix.set_control(0);
        assert_eq!(msix.signal(1), None, "disabled");
    }
}
