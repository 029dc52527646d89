//! The two 8259 interrupt controllers, out of the way: firmware leaves the timer's
//! line open, and this runtime takes interrupts through the local APIC only.
#![allow(unsafe_code)]

use x86_64::instructions::port::PortWriteOnly;

const MASK_PORTS: [u16; 2] = [0x21, 0xa1];

/// Masks every line of both controllers.
pub(crate) fn mask_all() {
    for port in MASK_PORTS {
        // SAFETY: the interrupt mask register; masking a line touches no memory.
        unsafe { PortWriteOnly::<u8>::new(port).write(0xff) };
    }
}
