//! The register map (AMD IOMMU 3.0, 3.4 "IOMMU MMIO Registers"). All registers
//! have 64 bits.

use bitflags::bitflags;

/// Device Table Base: the address in bits 51:12; in bits 8:0 the size, in pages
/// less one.
pub const DEVICE_TABLE: usize = 0x00;
/// Command Buffer Base: see [`Buffer`](super::Buffer).
pub const COMMAND_BUFFER: usize = 0x08;
/// Event Log Base: see [`Buffer`](super::Buffer).
pub const EVENT_LOG: usize = 0x10;
/// IOMMU Control: see [`Control`].
pub const CONTROL: usize = 0x18;
/// Exclusion Range Base: bit 0 switches the range on.
pub const EXCLUSION_BASE: usize = 0x20;
/// IOMMU Extended Feature: see [`Features`](super::Features).
pub const FEATURES: usize = 0x30;
/// Command Buffer Head: the byte offset of the next command to be fetched.
pub const COMMAND_HEAD: usize = 0x2000;
/// Command Buffer Tail: the byte offset of the slot the next command will go to.
pub const COMMAND_TAIL: usize = 0x2008;
/// Event Log Head: the byte offset of the next event to be read.
pub const EVENT_HEAD: usize = 0x2010;
/// Event Log Tail: the byte offset of the slot the next event will go to.
pub const EVENT_TAIL: usize = 0x2018;
/// IOMMU Status: see [`Status`].
pub const STATUS: usize = 0x2020;
/// The size of the register window.
pub const WINDOW: u64 = 0x4000;

bitflags! {
    /// The control register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Control: u64 {
        /// IommuEn: DMA is translated, and commands are fetched.
        const ENABLE = 1 << 0;
        /// HtTunEn: HyperTransport tunnel traffic is translated.
        const TUNNEL = 1 << 1;
        /// EventLogEn: events are written to the log.
        const EVENT_LOG = 1 << 2;
        /// PassPW: posted writes of the unit may pass others.
        const PASS_POSTED = 1 << 8;
        /// ResPassPW: responses may pass posted writes.
        const RESPONSE_PASS_POSTED = 1 << 9;
        /// Coherent: the unit snoops the CPU's caches for the device table.
        const COHERENT = 1 << 10;
        /// Isoc: the unit's own requests are isochronous.
        const ISOCHRONOUS = 1 << 11;
        /// CmdBufEn: commands are fetched.
        const COMMANDS = 1 << 12;
        /// GAEn: interrupt remapping table entries have 128 bits.
        const WIDE_INTERRUPTS = 1 << 17;
        /// NumIntRemapMode, bits 44:43: a request can name more than 512 entries.
        const MORE_INTERRUPTS = 0b11 << 43;
    }
}

bitflags! {
    /// The status register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Status: u64 {
        /// EventOverflow: events were lost, and none is written any more; written
        /// 1 to clear.
        const EVENT_OVERFLOW = 1 << 0;
        /// EventLogRun, read only: events are being logged.
        const EVENTS_RUN = 1 << 3;
        /// CmdBufRun, read only: commands are being fetched.
        const COMMANDS_RUN = 1 << 4;
    }
}
