//! `Audit`: digests of consecutive pages, to compare at switchover.

use super::{Kind, StreamError};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most digests in one record.
pub const DIGESTS_PER_RECORD: usize = 512;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Wire {
    first: U64,
    digests: [U64],
}

/// A view of an `Audit` record: one or more digests.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    /// The place of the first page when all memory runs are put in a row, in the
    /// order of the `Hello`. Not checked.
    pub first: u64,
    digests: &'a [U64],
}

impl<'a> Audit<'a> {
    pub(crate) fn new_checked(payload: &'a [u8]) -> Result<Self, StreamError> {
        match Wire::ref_from_bytes(payload) {
            Ok(wire) if !wire.digests.is_empty() => Ok(Self {
                first: wire.first.get(),
                digests: &wire.digests,
            }),
            _ => Err(StreamError::Length {
                kind: Kind::Audit as u16,
                length: payload.len() as u32,
            }),
        }
    }

    /// The digests, page by page.
    pub fn digests(&self) -> impl Iterator<Item = u64> + 'a {
        self.digests.iter().map(|digest| digest.get())
    }
}
