//! The reasons in `Refuse` and `Abort`.

use super::{Kind, StreamError};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// Why the destination does not take the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It speaks another version of the stream.
    #[error("another version of the stream")]
    Version,
    /// The guest's memory does not fit there, in size or in layout.
    #[error("the guest's memory does not fit")]
    Memory,
    /// It lacks a device or a CPU feature that a section is about.
    #[error("a section of the guest's state cannot be loaded")]
    Sections,
    /// The operator decided so.
    #[error("the destination's policy")]
    Policy,
    /// A reason of a later version.
    #[error("reason {0}")]
    Other(u16),
}

impl Refusal {
    fn code(self) -> u16 {
        match self {
            Self::Version => 1,
            Self::Memory => 2,
            Self::Sections => 3,
            Self::Policy => 4,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::Memory,
            3 => Self::Sections,
            4 => Self::Policy,
            code => Self::Other(code),
        }
    }

    /// Writes the payload and returns its length.
    pub(crate) fn write(self, to: &mut [u8]) -> usize {
        write_code(self.code(), to)
    }

    pub(crate) fn read(payload: &[u8]) -> Result<Self, StreamError> {
        read_code(Kind::Refuse, payload).map(Self::from_code)
    }
}

/// Why a side gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbortReason {
    /// The operator asked for it.
    #[error("cancelled")]
    Cancelled,
    /// It got a malformed stream, or the link failed.
    #[error("a malformed stream")]
    Stream,
    /// The peer was silent too long.
    #[error("a timeout")]
    Timeout,
    /// Its own machine could not do what was needed.
    #[error("a failure of the machine")]
    Machine,
    /// The audit found pages that differ.
    #[error("pages differ in the audit")]
    Audit,
    /// The guest dirties memory faster than it can be sent.
    #[error("no convergence")]
    NoConvergence,
    /// A reason of a later version.
    #[error("reason {0}")]
    Other(u16),
}

impl AbortReason {
    fn code(self) -> u16 {
        match self {
            Self::Cancelled => 1,
            Self::Stream => 2,
            Self::Timeout => 3,
            Self::Machine => 4,
            Self::Audit => 5,
            Self::NoConvergence => 6,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Cancelled,
            2 => Self::Stream,
            3 => Self::Timeout,
            4 => Self::Machine,
            5 => Self::Audit,
            6 => Self::NoConvergence,
            code => Self::Other(code),
        }
    }

    /// Writes the payload and returns its length.
    pub(crate) fn write(self, to: &mut [u8]) -> usize {
        write_code(self.code(), to)
    }

    pub(crate) fn read(payload: &[u8]) -> Result<Self, StreamError> {
        read_code(Kind::Abort, payload).map(Self::from_code)
    }
}

fn write_code(code: u16, to: &mut [u8]) -> usize {
    to[..8].copy_from_slice(&u64::from(code).to_le_bytes());
    8
}

fn read_code(kind: Kind, payload: &[u8]) -> Result<u16, StreamError> {
    let code = U64::read_from_bytes(payload).map_err(|_| StreamError::Length {
        kind: kind as u16,
        length: payload.len() as u32,
    })?;
    u16::try_from(code.get()).map_err(|_| StreamError::Field("reason"))
}
