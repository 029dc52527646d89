//! The virtual platform: everything a guest finds around its CPU and memory.
//!
//! | where | what |
//! | --- | --- |
//! | CPUID | the host's features through a list of those offered ([`cpuid`]) |
//! | MSRs | a table; anything else is #GP ([`msr`]) |
//! | MSRs 800h to 8FFh | a local APIC in x2APIC mode ([`apic`]) |
//! | ports 3F8h to 3FFh | a 16550 without interrupts ([`uart`]) |
//! | port F4h | a 32-bit write ends the guest with that status |
//! | ports CF8h to CFFh | PCI configuration, bus 0 ([`pci`]) |
//!
//! Ports that are not there read as all ones, and writes to them are dropped, as
//! on a real machine.

pub mod apic;
pub mod cpuid;
pub mod msr;
pub mod pci;
pub mod uart;

use crate::vcpu::IoAccess;
use apic::Apic;
use cpuid::HostCpuid;
use pci::PciBus;
use uart::Uart;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The port whose write ends the guest.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// What a write to a port asks of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoEffect {
    /// Nothing.
    None,
    /// The guest ended with this status.
    Exit(u32),
    /// A passthrough function's command register or MSI capability changed.
    PciChanged,
}

/// The devices of one guest.
pub struct Platform {
    /// The local APIC.
    pub apic: Apic,
    /// The serial port.
    pub uart: Uart,
    /// The PCI bus.
    pub pci: PciBus,
    /// Where CPUID values come from.
    pub host_cpuid: HostCpuid,
}

/// The state of all devices. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PlatformState {
    /// The local APIC.
    pub apic: apic::ApicState,
    /// The PCI bus.
    pub pci: pci::PciState,
    /// The serial port.
    pub uart: uart::UartState,
}

/// Why device state from outside is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlatformError {
    /// The local APIC cannot be in that state.
    #[error("the local APIC's state is not one it can have")]
    Apic,
    /// The serial port cannot be in that state.
    #[error("the serial port's state is not one it can have")]
    Uart,
    /// The PCI functions here are not those of the state.
    #[error("the PCI functions of this machine do not match the state")]
    Pci,
}

impl Platform {
    /// A platform after reset with the PCI functions of `pci`.
    pub fn new(host_cpuid: HostCpuid, pci: PciBus) -> Self {
        Self {
            apic: Apic::default(),
            uart: Uart::default(),
            pci,
            host_cpuid,
        }
    }

    /// Reads a port.
    pub fn read_port(&mut self, access: IoAccess) -> u32 {
        let value = match access.port {
            uart::FIRST_PORT..=uart::LAST_PORT if access.width == 1 => {
                u32::from(self.uart.read(access.port - uart::FIRST_PORT))
            }
            pci::ADDRESS_PORT..=pci::LAST_PORT => self.pci.read_port(access.port, access.width),
            _ => u32::MAX,
        };
        value & width_mask(access.width)
    }

    /// Writes a port. A byte for the serial line goes to `console`.
    pub fn write_port(
        &mut self,
        access: IoAccess,
        value: u32,
        console: &mut dyn FnMut(u8),
    ) -> IoEffect {
        let value = value & width_mask(access.width);
        match access.port {
            DEBUG_EXIT_PORT => return IoEffect::Exit(value),
            uart::FIRST_PORT..=uart::LAST_PORT if access.width == 1 => {
                let register = access.port - uart::FIRST_PORT;
                if let Some(byte) = self.uart.write(register, value as u8) {
                    console(byte);
                }
            }
            pci::ADDRESS_PORT..=pci::LAST_PORT
                if self.pci.write_port(access.port, access.width, value) =>
            {
                return IoEffect::PciChanged;
            }
            _ => {}
        }
        IoEffect::None
    }

    /// The state of all devices.
    pub fn save(&self) -> PlatformState {
        PlatformState {
            apic: self.apic.save(),
            pci: self.pci.save(),
            uart: self.uart.save(),
        }
    }

    /// Takes over a state that came from outside. On an error nothing changes.
    pub fn restore(&mut self, state: &PlatformState) -> Result<(), PlatformError> {
        let apic = Apic::restored(&state.apic).ok_or(PlatformError::Apic)?;
        let uart = Uart::restored(&state.uart).ok_or(PlatformError::Uart)?;
        if !self.pci.restore(&state.pci) {
            return Err(PlatformError::Pci);
        }
        (self.apic, self.uart) = (apic, uart);
        Ok(())
    }
}

fn width_mask(width: u8) -> u32 {
    match width {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
