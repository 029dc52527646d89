//! The header of every record.

use super::{StreamError, checksum};
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Flag: a reader that does not know the kind must give up.
pub(crate) const MANDATORY: u16 = 1 << 0;

/// What a record is. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Magic, version, sizes: the first record of the source.
    Hello = 1,
    /// A batch of pages.
    Pages = 2,
    /// Runs of pages that hold only zeros.
    ZeroPages = 3,
    /// A pass over the memory is complete.
    RoundEnd = 4,
    /// Digests of pages, to compare.
    Audit = 5,
    /// The state of one device or CPU.
    Section = 6,
    /// Everything was sent.
    Final = 7,
    /// The destination may start the guest: the source never will again.
    Go = 8,
    /// The destination can host the guest.
    Accept = 0x101,
    /// The destination cannot host the guest.
    Refuse = 0x102,
    /// The destination has built the guest and waits for `Go`.
    Ready = 0x103,
    /// The destination has started the guest.
    Running = 0x104,
    /// The sender gave up. The destination says so only after it has thrown the
    /// guest away.
    Abort = 0x105,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Hello,
        Self::Pages,
        Self::ZeroPages,
        Self::RoundEnd,
        Self::Audit,
        Self::Section,
        Self::Final,
        Self::Go,
        Self::Accept,
        Self::Refuse,
        Self::Ready,
        Self::Running,
        Self::Abort,
    ];

    /// The kind of that number, if this version knows it.
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// The header as it is on the wire.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// A [`Kind`], or a number a later version gave a meaning to.
    pub(crate) kind: U16,
    /// Bit 0: mandatory. The others are 0 and ignored.
    pub(crate) flags: U16,
    /// Bytes of payload after the header, a multiple of 8.
    pub(crate) length: U32,
    /// The record's number in its direction, from 0.
    pub(crate) sequence: U64,
    /// CRC-32C of the payload.
    pub(crate) payload_check: U32,
    /// CRC-32C of the header's bytes before this field.
    pub(crate) header_check: U32,
}

impl Header {
    /// The header of a mandatory record.
    pub(crate) fn new(kind: u16, sequence: u64, payload: &[u8]) -> Self {
        let mut header = Self {
            kind: kind.into(),
            flags: MANDATORY.into(),
            length: (payload.len() as u32).into(),
            sequence: sequence.into(),
            payload_check: checksum(payload).into(),
            header_check: 0.into(),
        };
        header.seal();
        header
    }

    /// Sets the header's own checksum after its other fields were set.
    pub(crate) fn seal(&mut self) {
        self.header_check = self.own_check().into();
    }

    fn own_check(&self) -> u32 {
        checksum(&self.as_bytes()[..offset_of!(Self, header_check)])
    }

    /// Checks everything that can be told without the payload.
    pub(crate) fn check(&self, sequence: u64, room: usize) -> Result<(), StreamError> {
        if self.header_check.get() != self.own_check() {
            return Err(StreamError::Checksum);
        }
        if self.sequence.get() != sequence {
            return Err(StreamError::Sequence {
                expected: sequence,
                found: self.sequence.get(),
            });
        }
        let length = self.length.get();
        if length as usize > room || !length.is_multiple_of(8) {
            return Err(StreamError::Length {
                kind: self.kind.get(),
                length,
            });
        }
        Ok(())
    }
}
