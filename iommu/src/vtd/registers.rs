//! The register map (VT-d 4.1, chapter 11 "Register Descriptions").

use bitflags::bitflags;

/// VER, 32 bits: architecture version, major in bits 7:4, minor in 3:0.
pub const VER: usize = 0x00;
/// CAP, 64 bits: see [`Capabilities`](super::Capabilities).
pub const CAP: usize = 0x08;
/// ECAP, 64 bits: see [`ExtendedCapabilities`](super::ExtendedCapabilities).
pub const ECAP: usize = 0x10;
/// GCMD, 32 bits, write only: see [`Global`].
pub const GCMD: usize = 0x18;
/// GSTS, 32 bits, read only: see [`Global`].
pub const GSTS: usize = 0x1c;
/// RTADDR, 64 bits: the root table's address in bits 63:12; its format in
/// bits 11:10 (00 = legacy).
pub const RTADDR: usize = 0x20;
/// RTADDR: TTM = 01, the root table is one of scalable mode.
pub const RTADDR_SCALABLE: u64 = 1 << 10;
/// CCMD, 64 bits: context-cache invalidation by register.
pub const CCMD: usize = 0x28;
/// FSTS, 32 bits: see [`FaultStatus`].
pub const FSTS: usize = 0x34;
/// FECTL, 32 bits: fault event control.
pub const FECTL: usize = 0x38;
/// FEDATA, 32 bits: data of the fault event's message.
pub const FEDATA: usize = 0x3c;
/// FEADDR, 32 bits: address of the fault event's message.
pub const FEADDR: usize = 0x40;
/// FEUADDR, 32 bits: its upper half.
pub const FEUADDR: usize = 0x44;
/// AFLOG, 64 bits: advanced fault log (no unit is known to have one).
pub const AFLOG: usize = 0x58;
/// PMEN, 32 bits: protected memory regions.
pub const PMEN: usize = 0x64;
/// PLMBASE, 32 bits: base of the low protected region.
pub const PLMBASE: usize = 0x68;
/// PLMLIMIT, 32 bits: its last byte.
pub const PLMLIMIT: usize = 0x6c;
/// PHMBASE, 64 bits: base of the high protected region.
pub const PHMBASE: usize = 0x70;
/// PHMLIMIT, 64 bits: its last byte.
pub const PHMLIMIT: usize = 0x78;
/// IQH, 64 bits, read only: byte offset of the next descriptor to be fetched.
pub const IQH: usize = 0x80;
/// IQT, 64 bits: byte offset of the slot the next descriptor will go to.
pub const IQT: usize = 0x88;
/// IQA, 64 bits: see [`QueueAddress`](super::QueueAddress).
pub const IQA: usize = 0x90;
/// ICS, 32 bits: invalidation completion status.
pub const ICS: usize = 0x9c;
/// IECTL, 32 bits: invalidation event control.
pub const IECTL: usize = 0xa0;
/// IEDATA, 32 bits: data of the invalidation event's message.
pub const IEDATA: usize = 0xa4;
/// IEADDR, 32 bits: address of the invalidation event's message.
pub const IEADDR: usize = 0xa8;
/// IEUADDR, 32 bits: its upper half.
pub const IEUADDR: usize = 0xac;
/// IQERCD, 64 bits: details of a queue error.
pub const IQERCD: usize = 0xb0;
/// IRTA, 64 bits: see [`InterruptTableAddress`](super::InterruptTableAddress).
pub const IRTA: usize = 0xb8;

/// FECTL and IECTL: the event's message is held back.
pub const EVENT_MASK: u32 = 1 << 31;
/// FECTL and IECTL, read only: a message is waiting for the mask to go.
pub const EVENT_PENDING: u32 = 1 << 30;
/// ICS: a wait descriptor with its interrupt flag completed; written 1 to clear.
pub const ICS_WAIT_COMPLETE: u32 = 1 << 0;
/// PMEN: enables the protected regions.
pub const PMEN_ENABLE: u32 = 1 << 31;
/// PMEN, read only: the protected regions are in force.
pub const PMEN_STATUS: u32 = 1 << 0;
/// IQH and IQT: the byte offset's bits, for 128-bit descriptors.
pub const QUEUE_OFFSET: u64 = 0x7_fff0;

bitflags! {
    /// GCMD's commands and, at the same bits, GSTS's answers (11.4.4).
    ///
    /// A command is given by writing every lasting state that is in force plus
    /// the one bit to change; the others would be turned off by the same write.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Global: u32 {
        /// TE / TES: DMA is translated.
        const TRANSLATION = 1 << 31;
        /// SRTP / RTPS: take RTADDR as the root table.
        const ROOT_TABLE = 1 << 30;
        /// SFL / FLS: take AFLOG as the fault log.
        const FAULT_LOG = 1 << 29;
        /// EAFL / AFLS: log to the advanced fault log.
        const ADVANCED_LOGGING = 1 << 28;
        /// WBF / WBFS: flush the write buffer; the answer is set while it runs.
        const WRITE_BUFFER_FLUSH = 1 << 27;
        /// QIE / QIES: the invalidation queue is in use.
        const QUEUED_INVALIDATION = 1 << 26;
        /// IRE / IRES: interrupts are remapped.
        const INTERRUPT_REMAPPING = 1 << 25;
        /// SIRTP / IRTPS: take IRTA as the interrupt remapping table.
        const INTERRUPT_TABLE = 1 << 24;
        /// CFI / CFIS: compatibility format interrupts pass.
        const COMPATIBILITY_INTERRUPTS = 1 << 23;
    }
}

impl Global {
    /// Those that are orders for the moment rather than lasting states. Their
    /// answers may stay set and are not to be written back with a later command.
    pub const ONE_SHOT: Self = Self::ROOT_TABLE
        .union(Self::FAULT_LOG)
        .union(Self::WRITE_BUFFER_FLUSH)
        .union(Self::INTERRUPT_TABLE);
}

bitflags! {
    /// FSTS's flags (11.4.7.1). Bits 15:8 hold the index of the oldest record.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FaultStatus: u32 {
        /// PFO: a fault was lost because every record was in use; written 1 to
        /// clear, and nothing is recorded before that.
        const OVERFLOW = 1 << 0;
        /// PPF, read only: some record has its F bit set.
        const PENDING = 1 << 1;
        /// AFO: the advanced fault log overflowed; written 1 to clear.
        const ADVANCED_OVERFLOW = 1 << 2;
        /// APF: the advanced fault log has entries; written 1 to clear.
        const ADVANCED_PENDING = 1 << 3;
        /// IQE: the descriptor at the queue's head is malformed, and the queue
        /// stands still; written 1 to clear.
        const QUEUE_ERROR = 1 << 4;
        /// ICE: a device answered a device-TLB invalidation wrongly; written 1 to
        /// clear.
        const COMPLETION_ERROR = 1 << 5;
        /// ITE: a device did not answer a device-TLB invalidation; written 1 to
        /// clear.
        const TIMEOUT_ERROR = 1 << 6;
    }
}

impl FaultStatus {
    /// The errors that mean an invalidation was not carried out.
    pub const QUEUE_FAILURES: Self = Self::QUEUE_ERROR
        .union(Self::COMPLETION_ERROR)
        .union(Self::TIMEOUT_ERROR);

    /// FRI of FSTS: the index of the oldest record, valid while
    /// [`FaultStatus::PENDING`] is set.
    pub const fn oldest_record(fsts: u32) -> u8 {
        (fsts >> 8) as u8
    }
}
