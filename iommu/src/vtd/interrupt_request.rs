//! The message by which a function names an entry of the interrupt remapping table
//! (VT-d 4.1, 5.1.2.2 "Interrupt Requests in Remappable Format").
//!
//! ```text
//! address  31        20 19            5  4   3     2         1:0
//!         |    FEEh    | handle[14:0] | 1 | SHV | handle[15] | - |
//! data     31           16 15         0
//!         |   reserved    | subhandle  |     both 0 unless SHV = 1
//! ```
//!
//! With bit 4 of the address clear the message is in compatibility format: it says
//! itself which CPU it is for.

use super::bits::{flag, get};
use super::interrupt_fault::InterruptFaultReason;
use hv_core::platform::apic::Msi;

/// What a function asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptRequest {
    /// The entry with this index, which may be beyond any table.
    Remappable {
        /// Handle, plus subhandle if there is one (SHV).
        index: u32,
    },
    /// Whatever the message says.
    Compatibility,
}

impl InterruptRequest {
    /// The message for the entry `index`, without a subhandle.
    pub const fn message(index: u16) -> Msi {
        let (low, high) = (index as u64 & 0x7fff, index as u64 >> 15);
        Msi {
            address: 0xfee0_0000 | low << 5 | 1 << 4 | high << 2,
            data: 0,
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// Bits beyond the subhandle are set, or of the address above bit 31.
    pub const fn decode(msi: Msi) -> Result<Self, InterruptFaultReason> {
        if !flag(msi.address, 4) {
            return Ok(Self::Compatibility);
        }
        if msi.address >> 32 != 0 {
            return Err(InterruptFaultReason::RequestReserved);
        }
        let handle = get(msi.address, 5, 15) as u32 | (flag(msi.address, 2) as u32) << 15;
        let subhandle = match flag(msi.address, 3) {
            // What an I/O APIC sends has vector and trigger mode there.
            false => 0,
            true if msi.data >> 16 != 0 => return Err(InterruptFaultReason::RequestReserved),
            true => msi.data,
        };
        Ok(Self::Remappable {
            index: handle + subhandle,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_handle_reads_back() {
        for index in 0..=u16::MAX {
            let request = InterruptRequest::decode(InterruptRequest::message(index));
            let index = index.into();
            assert_eq!(request, Ok(InterruptRequest::Remappable { index }));
        }
        assert_eq!(InterruptRequest::message(0x8001).address, 0xfee0_0034);
    }

    #[test]
    fn a_subhandle_counts_only_when_it_is_valid() {
        let decode = |address, data| InterruptRequest::decode(Msi { address, data });
        let index = |index| Ok(InterruptRequest::Remappable { index });
        assert_eq!(decode(0xfee0_0030, 3), index(1));
        assert_eq!(decode(0xfee0_0038, 3), index(4));
        // Beyond what any table has, and not wrapped to what one has.
        assert_eq!(decode(0xfeef_fffc, 0xffff), index(0xffff + 0xffff));
        let reserved = Err(InterruptFaultReason::RequestReserved);
        assert_eq!(decode(0xfee0_0038, 1 << 16), reserved);
        assert_eq!(decode(0x1_fee0_0030, 0), reserved);
        assert_eq!(
            decode(0xfee0_0000, 0x41),
            Ok(InterruptRequest::Compatibility)
        );
    }
}
