//! An in-memory link with faults on demand: cuts at any byte, flips of any bit.

use super::{Link, LinkError};
use core::cell::Cell;

/// A fault to happen at one place of the bytes that one side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// After so many bytes the link breaks, in both directions. What was accepted
    /// before is delivered, unless `lose_in_flight`.
    Cut {
        /// How many bytes still get into the pipe.
        after: u64,
        /// Whether bytes not yet received vanish, in both directions.
        lose_in_flight: bool,
    },
    /// One bit of one byte arrives inverted.
    Flip {
        /// The byte, counted from the first one sent.
        byte: u64,
        /// The bit, 0..8.
        bit: u32,
    },
}

/// One direction: a ring of `N` bytes with free-running counters.
struct Direction<const N: usize> {
    bytes: [Cell<u8>; N],
    sent: Cell<u64>,
    received: Cell<u64>,
    closed: Cell<bool>,
    fault: Cell<Option<Fault>>,
    /// The most bytes a call moves.
    fragment: Cell<usize>,
}

impl<const N: usize> Direction<N> {
    fn new() -> Self {
        Self {
            bytes: [const { Cell::new(0) }; N],
            sent: Cell::new(0),
            received: Cell::new(0),
            closed: Cell::new(false),
            fault: Cell::new(None),
            fragment: Cell::new(usize::MAX),
        }
    }

    fn cell(&self, position: u64) -> &Cell<u8> {
        &self.bytes[(position % N as u64) as usize]
    }
}

/// A two-way link with room for `N` bytes in each direction.
pub struct Pipe<const N: usize> {
    directions: [Direction<N>; 2],
    /// Set by a cut; both directions are dead then.
    cut: Cell<bool>,
    /// Set by a cut that loses what is in flight.
    lost: Cell<bool>,
}

impl<const N: usize> Default for Pipe<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Pipe<N> {
    /// An open, empty pipe.
    pub fn new() -> Self {
        Self {
            directions: [Direction::new(), Direction::new()],
            cut: Cell::new(false),
            lost: Cell::new(false),
        }
    }

    /// The two ends. Faults are set on the end that sends the bytes they hit.
    pub fn ends(&self) -> (End<'_, N>, End<'_, N>) {
        (
            End {
                pipe: self,
                side: 0,
            },
            End {
                pipe: self,
                side: 1,
            },
        )
    }
}

/// One end of a [`Pipe`].
pub struct End<'p, const N: usize> {
    pipe: &'p Pipe<N>,
    side: usize,
}

impl<const N: usize> End<'_, N> {
    fn outgoing(&self) -> &Direction<N> {
        &self.pipe.directions[self.side]
    }

    fn incoming(&self) -> &Direction<N> {
        &self.pipe.directions[1 - self.side]
    }

    /// Sets the fault that bytes sent from this end will meet.
    pub fn inject(&self, fault: Fault) {
        self.outgoing().fault.set(Some(fault));
    }

    /// Lets every call on bytes sent from this end move `bytes` at most.
    pub fn fragment(&self, bytes: usize) {
        self.outgoing().fragment.set(bytes.max(1));
    }

    /// How many bytes this end has sent.
    pub fn sent(&self) -> u64 {
        self.outgoing().sent.get()
    }
}

impl<const N: usize> Link for End<'_, N> {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        let out = self.outgoing();
        if self.pipe.cut.get() || self.incoming().closed.get() || out.closed.get() {
            return Err(LinkError::Closed);
        }
        let sent = out.sent.get();
        let room = N as u64 - (sent - out.received.get());
        let mut count = bytes.len().min(room as usize).min(out.fragment.get());
        if let Some(Fault::Cut {
            after,
            lose_in_flight,
        }) = out.fault.get()
        {
            let left = after.saturating_sub(sent);
            if left <= count as u64 {
                count = left as usize;
                self.pipe.cut.set(true);
                self.pipe.lost.set(lose_in_flight);
                if count == 0 {
                    return Err(LinkError::Closed);
                }
            }
        }
        for (position, &byte) in (sent..).zip(&bytes[..count]) {
            let flip = match out.fault.get() {
                Some(Fault::Flip { byte: at, bit }) if at == position => 1 << (bit % 8),
                _ => 0,
            };
            out.cell(position).set(byte ^ flip);
        }
        out.sent.set(sent + count as u64);
        Ok(count)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let incoming = self.incoming();
        let received = incoming.received.get();
        let there = (incoming.sent.get() - received) as usize;
        if self.pipe.lost.get() {
            return Err(LinkError::Closed);
        }
        if there == 0 && (self.pipe.cut.get() || incoming.closed.get()) {
            return Err(LinkError::Closed);
        }
        let count = bytes.len().min(there).min(incoming.fragment.get());
        for (position, byte) in (received..).zip(&mut bytes[..count]) {
            *byte = incoming.cell(position).get();
        }
        incoming.received.set(received + count as u64);
        Ok(count)
    }

    fn close(&mut self) {
        self.outgoing().closed.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_in_order_and_a_full_pipe_takes_none() {
        let pipe = Pipe::<4>::new();
        let (mut a, mut b) = pipe.ends();
        assert_eq!(a.send(&[1, 2, 3, 4, 5]), Ok(4));
        assert_eq!(a.send(&[5]), Ok(0));
        let mut got = [0; 3];
        assert_eq!(b.receive(&mut got), Ok(3));
        assert_eq!(got, [1, 2, 3]);
        assert_eq!(a.send(&[5]), Ok(1));
        a.close();
        assert_eq!(b.receive(&mut got), Ok(2));
        assert_eq!(got[..2], [4, 5]);
        assert_eq!(b.receive(&mut got), Err(LinkError::Closed));
    }

    #[test]
    fn a_cut_happens_at_its_byte_and_kills_both_directions() {
        for lose_in_flight in [false, true] {
            let pipe = Pipe::<8>::new();
            let (mut a, mut b) = pipe.ends();
            a.inject(Fault::Cut {
                after: 3,
                lose_in_flight,
            });
            assert_eq!(a.send(&[1, 2]), Ok(2));
            assert_eq!(a.send(&[3, 4]), Ok(1));
            assert_eq!(a.send(&[4]), Err(LinkError::Closed));
            assert_eq!(b.send(&[1]), Err(LinkError::Closed));
            let expected = if lose_in_flight {
                Err(LinkError::Closed)
            } else {
                Ok(3)
            };
            assert_eq!(b.receive(&mut [0; 8]), expected);
        }
    }
}
