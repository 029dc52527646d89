//! The message by which a device names an entry of its interrupt remapping table (AMD
//! IOMMU 3.0, 2.2.5 "Interrupt Remapping Tables").
//!
//! ```text
//! address  31        20 19          0      data  31     11 10           8 7      0
//!         |    FEEh    |  of no use  |          |   rsvd  | delivery mode | vector |
//!                                                         |     index [10:0]      |
//! ```
//!
//! The index takes in the delivery mode. Only what would be fixed (000) or arbitrated
//! (001) is looked up, so nine bits are left of it, as long as NumIntRemapMode is 0
//! ([`Control::MORE_INTERRUPTS`](super::Control::MORE_INTERRUPTS)). Of the other kinds
//! each passes or not by a bit of its own in the device table entry.

use super::DeviceInterrupts;
use super::bits::get;
use hv_core::platform::apic::Msi;

/// What a device asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptRequest {
    /// The entry with this index of its table, below [`DeviceInterrupts::ENTRIES`].
    Remappable {
        /// Bits 10:0 of the data.
        index: u16,
    },
    /// SMI, NMI, INIT, or an interrupt of an 8259.
    Special,
}

impl InterruptRequest {
    /// The message for the entry `index`, which is below [`DeviceInterrupts::ENTRIES`].
    pub const fn message(index: u16) -> Msi {
        Msi {
            address: 0xfee0_0000,
            data: index as u32,
        }
    }

    /// Reads a message.
    pub const fn decode(msi: Msi) -> Self {
        match get(msi.data as u64, 0, 11) as u16 {
            index if index < DeviceInterrupts::ENTRIES => Self::Remappable { index },
            _ => Self::Special,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_can_be_named_and_none_beyond() {
        for index in 0..DeviceInterrupts::ENTRIES {
            let request = InterruptRequest::decode(InterruptRequest::message(index));
            assert_eq!(request, InterruptRequest::Remappable { index });
        }
        for data in DeviceInterrupts::ENTRIES.into()..0x800 {
            let address = 0xfee0_0000;
            let request = InterruptRequest::decode(Msi { address, data });
            assert_eq!(request, InterruptRequest::Special, "{data:#x}");
        }
    }

    #[test]
    fn neither_the_addresss_bits_nor_those_above_the_index_matter() {
        let address = 0xfeef_fffc;
        let data = 0xffff_f841;
        assert_eq!(
            InterruptRequest::decode(Msi { address, data }),
            InterruptRequest::Remappable { index: 0x41 }
        );
    }
}
