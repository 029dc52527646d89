//! PCI configuration space by ports CF8h and CFCh.
//!
//! PCI Local Bus Specification 3.0, section 3.2.2.3.2 (mechanism #1). There is bus 0
//! with a host bridge at 00.0 and the functions that the image passes through, each
//! described by data ([`function`]). Only configuration and MSI-X tables are
//! emulated here; the registers behind BAR 0 are the device's own.

pub mod function;
pub mod msix;

use super::apic::Request;
use crate::Gpa;
pub use function::{Bar, FunctionState, Interrupts, PassthroughFunction, Placement};
use heapless::Vec;
pub use msix::{MAX_VECTORS, MsixLayout};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The address port; the data ports follow it.
pub const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
/// The last data port.
pub const LAST_PORT: u16 = 0xcff;
/// How many functions can be passed through.
pub const MAX_FUNCTIONS: usize = 4;

/// The state of the bus. The layout is fixed: these bytes migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PciState {
    functions: [FunctionState; MAX_FUNCTIONS],
    address: u32,
    reserved: u32,
}

/// Why a function cannot be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddFunctionError {
    /// There are [`MAX_FUNCTIONS`] already.
    #[error("at most {MAX_FUNCTIONS} functions can be passed through")]
    TooMany,
    /// The device number is taken or not on the bus.
    #[error("device number {0} is taken or above 31")]
    DeviceNumber(u8),
    /// BAR 0 has no proper size or place, or MSI-X does not fit in it.
    #[error(
        "BAR 0 is not a power of two of at least 16 bytes at a multiple of its size, or the MSI-X \
         structures are not whole pages of it"
    )]
    Bar,
}

/// The bus.
#[derive(Default)]
pub struct PciBus {
    address: u32,
    functions: Vec<(PassthroughFunction, FunctionState), MAX_FUNCTIONS>,
}

impl PciBus {
    /// A bus with a host bridge.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function and returns its number for [`PciBus::signal`].
    pub fn add(&mut self, function: PassthroughFunction) -> Result<usize, AddFunctionError> {
        if !function.is_possible() {
            return Err(AddFunctionError::Bar);
        }
        let taken = self
            .functions
            .iter()
            .any(|(other, _)| other.device == function.device);
        if taken || !(1..32).contains(&function.device) {
            return Err(AddFunctionError::DeviceNumber(function.device));
        }
        self.functions
            .push((function, function.initial()))
            .map_err(|_| AddFunctionError::TooMany)?;
        Ok(self.functions.len() - 1)
    }

    /// A device signals one of its vectors (0 with MSI). The message is sent, unless
    /// the guest masked it: then it waits.
    pub fn signal(&mut self, function: usize, vector: usize) -> Option<Request> {
        let (function, state) = self.functions.get_mut(function)?;
        let msi = state.signal(function, vector)?;
        let source = function.requester_id();
        Some(Request { source, msi })
    }

    /// A message that waited and that nothing masks any more. To be asked, until
    /// there is none, after every write to the bus.
    pub fn take_due(&mut self) -> Option<Request> {
        self.functions.iter_mut().find_map(|(function, state)| {
            let msi = state.take_due()?;
            let source = function.requester_id();
            Some(Request { source, msi })
        })
    }

    /// Whether the guest has turned MSI or MSI-X on.
    pub fn wants_interrupts(&self, function: usize) -> bool {
        let state = self.functions.get(function);
        state.is_some_and(|(_, state)| state.wants_interrupts())
    }

    /// Where the guest has the registers of a function, if it lets them answer.
    pub fn window(&self, function: usize) -> Option<Gpa> {
        let (function, state) = self.functions.get(function)?;
        state.window(function)
    }

    /// Reads MSI-X structures in memory; `None` where there are none.
    pub fn read_memory(&self, gpa: Gpa) -> Option<u32> {
        self.functions.iter().find_map(|(function, state)| {
            let offset = gpa.raw().checked_sub(state.window(function)?.raw())?;
            state.read_msix(function, offset)
        })
    }

    /// Writes them; says whether there are any.
    pub fn write_memory(&mut self, gpa: Gpa, value: u32) -> bool {
        let found = self.functions.iter_mut().find_map(|(function, state)| {
            let offset = gpa.raw().checked_sub(state.window(function)?.raw())?;
            state.read_msix(function, offset)?;
            Some((function, state, offset))
        });
        let Some((function, state, offset)) = found else {
            return false;
        };
        state.write_msix(function, offset, value);
        true
    }

    /// The command register of a function, as the guest set it.
    pub fn command(&self, function: usize) -> Option<u16> {
        Some(self.functions.get(function)?.1.command())
    }

    /// Reads `width` bytes at a port from CF8h to CFFh.
    pub fn read_port(&self, port: u16, width: u8) -> u32 {
        if port < DATA_PORT {
            return if port == ADDRESS_PORT && width == 4 {
                self.address
            } else {
                u32::MAX
            };
        }
        let dword = self.read_dword();
        dword >> (8 * u32::from(port - DATA_PORT))
    }

    /// Writes a port from CF8h to CFFh; says whether the command register, BAR 0,
    /// or MSI or MSI-X of a function that is passed through changed.
    pub fn write_port(&mut self, port: u16, width: u8, value: u32) -> bool {
        if port < DATA_PORT {
            if port == ADDRESS_PORT && width == 4 {
                self.address = value;
            }
            return false;
        }
        let shift = 8 * u32::from(port - DATA_PORT);
        let mask = super::width_mask(width) << shift;
        let value = value << shift & mask;
        let register = (self.address & 0xfc) as u8;
        let Some((function, state)) = self.selected().and_then(|at| self.functions.get_mut(at))
        else {
            return false;
        };
        let before = state.routing();
        state.write(function, register, value, mask);
        before != state.routing()
    }

    /// The state of the bus.
    pub fn save(&self) -> PciState {
        let mut state = PciState {
            address: self.address,
            ..PciState::default()
        };
        for (to, (_, from)) in state.functions.iter_mut().zip(&self.functions) {
            *to = *from;
        }
        state
    }

    /// Takes over a state, if its functions are those of this bus.
    #[must_use]
    pub fn restore(&mut self, state: &PciState) -> bool {
        let ours = self.save();
        let mut pairs = ours.functions.iter().zip(&state.functions);
        if !pairs.all(|(ours, theirs)| ours.identity() == theirs.identity()) {
            return false;
        }
        self.address = state.address;
        for ((function, to), from) in self.functions.iter_mut().zip(&state.functions) {
            *to = from.sanitised(function);
        }
        true
    }

    /// The index of the function that the address port names.
    fn selected(&self) -> Option<usize> {
        let device = self.device_selected()?;
        self.functions
            .iter()
            .position(|(function, _)| function.device == device)
    }

    /// The device number that the address port names, on bus 0, function 0.
    fn device_selected(&self) -> Option<u8> {
        let enabled = self.address & 1 << 31 != 0;
        let (bus, function) = (self.address >> 16 & 0xff, self.address >> 8 & 7);
        (enabled && bus == 0 && function == 0).then_some((self.address >> 11 & 0x1f) as u8)
    }

    fn read_dword(&self) -> u32 {
        let register = (self.address & 0xfc) as u8;
        if let Some((function, state)) = self.selected().and_then(|at| self.functions.get(at)) {
            return state.read(function, register);
        }
        match (self.device_selected(), register) {
            // The host bridge of a Q35: Intel, no BARs.
            (Some(0), 0x00) => 0x29c0_8086,
            (Some(0), 0x08) => 0x0600_0000,
            (Some(0), _) => 0,
            _ => u32::MAX,
        }
    }
}

#[cfg(test)]
mod tests;
