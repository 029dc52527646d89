//! What can be wrong with a stream.

use super::Kind;
use hv_core::Gfn;

/// The peer sent something that it must not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The first record does not begin with the stream's magic number.
    #[error("not a migration stream: magic {0:#x}")]
    BadMagic(u64),
    /// The source speaks another version.
    #[error("stream version {0} is not supported")]
    Version(u16),
    /// A record's length is impossible for its kind or for any.
    #[error("record kind {kind:#x} has an impossible length of {length} bytes")]
    Length {
        /// The kind's number.
        kind: u16,
        /// Its payload's length in bytes.
        length: u32,
    },
    /// Header or payload do not match their checksum.
    #[error("checksum mismatch")]
    Checksum,
    /// A record is missing or came twice.
    #[error("record {found} where {expected} was due")]
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number in the header.
        found: u64,
    },
    /// A record that must not come at this point.
    #[error("record {0:?} out of order")]
    Order(Kind),
    /// A record that this version does not know and must not skip.
    #[error("unknown mandatory record kind {0:#x}")]
    UnknownMandatory(u16),
    /// The stream ended within a record.
    #[error("the stream ends within a record")]
    Truncated,
    /// A field holds a value that has no meaning there.
    #[error("meaningless {0}")]
    Field(&'static str),
    /// A frame that the guest does not have.
    #[error("guest frame {0} is outside the guest's memory")]
    OutsideMemory(Gfn),
    /// The first pass is over and this frame never came.
    #[error("guest frame {0} was never sent")]
    MissingPage(Gfn),
    /// A round ended with another number of pages than came.
    #[error("{received} pages came in a round of {announced}")]
    PageCount {
        /// What the round's end says.
        announced: u64,
        /// What arrived.
        received: u64,
    },
    /// A round brings more pages than the guest has, so one of them twice.
    #[error("a round brings more than all {0} pages of the guest")]
    LongRound(u64),
}
