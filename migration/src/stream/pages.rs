//! The records that carry memory: `Pages`, `ZeroPages`, `RoundEnd`.

use super::{Kind, StreamError};
use core::sync::atomic::Ordering;
use hv_core::memory::Frame;
use hv_core::{Gfn, PAGE_SIZE};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most pages in one record.
pub const PAGES_PER_RECORD: usize = 16;

/// One page in a `Pages` record.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PageEntry {
    gfn: U64,
    bytes: [u8; PAGE_SIZE as usize],
}

impl PageEntry {
    /// Whose content this is.
    pub fn gfn(&self) -> Gfn {
        Gfn::new(self.gfn.get())
    }

    /// Fills the entry from guest memory.
    pub(crate) fn read_from(&mut self, gfn: Gfn, frame: &Frame) {
        self.gfn = gfn.number().into();
        for (bytes, word) in self.bytes.chunks_exact_mut(8).zip(frame.words()) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
    }

    /// Writes the content to guest memory.
    pub(crate) fn write_to(&self, frame: &Frame) {
        for (bytes, word) in self.bytes.chunks_exact(8).zip(frame.words()) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
    }
}

/// A view of a `Pages` record: 1 to [`PAGES_PER_RECORD`] entries.
#[derive(Clone, Copy)]
pub struct Pages<'a>(&'a [PageEntry]);

impl<'a> Pages<'a> {
    pub(crate) fn new_checked(payload: &'a [u8]) -> Result<Self, StreamError> {
        match <[PageEntry]>::ref_from_bytes(payload) {
            Ok(entries) if !entries.is_empty() => Ok(Self(entries)),
            _ => Err(length(Kind::Pages, payload)),
        }
    }

    /// The pages, in the order they were read at the source.
    pub fn entries(&self) -> &'a [PageEntry] {
        self.0
    }
}

/// A run of zero pages in a `ZeroPages` record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Run {
    gfn: U64,
    frames: U64,
}

impl Run {
    /// A run of one page.
    pub(crate) fn new(gfn: Gfn) -> Self {
        Self {
            gfn: gfn.number().into(),
            frames: 1.into(),
        }
    }

    /// Takes the page in if it is the next one, and says whether it did.
    pub(crate) fn extend(&mut self, gfn: Gfn) -> bool {
        let next = self.gfn.get().checked_add(self.frames.get()) == Some(gfn.number());
        if next {
            self.frames += 1;
        }
        next
    }

    /// The first page and how many there are. Neither was checked.
    pub fn range(&self) -> (Gfn, u64) {
        (Gfn::new(self.gfn.get()), self.frames.get())
    }
}

/// A view of a `ZeroPages` record: at least one run.
#[derive(Clone, Copy, Debug)]
pub struct ZeroPages<'a>(&'a [Run]);

impl<'a> ZeroPages<'a> {
    pub(crate) fn new_checked(payload: &'a [u8]) -> Result<Self, StreamError> {
        match <[Run]>::ref_from_bytes(payload) {
            Ok(runs) if !runs.is_empty() => Ok(Self(runs)),
            _ => Err(length(Kind::ZeroPages, payload)),
        }
    }

    /// The runs.
    pub fn runs(&self) -> &'a [Run] {
        self.0
    }
}

/// The payload of `RoundEnd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundEnd {
    /// The round's number, from 1.
    pub round: u32,
    /// Whether this is the last one: the guest is paused, no page will follow.
    pub last: bool,
    /// Pages sent in this round, zero pages included.
    pub pages: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireRoundEnd {
    round: U32,
    /// 0 or 1.
    last: U32,
    pages: U64,
}

impl RoundEnd {
    pub(crate) fn read(payload: &[u8]) -> Result<Self, StreamError> {
        let wire =
            WireRoundEnd::ref_from_bytes(payload).map_err(|_| length(Kind::RoundEnd, payload))?;
        if wire.last.get() > 1 {
            return Err(StreamError::Field("flag in a round's end"));
        }
        Ok(Self {
            round: wire.round.get(),
            last: wire.last.get() == 1,
            pages: wire.pages.get(),
        })
    }

    /// Writes the payload and returns its length.
    pub(crate) fn write(&self, to: &mut [u8]) -> usize {
        let wire = WireRoundEnd {
            round: self.round.into(),
            last: u32::from(self.last).into(),
            pages: self.pages.into(),
        };
        let bytes = wire.as_bytes();
        to[..bytes.len()].copy_from_slice(bytes);
        bytes.len()
    }
}

fn length(kind: Kind, payload: &[u8]) -> StreamError {
    StreamError::Length {
        kind: kind as u16,
        length: payload.len() as u32,
    }
}
