//! PCI configuration space, by ports CF8h and CFCh and in memory.
//!
//! PCI Local Bus Specification 3.0, section 3.2.2.3.2 (mechanism #1), and PCI Express
//! Base Specification 5.0, section 7.2.2 (ECAM); [`register`] tells what either names.
//! There is bus 0 with a host bridge at 00.0 and the functions that the image passes
//! through, each described by data ([`function`]). Only configuration and MSI-X tables
//! are emulated here; the registers behind BAR 0 are the device's own.

pub mod function;
pub mod msix;
pub mod register;

use super::apic::Request;
use crate::Gpa;
pub use function::{Bar, FunctionState, Interrupts, PassthroughFunction, Placement};
use heapless::Vec;
pub use msix::{MAX_VECTORS, MsixLayout};
use register::Register;
pub use register::{WINDOW, WINDOW_BYTES};
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
        let register = Register::by_address_port(self.address);
        self.read(register) >> (8 * u32::from(port - DATA_PORT))
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
        let register = Register::by_address_port(self.address);
        self.write(register, port - DATA_PORT, width, value)
    }

    /// Reads `width` bytes at this offset into [`WINDOW`]. An access that is not
    /// aligned reads all ones.
    pub fn read_window(&self, offset: u64, width: u8) -> u32 {
        match is_aligned(offset, width) {
            true => self.read(Register::by_window(offset)) >> (8 * (offset & 3)),
            false => u32::MAX,
        }
    }

    /// Writes likewise; one that is not aligned is dropped. Says the same as
    /// [`Self::write_port`].
    pub fn write_window(&mut self, offset: u64, width: u8, value: u32) -> bool {
        is_aligned(offset, width)
            && self.write(
                Register::by_window(offset),
                (offset & 3) as u16,
                width,
                value,
            )
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

    fn read(&self, register: Option<Register>) -> u32 {
        let Some(register) = register.filter(|register| register.function == 0) else {
            return u32::MAX;
        };
        let mut functions = self.functions.iter();
        match functions.find(|(function, _)| function.device == register.device) {
            Some((function, state)) => state.read(function, register.offset),
            None if register.device == 0 => host_bridge(register.offset),
            None => u32::MAX,
        }
    }

    /// Writes `width` bytes from byte `lane` of the register on.
    fn write(&mut self, register: Option<Register>, lane: u16, width: u8, value: u32) -> bool {
        let Some(register) = register.filter(|register| register.function == 0) else {
            return false;
        };
        let mut functions = self.functions.iter_mut();
        let Some((function, state)) =
            functions.find(|(function, _)| function.device == register.device)
        else {
            return false;
        };
        let shift = 8 * u32::from(lane);
        let mask = super::width_mask(width) << shift;
        let before = state.routing();
        state.write(function, register.offset, value << shift & mask, mask);
        before != state.routing()
    }
}

/// The host bridge of a Q35: Intel, no BARs.
fn host_bridge(offset: u16) -> u32 {
    match offset {
        0x00 => 0x29c0_8086,
        0x08 => 0x0600_0000,
        _ => 0,
    }
}

/// Whether an access of `width` bytes stays within 32 bits.
fn is_aligned(offset: u64, width: u8) -> bool {
    matches!(width, 1 | 2 | 4) && offset.is_multiple_of(width.into())
}

#[cfg(test)]
mod tests;
