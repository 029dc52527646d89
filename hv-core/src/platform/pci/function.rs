//! The configuration space of a function that is passed through.
//!
//! PCI Local Bus Specification 3.0, sections 6.1 (type 0 header), 6.2.5.1 (base
//! address registers), 6.8.1 (MSI) and 6.8.2 (MSI-X). A guest finds what the
//! description says and nothing of the device's own configuration space: one base
//! address register, one capability, no interrupt line.

use super::msix::{MAX_VECTORS, MsixLayout, MsixState};
use crate::platform::apic::Msi;
use crate::{Gpa, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the one capability is.
const CAPABILITY: u16 = 0x40;
/// Where extended configuration space starts, in which there is nothing: 32 bits of
/// zero say that there is no capability.
const EXTENDED: u16 = 0x100;
const MSI_ID: u32 = 0x05;
const MSIX_ID: u32 = 0x11;
/// Command: the function answers memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Memory space, bus master and interrupt disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
/// Status: there is a capability list.
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// MSI message control: 64-bit addresses, one vector.
const MSI_64_BIT: u16 = 1 << 7;
/// MSI message control: enabled.
const MSI_ENABLE: u16 = 1;
/// Base address register: 64 bits wide, this one and the next.
const BAR_64_BIT: u64 = 0b100;

/// Where a guest may have a function's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// At home only: the register answers the size probe, but reads back its home
    /// address whatever is written, and clearing memory space in the command
    /// register does not take the registers away. For registers that are mapped
    /// into the guest, whose tables do not change while it migrates.
    Fixed,
    /// Wherever a 64-bit base address register says, while memory space is on. For
    /// registers that are emulated or trapped. Where there is memory or another
    /// device, that answers.
    Movable,
}

/// Base address register 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Where firmware put it, below 4 GiB, aligned to the size.
    pub home: u32,
    /// The size, a power of two of at least 16.
    pub bytes: u32,
    /// Whether it can be moved.
    pub placement: Placement,
}

/// How a function interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupts {
    /// By MSI with one vector.
    Msi,
    /// By MSI-X.
    Msix(MsixLayout),
}

/// What the guest finds out about a function that is passed through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PassthroughFunction {
    /// Its device number on bus 0, 1 to 31. The function number is 0.
    pub device: u8,
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Subsystem vendor id in bits 15:0, subsystem id in bits 31:16.
    pub subsystem: u32,
    /// Class, subclass and interface in bits 23:0.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Its registers.
    pub bar0: Bar,
    /// Its interrupts.
    pub interrupts: Interrupts,
}

/// What a guest can change of one function. The layout is fixed: these bytes
/// migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FunctionState {
    msix: MsixState,
    /// What base address register 0 holds, without its type bits.
    bar0: u64,
    msi_address: u64,
    msi_data: u32,
    msi_control: u16,
    command: u16,
    /// To check at the destination that the functions are the same.
    vendor_id: u16,
    device_id: u16,
    device: u8,
    interrupt_line: u8,
    present: u8,
    reserved: u8,
}

impl PassthroughFunction {
    /// Bus, device and function, as they are with each message that it sends.
    pub(super) fn requester_id(&self) -> u16 {
        u16::from(self.device) << 3
    }

    /// Whether what is said of BAR 0 and what lies in it can be.
    pub(super) fn is_possible(&self) -> bool {
        let Bar { home, bytes, .. } = self.bar0;
        let is_bar = bytes.is_power_of_two() && bytes >= 16 && home.is_multiple_of(bytes);
        let is_page = |at: u32| {
            u64::from(at).is_multiple_of(PAGE_SIZE) && u64::from(at) + PAGE_SIZE <= u64::from(bytes)
        };
        is_bar
            && match self.interrupts {
                Interrupts::Msi => true,
                Interrupts::Msix(layout) => {
                    (1..=MAX_VECTORS).contains(&usize::from(layout.vectors))
                        && is_page(layout.table)
                        && is_page(layout.pending)
                        && layout.table != layout.pending
                }
            }
    }

    /// The bits of BAR 0 that can be set.
    fn bar_mask(&self) -> u64 {
        let width = match self.bar0.placement {
            Placement::Fixed => u64::from(u32::MAX),
            Placement::Movable => u64::MAX,
        };
        width & !(u64::from(self.bar0.bytes) - 1)
    }

    /// The function as firmware leaves it.
    pub(super) fn initial(&self) -> FunctionState {
        FunctionState {
            bar0: self.bar0.home.into(),
            vendor_id: self.vendor_id,
            device_id: self.device_id,
            device: self.device,
            present: 1,
            ..FunctionState::default()
        }
    }
}

impl FunctionState {
    /// What must be equal at the destination.
    pub(super) fn identity(&self) -> (u8, u8, u16, u16) {
        (self.present, self.device, self.vendor_id, self.device_id)
    }

    /// The state with the bits gone that no guest can set.
    pub(super) fn sanitised(mut self, function: &PassthroughFunction) -> Self {
        self.command &= COMMAND_WRITABLE;
        self.msi_control &= MSI_ENABLE;
        self.bar0 &= function.bar_mask();
        self.msix = self.msix.sanitised();
        self.reserved = 0;
        self
    }

    pub(super) fn command(&self) -> u16 {
        self.command
    }

    pub(super) fn wants_interrupts(&self) -> bool {
        self.msi_control & MSI_ENABLE != 0 || self.msix.is_enabled()
    }

    /// The device signals `vector`: the message to send now.
    pub(super) fn signal(&mut self, function: &PassthroughFunction, vector: usize) -> Option<Msi> {
        match function.interrupts {
            Interrupts::Msi => (self.msi_control & MSI_ENABLE != 0).then_some(Msi {
                address: self.msi_address,
                data: self.msi_data,
            }),
            Interrupts::Msix(_) => self.msix.signal(vector),
        }
    }

    pub(super) fn take_due(&mut self) -> Option<Msi> {
        self.msix.take_due()
    }

    /// Where the guest has BAR 0, if the function answers there.
    pub(super) fn window(&self, function: &PassthroughFunction) -> Option<Gpa> {
        match function.bar0.placement {
            Placement::Fixed => Some(Gpa::new(function.bar0.home.into())),
            Placement::Movable => {
                (self.command & COMMAND_MEMORY != 0).then_some(Gpa::new(self.bar0))
            }
        }
    }

    /// Reads the MSI-X structures at `offset` into BAR 0; `None` if they are
    /// elsewhere.
    pub(super) fn read_msix(&self, function: &PassthroughFunction, offset: u64) -> Option<u32> {
        match &function.interrupts {
            Interrupts::Msi => None,
            Interrupts::Msix(layout) => self.msix.read(layout, offset),
        }
    }

    pub(super) fn write_msix(&mut self, function: &PassthroughFunction, offset: u64, value: u32) {
        if let Interrupts::Msix(layout) = &function.interrupts {
            self.msix.write(layout, offset, value);
        }
    }

    /// What the image acts on when it changes.
    pub(super) fn routing(&self) -> (u16, u16, u64, u32, u16, u64) {
        let msi = (self.msi_control, self.msi_address, self.msi_data);
        (
            self.command,
            msi.0,
            msi.1,
            msi.2,
            self.msix.control(),
            self.bar0,
        )
    }

    /// Reads the 32 bits at `register` of configuration space.
    pub(super) fn read(&self, function: &PassthroughFunction, register: u16) -> u32 {
        match register {
            EXTENDED.. => 0,
            0x00 => u32::from(function.device_id) << 16 | u32::from(function.vendor_id),
            0x04 => STATUS_CAPABILITIES | u32::from(self.command),
            0x08 => function.class << 8 | u32::from(function.revision),
            0x10 => match function.bar0.placement {
                Placement::Fixed => self.bar0 as u32,
                Placement::Movable => (self.bar0 | BAR_64_BIT) as u32,
            },
            0x14 => (self.bar0 >> 32) as u32,
            0x2c => function.subsystem,
            0x34 => u32::from(CAPABILITY),
            0x3c => u32::from(self.interrupt_line),
            CAPABILITY.. => self.read_capability(&function.interrupts, register - CAPABILITY),
            _ => 0,
        }
    }

    fn read_capability(&self, interrupts: &Interrupts, offset: u16) -> u32 {
        match (interrupts, offset) {
            (Interrupts::Msi, 0) => u32::from(self.msi_control | MSI_64_BIT) << 16 | MSI_ID,
            (Interrupts::Msi, 4) => self.msi_address as u32,
            (Interrupts::Msi, 8) => (self.msi_address >> 32) as u32,
            (Interrupts::Msi, 12) => self.msi_data,
            (Interrupts::Msix(layout), 0) => {
                u32::from(self.msix.control() | (layout.vectors - 1)) << 16 | MSIX_ID
            }
            // Both in BAR 0, which bits 2:0 say.
            (Interrupts::Msix(layout), 4) => layout.table,
            (Interrupts::Msix(layout), 8) => layout.pending,
            _ => 0,
        }
    }

    /// Writes the bits of `mask` in the 32 bits at `register`.
    pub(super) fn write(
        &mut self,
        function: &PassthroughFunction,
        register: u16,
        value: u32,
        mask: u32,
    ) {
        let merge = |old: u32| old & !mask | value;
        match register {
            EXTENDED.. => {}
            0x04 => self.command = merge(self.command.into()) as u16 & COMMAND_WRITABLE,
            0x10 | 0x14 => self.write_bar(function, register == 0x14, value, mask),
            0x3c => self.interrupt_line = merge(self.interrupt_line.into()) as u8,
            CAPABILITY.. => {
                self.write_capability(&function.interrupts, register - CAPABILITY, value, mask);
            }
            _ => {}
        }
    }

    fn write_bar(&mut self, function: &PassthroughFunction, high: bool, value: u32, mask: u32) {
        let shift = if high { 32 } else { 0 };
        let (value, mask) = (u64::from(value) << shift, u64::from(mask) << shift);
        let merged = (self.bar0 & !mask | value) & function.bar_mask();
        self.bar0 = match function.bar0.placement {
            Placement::Movable => merged,
            // The probe for the size.
            Placement::Fixed if merged == function.bar_mask() => merged,
            Placement::Fixed => function.bar0.home.into(),
        };
    }

    fn write_capability(&mut self, interrupts: &Interrupts, offset: u16, value: u32, mask: u32) {
        let merge = |old: u32| old & !mask | value;
        match (interrupts, offset) {
            (Interrupts::Msi, 0) => {
                let old = u32::from(self.msi_control) << 16;
                self.msi_control = (merge(old) >> 16) as u16 & MSI_ENABLE;
            }
            (Interrupts::Msi, 4) => {
                let low = merge(self.msi_address as u32) & !3;
                self.msi_address = self.msi_address >> 32 << 32 | u64::from(low);
            }
            (Interrupts::Msi, 8) => {
                let high = merge((self.msi_address >> 32) as u32);
                self.msi_address = u64::from(high) << 32 | self.msi_address & 0xffff_ffff;
            }
            (Interrupts::Msi, 12) => self.msi_data = merge(self.msi_data) & 0xffff,
            (Interrupts::Msix(_), 0) => {
                let old = u32::from(self.msix.control()) << 16;
                self.msix.set_control((merge(old) >> 16) as u16);
            }
            _ => {}
        }
    }
}
