//! A split virtqueue, seen by the device.
//!
//! Virtio 1.2, section 2.7 "Split Virtqueues": descriptor table (2.7.5),
//! available ring (2.7.6), used ring (2.7.8).
//!
//! ```text
//!   descriptors   16 bytes each: address (8), length (4), flags (2), next (2)
//!   driver area   flags (2), index (2), heads (2 each)          written by the driver
//!   device area   flags (2), index (2), head (4) and length (4) written by the device
//! ```
//!
//! The driver may write all of it at any time. Every field is read once, and
//! whatever it says, taking a chain reads no more descriptors than the queue has.

use heapless::Vec;
use hv_core::Gpa;
use hv_core::memory::{GuestMemory, PhysMemory};

/// The most descriptors a queue may have: a power of two. A request takes two of
/// them, and a driver that has more to ask waits for room.
pub(super) const MAX_SIZE: u16 = 64;

/// Descriptor flag: there is a next one.
const NEXT: u16 = 1 << 0;
/// Descriptor flag: the device writes this buffer.
const WRITE: u16 = 1 << 1;
/// Descriptor flag: the buffer holds descriptors. Not offered.
const INDIRECT: u16 = 1 << 2;
/// Flag of the driver area: no interrupt is wanted.
const NO_INTERRUPT: u16 = 1 << 0;

/// The queue breaks the specification: what follows in it cannot be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken;

/// A piece of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    address: u64,
    length: u32,
}

/// A chain of descriptors: a part the device reads, then a part it writes.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The first descriptor, under which the chain is given back.
    head: u16,
    segments: Vec<Segment, { MAX_SIZE as usize }>,
    /// How many of the segments the device reads.
    readable: usize,
}

/// Where a queue is and how far the device has come in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Ring {
    /// How many descriptors there are: a power of two up to [`MAX_SIZE`].
    pub(super) size: u16,
    /// The descriptor table, 16-byte aligned.
    pub(super) descriptors: u64,
    /// The driver area, 2-byte aligned.
    pub(super) driver: u64,
    /// The device area, 4-byte aligned.
    pub(super) device: u64,
    /// How many chains were taken so far, modulo 2^16.
    pub(super) taken: u16,
    /// How many were given back, modulo 2^16.
    pub(super) used: u16,
}

impl Ring {
    /// Whether size and alignments are such as a driver may choose.
    pub(super) const fn is_valid(&self) -> bool {
        self.size.is_power_of_two()
            && self.size <= MAX_SIZE
            && self.descriptors.is_multiple_of(16)
            && self.driver.is_multiple_of(2)
            && self.device.is_multiple_of(4)
    }

    /// The oldest chain that is available and not taken, without taking it;
    /// `None` if there is none.
    pub(super) fn peek<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
    ) -> Result<Option<Chain>, Broken> {
        let available = read_u16(guest, offset(self.driver, 2)?)?;
        match available.wrapping_sub(self.taken) {
            0 => Ok(None),
            count if count > self.size => Err(Broken),
            _ => {
                let at = 4 + 2 * u64::from(self.taken % self.size);
                let head = read_u16(guest, offset(self.driver, at)?)?;
                self.chain(guest, head).map(Some)
            }
        }
    }

    fn chain<M: PhysMemory>(&self, guest: &GuestMemory<'_, M>, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain {
            head,
            segments: Vec::new(),
            readable: 0,
        };
        let mut index = head;
        loop {
            if index >= self.size || chain.segments.len() == usize::from(self.size) {
                return Err(Broken);
            }
            let at = offset(self.descriptors, 16 * u64::from(index))?;
            let address = guest.read_u64(at).map_err(|_| Broken)?;
            let rest = guest.read_u64(offset(at.raw(), 8)?).map_err(|_| Broken)?;
            let (length, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & INDIRECT != 0 {
                return Err(Broken);
            }
            if flags & WRITE == 0 {
                // All that is read comes before all that is written.
                if chain.readable != chain.segments.len() {
                    return Err(Broken);
                }
                chain.readable += 1;
            }
            let segment = Segment { address, length };
            chain.segments.push(segment).map_err(|_| Broken)?;
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            index = next;
        }
    }

    /// Takes the chain that [`Ring::peek`] returned and gives it back, with
    /// `written` bytes written at its front. Says whether the driver wants to be
    /// interrupted.
    ///
    /// The index is the last that is written, in release order: a driver that sees
    /// it sees the element and all that the device wrote before.
    pub(super) fn give_back<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        chain: &Chain,
        written: u32,
    ) -> Result<bool, Broken> {
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(chain.head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        let at = 4 + 8 * u64::from(self.used % self.size);
        let used = self.used.wrapping_add(1);
        let index_at = offset(self.device, 2)?;
        write(guest, offset(self.device, at)?, &element)?;
        write(guest, index_at, &used.to_le_bytes())?;
        self.used = used;
        self.taken = self.taken.wrapping_add(1);
        // The driver writes its flags, then looks at the index; we the other way
        // round. Without the fence both could miss the other's news.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let flags = read_u16(guest, offset(self.driver, 0)?)?;
        Ok(flags & NO_INTERRUPT == 0)
    }
}

impl Chain {
    /// Copies the front of the readable part and returns how much there was of it.
    /// `None`: some of it is outside the guest's memory.
    pub(super) fn read<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        to: &mut [u8],
    ) -> Option<usize> {
        let (readable, _) = self.segments.split_at_checked(self.readable)?;
        let mut done = 0;
        for segment in readable {
            let count = (to.len() - done).min(segment.length as usize);
            let part = to.get_mut(done..done + count)?;
            guest.read(Gpa::new(segment.address), part).ok()?;
            done += count;
        }
        Some(done)
    }

    /// The bytes of the part that is to be written.
    pub(super) fn writable(&self) -> u64 {
        let writable = self.segments.iter().skip(self.readable);
        writable.map(|segment| u64::from(segment.length)).sum()
    }

    /// Writes to the front of the writable part, which has room for it. `None`:
    /// some of it is outside the guest's memory, and what comes before was written.
    pub(super) fn write<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        from: &[u8],
    ) -> Option<()> {
        let mut rest = from;
        for segment in self.segments.iter().skip(self.readable) {
            let (part, after) = rest.split_at(rest.len().min(segment.length as usize));
            guest.write(Gpa::new(segment.address), part).ok()?;
            rest = after;
        }
        rest.is_empty().then_some(())
    }
}

fn offset(base: u64, bytes: u64) -> Result<Gpa, Broken> {
    Gpa::new(base).checked_add(bytes).ok_or(Broken)
}

/// An aligned 16-bit field, after all that the driver stored before it.
fn read_u16<M: PhysMemory>(guest: &GuestMemory<'_, M>, at: Gpa) -> Result<u16, Broken> {
    let word = guest
        .read_u64(Gpa::new(at.raw() & !7))
        .map_err(|_| Broken)?;
    Ok((word >> (at.raw() % 8 * 8)) as u16)
}

fn write<M: PhysMemory>(guest: &GuestMemory<'_, M>, at: Gpa, bytes: &[u8]) -> Result<(), Broken> {
    guest.write(at, bytes).map_err(|_| Broken)
}
