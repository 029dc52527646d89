//! Function level reset (PCI Express Base Specification 5.0, section 6.6.2; the
//! registers: section 7.5.3).

use super::{Function, read_config};
use pci_types::ConfigRegionAccess;

/// Offsets into the PCI Express capability.
const CAPABILITIES: u16 = 4;
const CONTROL_STATUS: u16 = 8;
/// Device capabilities: the function can reset itself.
const CAN_RESET: u32 = 1 << 28;
/// Device control: reset now.
const RESET: u32 = 1 << 15;
/// Device status: requests of its own are under way.
const PENDING: u32 = 1 << 21;
/// The base address registers of an endpoint.
const BARS: [u16; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
const DRAIN_US: u64 = 1_000;
const DRAINS: u32 = 100;
const RESET_US: u64 = 100_000;

impl Function {
    /// Resets the function, if it knows how to, and says whether it does. It
    /// afterwards has its base address registers as before, answers memory accesses
    /// and does no DMA. `wait` waits for so many microseconds at least.
    pub fn reset(&self, access: &impl ConfigRegionAccess, wait: &mut impl FnMut(u64)) -> bool {
        let read = |offset| read_config(access, self.requester_id(), offset);
        // SAFETY: the function's DMA is confined by the remapping unit; what is
        // written are its own registers, as the specification says.
        let write = |offset, value| unsafe { access.write(self.address, offset, value) };
        let Some(capability) = self.express(access) else {
            return false;
        };
        if read(capability + CAPABILITIES) & CAN_RESET == 0 {
            return false;
        }
        let bars = BARS.map(read);
        self.enable(access, false);
        for _ in 0..DRAINS {
            if read(capability + CONTROL_STATUS) & PENDING == 0 {
                break;
            }
            wait(DRAIN_US);
        }
        // The status bits in the upper half are cleared by ones.
        let control = read(capability + CONTROL_STATUS) & 0xffff;
        write(capability + CONTROL_STATUS, control | RESET);
        wait(RESET_US);
        for (offset, value) in BARS.into_iter().zip(bars) {
            write(offset, value);
        }
        self.enable(access, false);
        true
    }
}
