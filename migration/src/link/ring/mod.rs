//! A link through memory that two machines share (ivshmem BAR 2): two byte rings.
//!
//! ```text
//!  word  0  magic        written last by the source, when all else is in place
//!        1  version
//!        2  size of the memory in words, as the source sees it
//!        8  source: state       9  source: heartbeat
//!       16  destination: state 17  destination: heartbeat
//!       24  forward: bytes written   (source)
//!       32  forward: bytes read      (destination)
//!       40  backward: bytes written  (destination)
//!       48  backward: bytes read     (source)
//!       56  backward ring, BACKWARD_WORDS
//!        …  forward ring, the rest
//! ```
//! Every word a side polls is on a cache line that only one side writes.
//! The memory must be zeroed before either side attaches, and serves for one
//! migration.
//!
//! # Ordering
//! The writer stores the data, then `written` with release; the reader loads
//! `written` with acquire, then reads the data. The reader finishes reading, then
//! stores `read` with release; the writer loads `read` with acquire before it
//! overwrites. So no byte is read before it is there or overwritten before it was
//! read. A side that closes publishes its state after its last `written`; the
//! other loads the state first and `written` second, so bytes sent before the
//! close are never missed.
//!
//! # Trust
//! The other side may write anything anywhere at any time. Each side keeps its own
//! counters privately and only publishes them; the other side's counter must not
//! go backwards and must lie within the ring, or the link is
//! [`LinkError::Corrupt`] for good. Data positions come from the private counters
//! only, so no value in the memory leads outside it.

mod lane;

use super::{Link, LinkError};
use core::sync::atomic::{AtomicU64, Ordering};
use lane::Lane;

/// "STRDLINK" in ASCII, read as a little-endian word.
const MAGIC: u64 = u64::from_le_bytes(*b"STRDLINK");
const VERSION: u64 = 1;

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 1;
const SIZE_AT: usize = 2;
const SOURCE_AT: usize = 8;
const DESTINATION_AT: usize = 16;
const FORWARD_WRITTEN: usize = 24;
const FORWARD_READ: usize = 32;
const BACKWARD_WRITTEN: usize = 40;
const BACKWARD_READ: usize = 48;
const RINGS_AT: usize = 56;
/// The backward ring carries answers of a few bytes.
const BACKWARD_WORDS: usize = 512;

/// The smallest memory for a ring link, in 64-bit words.
pub const MIN_WORDS: usize = RINGS_AT + BACKWARD_WORDS + 512;

/// Which side of the migration this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends the guest; lays out the memory.
    Source,
    /// Receives the guest; waits for the layout.
    Destination,
}

/// What the other side last said about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It has not attached yet.
    Absent,
    /// It is attached.
    Open,
    /// It will send nothing more.
    Closed,
}

impl Presence {
    fn from_word(word: u64) -> Result<Self, LinkError> {
        match word {
            0 => Ok(Self::Absent),
            1 => Ok(Self::Open),
            2 => Ok(Self::Closed),
            _ => Err(LinkError::Corrupt),
        }
    }
}

/// The memory is too small: it has fewer than [`MIN_WORDS`] words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shared memory is too small for a link: {0} words, at least {MIN_WORDS} are needed")]
pub struct TooSmall(pub usize);

/// One side of a link through shared memory.
pub struct Ring<'m> {
    words: &'m [AtomicU64],
    role: Role,
    /// Whether the layout is there and was found good.
    attached: bool,
    corrupt: bool,
    heartbeat: u64,
    outgoing: Lane<'m>,
    incoming: Lane<'m>,
}

impl<'m> Ring<'m> {
    /// Attaches to the memory. The source lays it out; the destination finds the
    /// layout when it first sends or receives, however late the source comes.
    pub fn new(words: &'m [AtomicU64], role: Role) -> Result<Self, TooSmall> {
        if words.len() < MIN_WORDS {
            return Err(TooSmall(words.len()));
        }
        let (backward, forward) = words[RINGS_AT..].split_at(BACKWARD_WORDS);
        let lane = |data, own: usize, peer: usize| Lane::new(data, &words[own], &words[peer]);
        let (outgoing, incoming) = match role {
            Role::Source => (
                lane(forward, FORWARD_WRITTEN, FORWARD_READ),
                lane(backward, BACKWARD_READ, BACKWARD_WRITTEN),
            ),
            Role::Destination => (
                lane(backward, BACKWARD_WRITTEN, BACKWARD_READ),
                lane(forward, FORWARD_READ, FORWARD_WRITTEN),
            ),
        };
        let ring = Self {
            words,
            role,
            attached: role == Role::Source,
            corrupt: false,
            heartbeat: 0,
            outgoing,
            incoming,
        };
        if role == Role::Source {
            words[VERSION_AT].store(VERSION, Ordering::Relaxed);
            words[SIZE_AT].store(words.len() as u64, Ordering::Relaxed);
            ring.publish_state(Presence::Open);
            // Last: whoever sees the magic sees the rest.
            words[MAGIC_AT].store(MAGIC, Ordering::Release);
        }
        Ok(ring)
    }

    /// What the other side last said about itself.
    pub fn peer(&self) -> Result<Presence, LinkError> {
        Presence::from_word(self.words[self.peer_at()].load(Ordering::Acquire))
    }

    /// A counter that the other side advances whenever it uses the link. For
    /// display only: it proves nothing.
    pub fn peer_heartbeat(&self) -> u64 {
        self.words[self.peer_at() + 1].load(Ordering::Relaxed)
    }

    fn own_at(&self) -> usize {
        match self.role {
            Role::Source => SOURCE_AT,
            Role::Destination => DESTINATION_AT,
        }
    }

    fn peer_at(&self) -> usize {
        match self.role {
            Role::Source => DESTINATION_AT,
            Role::Destination => SOURCE_AT,
        }
    }

    fn publish_state(&self, state: Presence) {
        self.words[self.own_at()].store(state as u64, Ordering::Release);
    }

    /// Whether the layout is there; finds out if need be.
    fn attach(&mut self) -> Result<bool, LinkError> {
        if self.corrupt {
            return Err(LinkError::Corrupt);
        }
        self.heartbeat = self.heartbeat.wrapping_add(1);
        self.words[self.own_at() + 1].store(self.heartbeat, Ordering::Relaxed);
        if self.attached {
            return Ok(true);
        }
        match self.words[MAGIC_AT].load(Ordering::Acquire) {
            0 => return Ok(false),
            MAGIC => {}
            _ => return Err(LinkError::Corrupt),
        }
        let size = self.words[SIZE_AT].load(Ordering::Relaxed);
        if self.words[VERSION_AT].load(Ordering::Relaxed) != VERSION
            || size != self.words.len() as u64
        {
            return Err(LinkError::Corrupt);
        }
        self.attached = true;
        self.publish_state(Presence::Open);
        Ok(true)
    }

    fn try_send(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        if !self.attach()? {
            return Ok(0);
        }
        match self.peer()? {
            Presence::Closed => Err(LinkError::Closed),
            Presence::Absent | Presence::Open => self.outgoing.write(bytes),
        }
    }

    fn try_receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        if !self.attach()? {
            return Ok(0);
        }
        // The state before the counter: see the module's section on ordering.
        let peer = self.peer()?;
        match self.incoming.read(bytes)? {
            0 if peer == Presence::Closed && !bytes.is_empty() => Err(LinkError::Closed),
            count => Ok(count),
        }
    }
}

impl Link for Ring<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        let result = self.try_send(bytes);
        self.corrupt |= result == Err(LinkError::Corrupt);
        result
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let result = self.try_receive(bytes);
        self.corrupt |= result == Err(LinkError::Corrupt);
        result
    }

    fn close(&mut self) {
        self.publish_state(Presence::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn memory(words: usize) -> Vec<AtomicU64> {
        core::iter::repeat_with(|| AtomicU64::new(0))
            .take(words)
            .collect()
    }

    #[test]
    fn bytes_of_any_size_survive_many_wraps() {
        let words = memory(MIN_WORDS);
        let mut source = Ring::new(&words, Role::Source).unwrap();
        let mut destination = Ring::new(&words, Role::Destination).unwrap();
        let (mut next_out, mut next_in) = (0u32, 0u32);
        let mut lengths = 1usize;
        while next_in < 100_000 {
            lengths = lengths * 7 % 2_003;
            let bytes: Vec<u8> = (next_out..).take(lengths).map(|n| (n * 31) as u8).collect();
            next_out += source.send(&bytes).unwrap() as u32;
            let mut got = std::vec![0; lengths * 13 % 1_999];
            let count = destination.receive(&mut got).unwrap();
            for byte in &got[..count] {
                assert_eq!(*byte, (next_in * 31) as u8);
                next_in += 1;
            }
        }
    }

    #[test]
    fn the_destination_waits_for_the_layout_and_both_directions_work() {
        let words = memory(MIN_WORDS);
        let mut destination = Ring::new(&words, Role::Destination).unwrap();
        assert_eq!(destination.receive(&mut [0; 8]), Ok(0));
        assert_eq!(destination.send(&[1]), Ok(0));
        let mut source = Ring::new(&words, Role::Source).unwrap();
        assert_eq!(source.peer(), Ok(Presence::Absent));
        assert_eq!(destination.send(&[7]), Ok(1));
        assert_eq!(source.peer(), Ok(Presence::Open));
        let mut got = [0; 8];
        assert_eq!(source.receive(&mut got), Ok(1));
        assert_eq!(got[0], 7);
        assert_eq!(source.peer_heartbeat(), 3);
    }

    #[test]
    fn what_was_sent_before_a_close_is_received_first() {
        let words = memory(MIN_WORDS);
        let mut source = Ring::new(&words, Role::Source).unwrap();
        let mut destination = Ring::new(&words, Role::Destination).unwrap();
        source.send(&[1, 2, 3]).unwrap();
        source.close();
        assert_eq!(destination.receive(&mut [0; 8]), Ok(3));
        assert_eq!(destination.receive(&mut [0; 8]), Err(LinkError::Closed));
        assert_eq!(destination.send(&[1]), Err(LinkError::Closed));
    }

    #[test]
    fn nonsense_counters_are_corrupt_for_good() {
        let capacity = ((MIN_WORDS - RINGS_AT - BACKWARD_WORDS) * 8) as u64;
        for nonsense in [u64::MAX, 9, capacity * 2, 1 << 63] {
            let words = memory(MIN_WORDS);
            let mut source = Ring::new(&words, Role::Source).unwrap();
            source.send(&[0; 8]).unwrap();
            words[FORWARD_READ].store(nonsense, Ordering::Relaxed);
            assert_eq!(source.send(&[1]), Err(LinkError::Corrupt));
            words[FORWARD_READ].store(8, Ordering::Relaxed);
            assert_eq!(source.send(&[1]), Err(LinkError::Corrupt));
        }
        for nonsense in [u64::MAX, 15, capacity + 17] {
            let words = memory(MIN_WORDS);
            let mut source = Ring::new(&words, Role::Source).unwrap();
            let mut destination = Ring::new(&words, Role::Destination).unwrap();
            source.send(&[0; 16]).unwrap();
            assert_eq!(destination.receive(&mut [0; 16]), Ok(16));
            words[FORWARD_WRITTEN].store(nonsense, Ordering::Relaxed);
            assert_eq!(destination.receive(&mut [0; 8]), Err(LinkError::Corrupt));
        }
    }

    #[test]
    fn a_foreign_header_or_state_is_corrupt() {
        for (at, value) in [(MAGIC_AT, 1), (VERSION_AT, 2), (SIZE_AT, 1), (SOURCE_AT, 3)] {
            let words = memory(MIN_WORDS);
            Ring::new(&words, Role::Source).unwrap();
            words[at].store(value, Ordering::Relaxed);
            let mut destination = Ring::new(&words, Role::Destination).unwrap();
            assert_eq!(destination.receive(&mut [0; 8]), Err(LinkError::Corrupt));
        }
        assert!(Ring::new(&memory(MIN_WORDS - 1), Role::Source).is_err());
    }
}
