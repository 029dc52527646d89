//! One direction of the link: a byte ring and its two counters.
//!
//! The order of accesses and what is trusted are argued in the parent module.

use crate::link::LinkError;
use core::sync::atomic::{AtomicU64, Ordering};

/// One direction, as one side sees it.
pub(super) struct Lane<'m> {
    data: &'m [AtomicU64],
    /// Where this side publishes how far it is.
    own: &'m AtomicU64,
    /// Where the other side does.
    peer: &'m AtomicU64,
    /// Bytes this side has written or read so far.
    own_count: u64,
    /// The last valid count of the other side.
    peer_count: u64,
}

impl<'m> Lane<'m> {
    /// An empty direction over `data`, whose counters are at zero.
    pub(super) fn new(data: &'m [AtomicU64], own: &'m AtomicU64, peer: &'m AtomicU64) -> Self {
        Self {
            data,
            own,
            peer,
            own_count: 0,
            peer_count: 0,
        }
    }

    fn capacity(&self) -> u64 {
        self.data.len() as u64 * 8
    }

    /// Loads the other side's counter and returns how many bytes lie between it and
    /// this side's, which `distance` computes: `None` if they are the wrong way
    /// round.
    fn peer_now(&mut self, distance: impl Fn(u64, u64) -> Option<u64>) -> Result<u64, LinkError> {
        let peer = self.peer.load(Ordering::Acquire);
        let distance = distance(self.own_count, peer).filter(|&d| d <= self.capacity());
        match distance {
            Some(distance) if peer >= self.peer_count => {
                self.peer_count = peer;
                Ok(distance)
            }
            _ => Err(LinkError::Corrupt),
        }
    }

    fn publish(&mut self, bytes: usize) {
        self.own_count += bytes as u64;
        self.own.store(self.own_count, Ordering::Release);
    }

    /// The bytes from the current position to the ring's end come first.
    fn split(&self, count: usize) -> (u64, usize) {
        let at = self.own_count % self.capacity();
        (at, count.min((self.capacity() - at) as usize))
    }

    /// Writes what there is room for and returns how many bytes that was.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        let used = self.peer_now(|own, peer| own.checked_sub(peer))?;
        let room = self.capacity() - used;
        let bytes = &bytes[..bytes.len().min(room as usize)];
        let (at, first) = self.split(bytes.len());
        store_bytes(self.data, at, &bytes[..first]);
        store_bytes(self.data, 0, &bytes[first..]);
        self.publish(bytes.len());
        Ok(bytes.len())
    }

    /// Reads what is there and returns how many bytes that was.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let there = self.peer_now(|own, peer| peer.checked_sub(own))?;
        let count = bytes.len().min(there as usize);
        let (at, first) = self.split(count);
        load_bytes(self.data, at, &mut bytes[..first]);
        load_bytes(self.data, 0, &mut bytes[first..count]);
        self.publish(count);
        Ok(count)
    }
}

/// Stores bytes from byte offset `at` on, whole words where they are aligned. Only
/// one side ever writes a ring's data, so a word's other bytes can be kept by a
/// plain load and store.
fn store_bytes(words: &[AtomicU64], at: u64, bytes: &[u8]) {
    let (head, rest) = bytes.split_at(bytes.len().min((at.wrapping_neg() % 8) as usize));
    let body_at = at + head.len() as u64;
    let chunks = rest.chunks_exact(8);
    let tail = chunks.remainder();
    let body = &words[(body_at / 8) as usize..];
    let store_byte = |position: u64, byte: u8| {
        let word = &words[(position / 8) as usize];
        let mut value = word.load(Ordering::Relaxed).to_le_bytes();
        value[(position % 8) as usize] = byte;
        word.store(u64::from_le_bytes(value), Ordering::Relaxed);
    };
    for (position, &byte) in (at..).zip(head) {
        store_byte(position, byte);
    }
    for (word, chunk) in body.iter().zip(chunks) {
        let mut value = [0; 8];
        value.copy_from_slice(chunk);
        word.store(u64::from_le_bytes(value), Ordering::Relaxed);
    }
    let tail_at = body_at + (rest.len() - tail.len()) as u64;
    for (position, &byte) in (tail_at..).zip(tail) {
        store_byte(position, byte);
    }
}

/// Loads bytes from byte offset `at` on, whole words where they are aligned.
fn load_bytes(words: &[AtomicU64], at: u64, bytes: &mut [u8]) {
    let head = bytes.len().min((at.wrapping_neg() % 8) as usize);
    let (head, rest) = bytes.split_at_mut(head);
    let body_at = at + head.len() as u64;
    let body = &words[(body_at / 8) as usize..];
    let load_byte = |position: u64| {
        let value = words[(position / 8) as usize].load(Ordering::Relaxed);
        value.to_le_bytes()[(position % 8) as usize]
    };
    for (position, byte) in (at..).zip(head) {
        *byte = load_byte(position);
    }
    let tail_at = body_at + (rest.len() / 8 * 8) as u64;
    let mut chunks = rest.chunks_exact_mut(8);
    for (chunk, word) in chunks.by_ref().zip(body) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    for (position, byte) in (tail_at..).zip(chunks.into_remainder()) {
        *byte = load_byte(position);
    }
}
