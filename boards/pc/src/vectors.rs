//! Which interrupt vector is whose.

use hv_core::platform::pci::MAX_VECTORS;
use strandline_rt::apic::SPURIOUS_VECTOR;

/// The periodic tick of the local APIC's timer.
pub const TICK: u8 = 0x40;
/// The passthrough device's message-signalled interrupt.
pub const DEVICE: u8 = 0x41;
/// Another CPU has left the guest, or is to.
pub const PROCESSOR: u8 = 0x42;
/// The first of the passthrough device's MSI-X vectors, of which there are
/// [`hv_core::platform::pci::MAX_VECTORS`] at the most.
pub const DEVICE_MSIX: u8 = 0x50;

/// Whether somebody here has a use for the vector.
pub fn is_known(vector: u8) -> bool {
    let vectors = DEVICE_MSIX..DEVICE_MSIX + MAX_VECTORS as u8;
    [TICK, DEVICE, PROCESSOR, SPURIOUS_VECTOR].contains(&vector) || vectors.contains(&vector)
}
