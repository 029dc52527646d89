//! PCI configuration space by ports CF8h and CFCh.
//!
//! PCI Local Bus Specification 3.0, sections 3.2.2.3.2 (mechanism #1), 6.1 (type 0
//! header), 6.8.1 (MSI capability). There is bus 0 with a host bridge at 00.0 and
//! the functions that the image passes through. Only configuration is emulated;
//! the registers behind BAR 0 are the device's own.
//!
//! A BAR answers the size probe, but cannot be moved: it reads back its home
//! address whatever is written. Nor does clearing memory space in the command
//! register take the registers away.

use super::apic::Msi;
use heapless::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The address port; the data ports follow it.
pub const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
/// The last data port.
pub const LAST_PORT: u16 = 0xcff;
/// How many functions can be passed through.
pub const MAX_FUNCTIONS: usize = 4;

/// Where the MSI capability is.
const MSI_CAPABILITY: u8 = 0x40;
/// Memory space, bus master and interrupt disable.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
/// Status: there is a capability list.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// MSI message control: 64-bit addresses, one vector.
const MSI_64_BIT: u16 = 1 << 7;
/// MSI message control: enabled.
const MSI_ENABLE: u16 = 1;

/// What the guest finds out about a function that is passed through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PassthroughFunction {
    /// Its device number on bus 0, 1 to 31. The function number is 0.
    pub device: u8,
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Class, subclass and interface in bits 23:0.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Where BAR 0 lies in the guest, below 4 GiB, aligned to its size.
    pub bar0: u32,
    /// The size of BAR 0, a power of two of at least 16.
    pub bar0_bytes: u32,
}

/// What a guest can change of one function. The layout is fixed: these bytes
/// migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FunctionState {
    msi_address: u64,
    msi_data: u32,
    msi_control: u16,
    command: u16,
    /// To check at the destination that the functions are the same.
    vendor_id: u16,
    device_id: u16,
    device: u8,
    /// 1 after all ones were written to BAR 0.
    bar0_probed: u8,
    interrupt_line: u8,
    present: u8,
}

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
    /// BAR 0 has no proper size or place.
    #[error("BAR 0 is not a power of two of at least 16 bytes at a multiple of its size")]
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

    /// Adds a function and returns its number for [`PciBus::msi`].
    pub fn add(&mut self, function: PassthroughFunction) -> Result<usize, AddFunctionError> {
        let size = function.bar0_bytes;
        if !size.is_power_of_two() || size < 16 || !function.bar0.is_multiple_of(size) {
            return Err(AddFunctionError::Bar);
        }
        let taken = self
            .functions
            .iter()
            .any(|(other, _)| other.device == function.device);
        if taken || !(1..32).contains(&function.device) {
            return Err(AddFunctionError::DeviceNumber(function.device));
        }
        let state = FunctionState {
            vendor_id: function.vendor_id,
            device_id: function.device_id,
            device: function.device,
            present: 1,
            ..FunctionState::default()
        };
        self.functions
            .push((function, state))
            .map_err(|_| AddFunctionError::TooMany)?;
        Ok(self.functions.len() - 1)
    }

    /// The interrupt that the guest wants from a function: the image routes the
    /// physical one to it. `None` while the guest has MSI disabled.
    pub fn msi(&self, function: usize) -> Option<Msi> {
        let (_, state) = self.functions.get(function)?;
        (state.msi_control & MSI_ENABLE != 0).then_some(Msi {
            address: state.msi_address,
            data: state.msi_data,
        })
    }

    /// The command register of a function, as the guest set it.
    pub fn command(&self, function: usize) -> Option<u16> {
        Some(self.functions.get(function)?.1.command)
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

    /// Writes a port from CF8h to CFFh; says whether the command register or MSI
    /// of a function that is passed through changed.
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
        let Some((_, state)) = self.selected().and_then(|at| self.functions.get_mut(at)) else {
            return false;
        };
        let before = *state;
        state.write(register, value, mask);
        before.command != state.command || before.message() != state.message()
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
        let identity = |state: &FunctionState| {
            (
                state.present,
                state.device,
                state.vendor_id,
                state.device_id,
            )
        };
        let ours = self.save();
        let mut pairs = ours.functions.iter().zip(&state.functions);
        if !pairs.all(|(ours, theirs)| identity(ours) == identity(theirs)) {
            return false;
        }
        self.address = state.address;
        for ((_, to), from) in self.functions.iter_mut().zip(&state.functions) {
            *to = FunctionState {
                command: from.command & COMMAND_WRITABLE,
                msi_control: from.msi_control & MSI_ENABLE,
                bar0_probed: u8::from(from.bar0_probed != 0),
                ..*from
            };
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

impl FunctionState {
    fn message(&self) -> (u16, u64, u32) {
        (self.msi_control, self.msi_address, self.msi_data)
    }

    fn read(&self, function: &PassthroughFunction, register: u8) -> u32 {
        const MSI: u8 = MSI_CAPABILITY;
        match register {
            0x00 => u32::from(function.device_id) << 16 | u32::from(function.vendor_id),
            0x04 => STATUS_CAPABILITIES | u32::from(self.command),
            0x08 => function.class << 8 | u32::from(function.revision),
            0x10 if self.bar0_probed != 0 => !(function.bar0_bytes - 1),
            0x10 => function.bar0,
            0x34 => u32::from(MSI_CAPABILITY),
            0x3c => u32::from(self.interrupt_line),
            // Capability 5, the last in the list.
            MSI => u32::from(self.msi_control | MSI_64_BIT) << 16 | 5,
            0x44 => self.msi_address as u32,
            0x48 => (self.msi_address >> 32) as u32,
            0x4c => self.msi_data,
            _ => 0,
        }
    }

    /// Writes the bits of `mask` in the register of four bytes at `register`.
    fn write(&mut self, register: u8, value: u32, mask: u32) {
        const MSI: u8 = MSI_CAPABILITY;
        let merge = |old: u32| old & !mask | value;
        match register {
            0x04 => self.command = merge(self.command.into()) as u16 & COMMAND_WRITABLE,
            0x10 => self.bar0_probed = u8::from(value == u32::MAX),
            0x3c => self.interrupt_line = merge(self.interrupt_line.into()) as u8,
            MSI => {
                let old = u32::from(self.msi_control) << 16;
                self.msi_control = (merge(old) >> 16) as u16 & MSI_ENABLE;
            }
            0x44 => {
                let low = merge(self.msi_address as u32) & !3;
                self.msi_address = self.msi_address >> 32 << 32 | u64::from(low);
            }
            0x48 => {
                let high = merge((self.msi_address >> 32) as u32);
                self.msi_address = u64::from(high) << 32 | self.msi_address & 0xffff_ffff;
            }
            0x4c => self.msi_data = merge(self.msi_data) & 0xffff,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDU: PassthroughFunction = PassthroughFunction {
        device: 4,
        vendor_id: 0x1234,
        device_id: 0x11e8,
        class: 0x00ff00,
        revision: 0x10,
        bar0: 0xe000_0000,
        bar0_bytes: 0x10_0000,
    };

    fn bus() -> PciBus {
        let mut bus = PciBus::new();
        bus.add(EDU).unwrap();
        bus
    }

    fn select(bus: &mut PciBus, device: u32, register: u32) {
        bus.write_port(ADDRESS_PORT, 4, 1 << 31 | device << 11 | register);
    }

    fn read(bus: &mut PciBus, device: u32, register: u32) -> u32 {
        select(bus, device, register);
        bus.read_port(DATA_PORT, 4)
    }

    fn write(bus: &mut PciBus, register: u32, value: u32) -> bool {
        select(bus, 4, register);
        bus.write_port(DATA_PORT, 4, value)
    }

    #[test]
    fn functions_are_found_and_missing_ones_read_all_ones() {
        let mut bus = bus();
        assert_eq!(read(&mut bus, 4, 0), 0x11e8_1234);
        assert_eq!(read(&mut bus, 0, 0), 0x29c0_8086);
        assert_eq!(read(&mut bus, 5, 0), u32::MAX);
        bus.write_port(ADDRESS_PORT, 4, 1 << 31 | 1 << 16);
        assert_eq!(bus.read_port(DATA_PORT, 4), u32::MAX, "bus 1");
        select(&mut bus, 4, 0);
        assert_eq!(bus.read_port(DATA_PORT + 2, 2) & 0xffff, 0x11e8);
    }

    #[test]
    fn the_bar_tells_its_size_and_stays_at_home() {
        let mut bus = bus();
        assert!(!write(&mut bus, 0x10, u32::MAX));
        assert_eq!(read(&mut bus, 4, 0x10), 0xfff0_0000);
        write(&mut bus, 0x10, 0xd000_0000);
        assert_eq!(read(&mut bus, 4, 0x10), 0xe000_0000);
    }

    #[test]
    fn msi_is_reported_while_enabled_and_every_change_is_told() {
        let mut bus = bus();
        assert_eq!(bus.msi(0), None);
        assert!(write(&mut bus, 0x44, 0xfee0_0000));
        assert!(write(&mut bus, 0x4c, 0x41));
        assert!(write(&mut bus, 0x40, 1 << 16));
        let msi = Msi {
            address: 0xfee0_0000,
            data: 0x41,
        };
        assert_eq!(bus.msi(0), Some(msi));
        assert!(!write(&mut bus, 0x40, 1 << 16), "nothing new");
        assert!(write(&mut bus, 0x04, 6));
        assert_eq!(bus.command(0), Some(6));
        assert_eq!(read(&mut bus, 4, 0x40), 0x0081_0005);
    }

    #[test]
    fn a_state_of_other_functions_is_refused() {
        let mut ours = bus();
        write(&mut ours, 0x04, 6);
        let state = ours.save();
        let mut same = bus();
        assert!(same.restore(&state));
        assert_eq!(same.save(), state);
        assert!(!PciBus::new().restore(&state));
    }

    #[test]
    fn impossible_functions_are_refused() {
        let mut bus = bus();
        assert_eq!(bus.add(EDU), Err(AddFunctionError::DeviceNumber(4)));
        let odd = PassthroughFunction {
            device: 5,
            bar0_bytes: 0x3000,
            ..EDU
        };
        assert_eq!(bus.add(odd), Err(AddFunctionError::Bar));
    }
}
