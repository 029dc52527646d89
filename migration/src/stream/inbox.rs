//! Takes bytes from a link in any fragmentation and makes records of them.

use super::header::MANDATORY;
use super::{Header, Kind, Record, StreamError, checksum};
use crate::link::{Link, LinkError};
use core::mem::size_of;
use zerocopy::FromBytes;

const HEADER: usize = size_of::<Header>();

/// Why nothing more can be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer sent something malformed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Collects one record at a time.
///
/// ```text
///   Header ──24 bytes, checked──> Payload ──all there, checked──> Held
///      ^          │                                                │
///      │          └─ no payload ──────────────────────────────────>│
///      └────────── next call (unknown optional records: at once) ──┘
/// ```
/// A malformed header or payload is not left behind: each further call repeats its
/// error.
pub struct Inbox<B> {
    buffer: B,
    filled: usize,
    /// Whether the buffer holds a record that was handed out.
    held: bool,
    sequence: u64,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Inbox<B> {
    /// An empty inbox. Records longer than the buffer are errors.
    pub fn new(buffer: B) -> Self {
        Self {
            buffer,
            filled: 0,
            held: false,
            sequence: 0,
        }
    }

    /// The next record, or `None` when it has not arrived in full.
    pub fn poll(&mut self, link: &mut impl Link) -> Result<Option<Record<'_>>, ReceiveError> {
        let Some(kind) = self.collect(link)? else {
            return Ok(None);
        };
        let payload = &self.buffer.as_ref()[HEADER..self.filled];
        Ok(Some(Record::new_checked(kind, payload)?))
    }

    /// A number that changes whenever anything arrives.
    pub fn position(&self) -> (u64, usize) {
        (self.sequence, self.filled)
    }

    fn collect(&mut self, link: &mut impl Link) -> Result<Option<Kind>, ReceiveError> {
        loop {
            if self.held {
                self.held = false;
                self.filled = 0;
            }
            if !self.fill_to(HEADER, link)? {
                return Ok(None);
            }
            let header = self.header()?;
            header.check(self.sequence, self.buffer.as_ref().len() - HEADER)?;
            let end = HEADER + header.length.get() as usize;
            if !self.fill_to(end, link)? {
                return Ok(None);
            }
            if checksum(&self.buffer.as_ref()[HEADER..end]) != header.payload_check.get() {
                return Err(StreamError::Checksum.into());
            }
            self.sequence += 1;
            self.held = true;
            match Kind::from_number(header.kind.get()) {
                Some(kind) => return Ok(Some(kind)),
                None if header.flags.get() & MANDATORY != 0 => {
                    return Err(StreamError::UnknownMandatory(header.kind.get()).into());
                }
                None => log::debug!("skipping record of unknown kind {:#x}", header.kind.get()),
            }
        }
    }

    fn header(&self) -> Result<Header, StreamError> {
        let (header, _) =
            Header::read_from_prefix(self.buffer.as_ref()).map_err(|_| StreamError::Truncated)?;
        Ok(header)
    }

    /// Receives until `end` bytes are there; `false` when the link has no more now.
    fn fill_to(&mut self, end: usize, link: &mut impl Link) -> Result<bool, ReceiveError> {
        while self.filled < end {
            let room = &mut self.buffer.as_mut()[self.filled..end];
            match link.receive(room) {
                Ok(0) => return Ok(false),
                Ok(count) => self.filled += count.min(room.len()),
                Err(LinkError::Closed) if self.filled > 0 => {
                    return Err(StreamError::Truncated.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Pipe;
    use std::vec::Vec;
    use zerocopy::IntoBytes;

    fn raw(kind: u16, sequence: u64, payload: &[u8], edit: impl FnOnce(&mut Header)) -> Vec<u8> {
        let mut header = Header::new(kind, sequence, payload);
        edit(&mut header);
        header.seal();
        [header.as_bytes(), payload].concat()
    }

    /// The kinds of all records in `bytes`, or the error they end with.
    fn decode(bytes: &[u8], fragment: usize) -> (Vec<Kind>, ReceiveError) {
        let pipe = Pipe::<4096>::new();
        let (mut near, mut far) = pipe.ends();
        near.fragment(fragment);
        let mut sent = 0;
        while sent < bytes.len() {
            sent += near.send(&bytes[sent..]).unwrap();
        }
        near.close();
        let mut inbox = Inbox::new([0u8; 128]);
        let mut kinds = Vec::new();
        loop {
            match inbox.poll(&mut far) {
                Ok(Some(record)) => kinds.push(record.kind()),
                Ok(None) => {}
                Err(error) => return (kinds, error),
            }
        }
    }

    #[test]
    fn records_survive_every_fragmentation_and_unknown_optional_ones_are_skipped() {
        let bytes = [
            raw(Kind::Accept as u16, 0, &[], |_| {}),
            raw(0x7777, 1, &[1; 16], |header| header.flags = 0.into()),
            raw(Kind::Abort as u16, 2, &1u64.to_le_bytes(), |_| {}),
        ]
        .concat();
        for fragment in 1..bytes.len() {
            let (kinds, end) = decode(&bytes, fragment);
            assert_eq!(kinds, [Kind::Accept, Kind::Abort]);
            assert_eq!(end, LinkError::Closed.into());
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_record_is_truncated() {
        let bytes = raw(Kind::Abort as u16, 0, &1u64.to_le_bytes(), |_| {});
        for cut in 1..bytes.len() {
            let (kinds, end) = decode(&bytes[..cut], usize::MAX);
            assert!(kinds.is_empty());
            assert_eq!(end, StreamError::Truncated.into());
        }
    }

    #[test]
    fn each_malformed_header_has_its_error() {
        let error = |bytes: Vec<u8>| decode(&bytes, usize::MAX).1;
        let ready = Kind::Ready as u16;
        assert_eq!(
            error(raw(0x7777, 0, &[], |_| {})),
            StreamError::UnknownMandatory(0x7777).into()
        );
        assert_eq!(
            error(raw(ready, 5, &[], |_| {})),
            StreamError::Sequence {
                expected: 0,
                found: 5
            }
            .into()
        );
        for length in [4, 112, u32::MAX] {
            assert_eq!(
                error(raw(ready, 0, &[], |header| header.length = length.into())),
                StreamError::Length {
                    kind: ready,
                    length
                }
                .into()
            );
        }
        assert_eq!(
            error(raw(ready, 0, &[0; 8], |_| {})),
            StreamError::Length {
                kind: ready,
                length: 8
            }
            .into()
        );
    }

    #[test]
    fn every_flipped_bit_is_a_checksum_error() {
        let bytes = raw(Kind::Abort as u16, 0, &1u64.to_le_bytes(), |_| {});
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes, usize::MAX).1, StreamError::Checksum.into());
        }
    }
}
