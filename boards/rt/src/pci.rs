//! PCI functions, through the configuration ports (PCI Local Bus 3.0, section
//! 3.2.2.3.2 "Software Generation of Configuration Transactions").
#![allow(unsafe_code)]

use crate::physical::PhysRange;
use hv_core::platform::apic::Msi;
use pci_types::capability::{MsiCapability, MsixCapability, PciCapability, PciCapabilityAddress};
use pci_types::{
    Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, PciAddress, PciHeader,
};
use x86_64::instructions::port::{Port, PortWriteOnly};

/// Vendor and device id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceId(pub u16, pub u16);

impl core::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:04x}:{:04x}", self.0, self.1)
    }
}

/// QEMU's teaching device.
pub const EDU: DeviceId = DeviceId(0x1234, 0x11e8);
/// Memory shared with another machine: the link.
pub const IVSHMEM: DeviceId = DeviceId(0x1af4, 0x1110);

/// Class, subclass and interface of a function (PCI Code and ID Assignment
/// Specification).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(pub u32);

impl core::fmt::Display for Class {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// An NVM Express I/O controller.
pub const NVME: Class = Class(0x01_0802);

/// What the guest is told of a function beside its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its class.
    pub class: Class,
    /// Its revision.
    pub revision: u8,
    /// Subsystem vendor id in bits 15:0, subsystem id in bits 31:16.
    pub subsystem: u32,
}

/// Where a function has its MSI-X structures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixPlace {
    /// How many vectors there are.
    pub vectors: u16,
    /// The table's offset into BAR 0.
    pub table: u32,
    /// The pending bits' offset into BAR 0.
    pub pending: u32,
}

/// The machine lacks a device, or the device lacks something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PciError {
    /// No such function on any bus.
    #[error("there is no PCI device {0}")]
    NoDevice(DeviceId),
    /// The base address register does not name memory.
    #[error("PCI device {0} has no memory behind base address register {1}")]
    NoBar(DeviceId, u8),
    /// No message-signalled interrupts.
    #[error("PCI device {0} has no MSI capability")]
    NoMsi(DeviceId),
    /// No MSI-X, or its structures are not in BAR 0.
    #[error("PCI device {0} has no MSI-X capability with its table in base address register 0")]
    NoMsix(DeviceId),
}

/// The ports 0xCF8 and 0xCFC of the machine.
#[derive(Debug)]
pub struct ConfigPorts(());

impl ConfigPorts {
    /// The machine's configuration ports.
    ///
    /// # Safety
    /// This is an image on a PC, on its only CPU: an access is a pair of port
    /// accesses that nothing may come between.
    pub const unsafe fn new() -> Self {
        Self(())
    }

    fn select(address: PciAddress, offset: u16) {
        let value = 1 << 31
            | u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(offset & 0xfc);
        // SAFETY: the address port only selects what the data port means.
        unsafe { PortWriteOnly::<u32>::new(0xcf8).write(value) };
    }
}

impl ConfigRegionAccess for ConfigPorts {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        Self::select(address, offset);
        // SAFETY: reads of configuration space have no effect on memory.
        unsafe { Port::<u32>::new(0xcfc).read() }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        Self::select(address, offset);
        // SAFETY: the caller promises that the write is valid. A device can reach
        // memory by DMA only as far as the remapping unit lets it.
        unsafe { Port::<u32>::new(0xcfc).write(value) };
    }
}

/// The 32 bits at `offset`, a multiple of 4, of the configuration space of the
/// function with that requester id on segment 0; all ones if there is none.
pub fn read_config(access: &impl ConfigRegionAccess, requester_id: u16, offset: u16) -> u32 {
    let [devfn, bus] = requester_id.to_le_bytes();
    let address = PciAddress::new(0, bus, devfn >> 3, devfn & 7);
    // SAFETY: reads of configuration space have no effect on memory.
    unsafe { access.read(address, offset) }
}

/// A PCI function that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    address: PciAddress,
    id: DeviceId,
}

impl Function {
    /// The first function with that id, in bus order.
    pub fn find(access: &impl ConfigRegionAccess, id: DeviceId) -> Result<Self, PciError> {
        Self::search(access, |function| function.id == id).ok_or(PciError::NoDevice(id))
    }

    /// The first function of that class, in bus order.
    pub fn of_class(access: &impl ConfigRegionAccess, class: Class) -> Option<Self> {
        Self::search(access, |function| function.identity(access).class == class)
    }

    fn search(access: &impl ConfigRegionAccess, is_wanted: impl Fn(&Self) -> bool) -> Option<Self> {
        for bus in 0..=255 {
            for device in 0..32 {
                let first = PciHeader::new(PciAddress::new(0, bus, device, 0));
                if first.id(access).0 == 0xffff {
                    continue;
                }
                let functions = if first.has_multiple_functions(access) {
                    8
                } else {
                    1
                };
                for function in 0..functions {
                    let address = PciAddress::new(0, bus, device, function);
                    let (vendor, device) = PciHeader::new(address).id(access);
                    let id = DeviceId(vendor, device);
                    let function = Self { address, id };
                    if vendor != 0xffff && is_wanted(&function) {
                        return Some(function);
                    }
                }
            }
        }
        None
    }

    /// Its id.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// What it says of itself beside its id.
    pub fn identity(&self, access: &impl ConfigRegionAccess) -> Identity {
        let [class, subsystem] =
            [0x08, 0x2c].map(|offset| read_config(access, self.requester_id(), offset));
        Identity {
            class: Class(class >> 8),
            revision: class as u8,
            subsystem,
        }
    }

    /// Its requester id: bus, device and function, 16 bits.
    pub fn requester_id(&self) -> u16 {
        u16::from(self.address.bus()) << 8
            | u16::from(self.address.device()) << 3
            | u16::from(self.address.function())
    }

    /// The memory behind base address register `index`.
    pub fn bar(&self, access: &impl ConfigRegionAccess, index: u8) -> Result<PhysRange, PciError> {
        let no_bar = PciError::NoBar(self.id, index);
        let (start, bytes) = match self.header(access).and_then(|it| it.bar(index, access)) {
            Some(Bar::Memory32 { address, size, .. }) => (u64::from(address), u64::from(size)),
            Some(Bar::Memory64 { address, size, .. }) => (address, size),
            Some(Bar::Io { .. }) | None => return Err(no_bar),
        };
        // Unassigned by the firmware.
        if start == 0 || bytes == 0 {
            return Err(no_bar);
        }
        PhysRange::new(start, bytes).ok_or(no_bar)
    }

    /// Lets the function answer memory accesses, and do DMA or not; its interrupt
    /// line is silenced.
    pub fn enable(&self, access: &impl ConfigRegionAccess, bus_master: bool) {
        PciHeader::new(self.address).update_command(access, |command| {
            let mut command =
                command | CommandRegister::MEMORY_ENABLE | CommandRegister::INTERRUPT_DISABLE;
            command.set(CommandRegister::BUS_MASTER_ENABLE, bus_master);
            command
        });
    }

    /// Makes the function's interrupts this message.
    pub fn enable_msi(
        &self,
        access: &impl ConfigRegionAccess,
        message: Msi,
    ) -> Result<(), PciError> {
        let msi = self.msi(access)?;
        msi.set_enabled(false, access);
        msi.set_message_info(message.address, message.data, access);
        msi.set_enabled(true, access);
        Ok(())
    }

    /// Sends no messages any more.
    pub fn disable_msi(&self, access: &impl ConfigRegionAccess) -> Result<(), PciError> {
        self.msi(access)?.set_enabled(false, access);
        Ok(())
    }

    /// Where the MSI-X structures are.
    pub fn msix_place(&self, access: &impl ConfigRegionAccess) -> Result<MsixPlace, PciError> {
        let msix = self.msix(access)?;
        if (msix.table_bar(), msix.pba_bar()) != (0, 0) {
            return Err(PciError::NoMsix(self.id));
        }
        Ok(MsixPlace {
            vectors: msix.table_size(),
            table: msix.table_offset(),
            pending: msix.pba_offset(),
        })
    }

    /// Lets the vectors of the MSI-X table send messages, or none.
    pub fn enable_msix(&self, access: &impl ConfigRegionAccess, on: bool) -> Result<(), PciError> {
        self.msix(access)?.set_enabled(on, access);
        Ok(())
    }

    fn express(&self, access: &impl ConfigRegionAccess) -> Option<u16> {
        self.capability(access, |capability| match capability {
            PciCapability::PciExpress(PciCapabilityAddress { offset, .. }) => Some(offset),
            _ => None,
        })
    }

    fn msi(&self, access: &impl ConfigRegionAccess) -> Result<MsiCapability, PciError> {
        self.capability(access, |capability| match capability {
            PciCapability::Msi(msi) => Some(msi),
            _ => None,
        })
        .ok_or(PciError::NoMsi(self.id))
    }

    fn msix(&self, access: &impl ConfigRegionAccess) -> Result<MsixCapability, PciError> {
        self.capability(access, |capability| match capability {
            PciCapability::MsiX(msix) => Some(msix),
            _ => None,
        })
        .ok_or(PciError::NoMsix(self.id))
    }

    fn capability<T>(
        &self,
        access: &impl ConfigRegionAccess,
        pick: impl FnMut(PciCapability) -> Option<T>,
    ) -> Option<T> {
        self.header(access)?
            .capabilities(access)
            .take(MAX_CAPABILITIES)
            .find_map(pick)
    }

    fn header(&self, access: &impl ConfigRegionAccess) -> Option<EndpointHeader> {
        let header = PciHeader::new(self.address);
        match header.header_type(access) {
            HeaderType::Endpoint => EndpointHeader::from_header(header, access),
            _ => None,
        }
    }
}

/// As many as fit in configuration space: a list that goes in circles ends here.
const MAX_CAPABILITIES: usize = 48;

impl core::fmt::Display for Function {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let at = self.address;
        write!(
            f,
            "{:02x}:{:02x}.{} [{}]",
            at.bus(),
            at.device(),
            at.function(),
            self.id
        )
    }
}

mod reset;
#[cfg(test)]
mod tests;
