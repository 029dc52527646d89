//! Entries of the queues (NVM Express Base Specification 2.0, sections 3.3.3.1 and
//! 3.3.3.2), and the commands that matter here (sections 5 and 7).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Admin commands.
pub(super) mod admin {
    pub(in super::super) const DELETE_SUBMISSION: u8 = 0x00;
    pub(in super::super) const CREATE_SUBMISSION: u8 = 0x01;
    pub(in super::super) const DELETE_COMPLETION: u8 = 0x04;
    pub(in super::super) const CREATE_COMPLETION: u8 = 0x05;
    pub(in super::super) const SET_FEATURES: u8 = 0x09;
    pub(in super::super) const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request: completes when there is an event, if ever.
    pub(in super::super) const EVENT_REQUEST: u8 = 0x0c;
    /// Doorbell Buffer Config: from then on queues move without doorbells.
    pub(in super::super) const DOORBELL_BUFFER: u8 = 0x7c;
    /// No command: a controller answers Invalid Command Opcode.
    pub(in super::super) const NONE: u8 = 0x7e;
}

/// Feature identifiers (section 5.27, figure "Feature Identifiers").
pub(super) mod feature {
    /// Its data is in memory.
    pub(in super::super) const LBA_RANGE: u8 = 0x03;
    pub(in super::super) const NUMBER_OF_QUEUES: u8 = 0x07;
    /// A table in memory of when to save power; a hint.
    pub(in super::super) const AUTONOMOUS_POWER: u8 = 0x0c;
    /// Lends memory of the host to the controller.
    pub(in super::super) const HOST_MEMORY: u8 = 0x0d;
    /// The time of day, for the controller's own log.
    pub(in super::super) const TIMESTAMP: u8 = 0x0e;
    /// What the host knows of, [`super::BEHAVIOR_BYTES`] in memory.
    pub(in super::super) const HOST_BEHAVIOR: u8 = 0x16;
    /// Its data is in memory.
    pub(in super::super) const HOST_IDENTIFIER: u8 = 0x81;
}

/// Bytes of the Host Behavior Support data structure (section 5.27.1.18).
pub(super) const BEHAVIOR_BYTES: usize = 512;

/// Flush, of the NVM command set: changes nothing that a guest could see.
pub(super) const FLUSH: u8 = 0x00;

/// An entry of a submission queue.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Command {
    /// Which command.
    pub(super) opcode: u8,
    /// Fused operation, and how data is described.
    pub(super) flags: u8,
    /// Chosen by who submits; the completion repeats it.
    pub(super) id: u16,
    /// The namespace.
    pub(super) namespace: u32,
    /// Depends on the command.
    pub(super) reserved: u64,
    /// Where metadata is.
    pub(super) metadata: u64,
    /// Where data is.
    pub(super) data: [u64; 2],
    /// Dwords 10 to 15.
    pub(super) words: [u32; 6],
}

/// An entry of a completion queue.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Completion {
    /// Depends on the command.
    pub(super) result: u32,
    /// Depends on the command.
    pub(super) reserved: u32,
    /// How far the submission queue was read.
    pub(super) submission_head: u16,
    /// Which submission queue.
    pub(super) submission: u16,
    /// The command's.
    pub(super) id: u16,
    /// Bit 0: the phase. Above: 0 for success.
    pub(super) status: u16,
}

impl Completion {
    /// Bytes of an entry.
    pub(super) const BYTES: u64 = 16;

    /// The phase tag, 0 or 1.
    pub(super) const fn phase(&self) -> u32 {
        self.status as u32 & 1
    }

    /// Whether the command succeeded.
    pub(super) const fn is_success(&self) -> bool {
        self.status >> 1 == 0
    }
}

impl Command {
    /// Bytes of an entry.
    pub(super) const BYTES: u64 = 64;

    /// A command without data.
    pub(super) fn new(opcode: u8, words: [u32; 6]) -> Self {
        Self {
            opcode,
            words,
            ..Self::default()
        }
    }
}
