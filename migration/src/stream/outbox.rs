//! Writes records and feeds them to a link, one at a time.

use super::{Header, Kind};
use crate::link::{Link, LinkError};
use core::convert::Infallible;
use core::mem::size_of;
use zerocopy::IntoBytes;

const HEADER: usize = size_of::<Header>();

/// Holds the record that is being sent. A record can only be written through
/// [`Outbox::vacant`], so none is ever overwritten half sent.
pub struct Outbox<B> {
    buffer: B,
    filled: usize,
    sent: usize,
    sequence: u64,
}

impl<B: AsMut<[u8]>> Outbox<B> {
    /// An empty outbox. The buffer must hold the longest record that will be sent.
    pub fn new(buffer: B) -> Self {
        Self {
            buffer,
            filled: 0,
            sent: 0,
            sequence: 0,
        }
    }

    /// Permission to write a record, when the one before is gone.
    pub fn vacant(&mut self) -> Option<Vacant<'_, B>> {
        (self.sent == self.filled).then_some(Vacant(self))
    }

    /// Sends as much as the link takes. Returns how many bytes that was; the
    /// outbox is vacant once all are gone.
    pub fn flush(&mut self, link: &mut impl Link) -> Result<usize, LinkError> {
        let from = self.sent;
        while self.sent < self.filled {
            let rest = &self.buffer.as_mut()[self.sent..self.filled];
            match link.send(rest)? {
                0 => break,
                taken => self.sent += taken.min(rest.len()),
            }
        }
        Ok(self.sent - from)
    }
}

/// An outbox that is free to take one record.
pub struct Vacant<'o, B>(&'o mut Outbox<B>);

impl<B: AsMut<[u8]>> Vacant<'_, B> {
    /// Writes a record. `write` fills the front of the payload and returns its
    /// length, a multiple of 8; if it fails there is no record.
    pub fn put<E>(
        self,
        kind: Kind,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let outbox = self.0;
        let (header, payload) = outbox.buffer.as_mut().split_at_mut(HEADER);
        let length = write(payload)?;
        let wire = Header::new(kind as u16, outbox.sequence, &payload[..length]);
        header.copy_from_slice(wire.as_bytes());
        outbox.sequence += 1;
        outbox.sent = 0;
        outbox.filled = HEADER + length;
        Ok(())
    }

    /// Writes a record whose payload cannot fail.
    pub fn put_plain(self, kind: Kind, write: impl FnOnce(&mut [u8]) -> usize) {
        let Ok(()) = self.put::<Infallible>(kind, |payload| Ok(write(payload)));
    }

    /// Writes a record without payload.
    pub fn put_empty(self, kind: Kind) {
        self.put_plain(kind, |_| 0);
    }
}
