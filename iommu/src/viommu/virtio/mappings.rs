//! The mappings as they travel.
//!
//! The guest has no tables from which the destination could build its own, so the
//! mappings go across, read out of the source's tables, which are the only place
//! where they are. They may be many and large, hence a stream of pieces in portions,
//! each of which is bounded work at either end and takes no memory but the tables
//! themselves.

use super::VirtioIommu;
use super::config::last_input;
use super::portion::{PORTION_PAGES, before};
use super::property::DOORBELL;
use super::work::Task;
use crate::layer::MapError;
use crate::space::{Access, DmaSpace, Piece, SpaceError};
use crate::unit::DomainId;
use crate::viommu::StateError;
use crate::{Iova, IovaRange};
use bitflags::bitflags;
use hv_core::{Gfn, PAGE_SIZE};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of one piece's record.
pub const MAPPING_BYTES: usize = size_of::<Record>();

/// Where in the mappings a save has come to; they must not change meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    /// Which domain, in the order of the list.
    domain: usize,
    /// The first IOVA in it that was not looked at.
    from: u64,
    /// Whether the mapping before goes on there.
    goes_on: bool,
}

/// A piece of a mapping.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    /// The guest's number of the domain.
    domain: U32,
    /// [`Flags`].
    flags: U32,
    /// The first IOVA.
    start: U64,
    pages: U64,
    /// The guest frame behind the first page.
    gfn: U64,
}

bitflags! {
    struct Flags: u32 {
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        /// The mapping begins with this piece.
        const FIRST = 1 << 2;
        /// The mapping ends with it.
        const LAST = 1 << 3;
    }
}

impl Cursor {
    /// Moves behind `range` of the present domain.
    fn pass(&mut self, range: IovaRange, goes_on: bool) {
        match range.behind() {
            Some(next) => (self.from, self.goes_on) = (next.raw(), goes_on),
            None => self.pass_domain(),
        }
    }

    fn pass_domain(&mut self) {
        *self = Self {
            domain: self.domain + 1,
            ..Self::default()
        };
    }
}

impl VirtioIommu {
    /// Fills the front of `to` with records of the mappings from `cursor` on, as many
    /// as one portion takes, moves it behind them, and returns their length: 0 when
    /// there are no more. (`to` has room for one at least.)
    ///
    /// A mapping that is being made, or taken back, is left out: the request is
    /// done again where it is restored.
    pub fn save_mappings(
        &self,
        space: &impl DmaSpace,
        cursor: &mut Cursor,
        to: &mut [u8],
    ) -> usize {
        let (mut length, mut room) = (0, PORTION_PAGES);
        for place in to.chunks_exact_mut(MAPPING_BYTES) {
            if room == 0 {
                break;
            }
            let Some((domain, piece)) = self.next_record(space, cursor, room) else {
                break;
            };
            room -= piece.range.pages();
            place.copy_from_slice(Record::of(domain, &piece).as_bytes());
            length += MAPPING_BYTES;
        }
        length
    }

    /// Whether there are mappings from `cursor` on.
    pub fn has_mappings(&self, space: &impl DmaSpace, mut cursor: Cursor) -> bool {
        self.next_piece(space, &mut cursor).is_some()
    }

    /// Makes mappings that another unit's [`VirtioIommu::save_mappings`] wrote, one
    /// portion at a time and in that order. To be called after
    /// [`Viommu::restore`](crate::viommu::Viommu::restore) and before the first step
    /// of work.
    ///
    /// # Errors
    /// A record is malformed, does not follow the one before, is more than goes into
    /// a portion, or cannot be mapped here; those before it are.
    pub fn restore_mappings(
        &mut self,
        space: &mut impl DmaSpace,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let malformed = StateError::Register("a mapping");
        let records = <[Record]>::ref_from_bytes(bytes).map_err(|_| malformed)?;
        let mut room = PORTION_PAGES;
        for record in records {
            let domain = record.domain.get();
            let is_known = self.endpoints.domain(domain).is_some_and(|it| !it.bypass);
            let piece = record.piece(self.width).ok_or(malformed)?;
            room = room.checked_sub(piece.range.pages()).ok_or(malformed)?;
            let follows = match &self.torn {
                None => piece.first,
                Some((of, torn)) => *of == domain && goes_on_with(torn, &piece),
            };
            if !is_known || !follows {
                return Err(malformed);
            }
            let host = self.endpoints.create_host(domain, space);
            let host = host.map_err(|error| match error {
                SpaceError::Unit(error) => MapError::Unit(error),
                _ => MapError::OutOfMemory,
            })?;
            space.map_piece(host, &piece)?;
            self.torn = (!piece.last).then_some((domain, piece));
        }
        Ok(())
    }

    /// The pieces from `cursor` on that are one, up to `room` pages (1 at least), and
    /// moves it behind them.
    fn next_record(
        &self,
        space: &impl DmaSpace,
        cursor: &mut Cursor,
        room: u64,
    ) -> Option<(u32, Piece)> {
        let (domain, host, piece) = self.next_piece(space, cursor)?;
        let mut all = front(piece, room)?;
        // Of a mapping that is being unmapped the front may be gone.
        all.first = !(cursor.goes_on && all.range.start().raw() == cursor.from);
        while !all.last
            && all.range.pages() < room
            && let Some(next) = all.range.behind()
            && let Some(more) = piece_from(space, host, next)
            && goes_on_with(&all, &more)
        {
            let more = front(more, room - all.range.pages())?;
            let pages = all.range.pages() + more.range.pages();
            all.range = IovaRange::new(all.range.start(), pages).ok()?;
            all.last = more.last;
        }
        cursor.pass(all.range, !all.last);
        Some((domain, all))
    }

    /// The first piece from `cursor` on, and where it is. Moves the cursor to its
    /// domain, and over what is left out.
    fn next_piece(
        &self,
        space: &impl DmaSpace,
        cursor: &mut Cursor,
    ) -> Option<(u32, DomainId, Piece)> {
        loop {
            let (domain, host) = self.endpoints.host_at(cursor.domain)?;
            let Some(piece) = piece_from(space, host, Iova::new(cursor.from)) else {
                cursor.pass_domain();
                continue;
            };
            match self.left_out(host, piece.range.start()) {
                Some(range) => cursor.pass(range, false),
                None => return Some((domain, host, piece)),
            }
        }
    }

    /// The pages around `at` that do not go along: what is not complete, and what the
    /// guest was told is gone, which a sabotage holds back.
    fn left_out(&self, host: DomainId, at: Iova) -> Option<IovaRange> {
        let held_back = self.held_back.held().filter(|held| held.0 == host);
        let ranges = [self.unfinished(host), held_back.map(|held| held.1)];
        let mut ranges = ranges.into_iter().flatten();
        ranges.find(|range| range.contains(at))
    }

    /// What the job in hand has made so far in a domain, of a mapping that is not
    /// complete. Behind that may be mappings from before, which the job has yet to run
    /// into.
    fn unfinished(&self, host: DomainId) -> Option<IovaRange> {
        let (in_host, made) = match self.job?.task {
            Task::Map {
                host,
                mapping,
                rest,
            } => (host, before(mapping.range, rest)?),
            Task::Undo { host, made } => (host, made),
            _ => return None,
        };
        (in_host == host).then_some(made)
    }
}

impl Record {
    fn of(domain: u32, piece: &Piece) -> Self {
        let mut flags = Flags::empty();
        flags.set(Flags::READ, piece.access.reads());
        flags.set(Flags::WRITE, piece.access.writes());
        flags.set(Flags::FIRST, piece.first);
        flags.set(Flags::LAST, piece.last);
        Self {
            domain: domain.into(),
            flags: flags.bits().into(),
            start: piece.range.start().raw().into(),
            pages: piece.range.pages().into(),
            gfn: piece.gfn.number().into(),
        }
    }

    fn piece(&self, width: u8) -> Option<Piece> {
        let flags = Flags::from_bits(self.flags.get())?;
        let access = Access::new(flags.contains(Flags::READ), flags.contains(Flags::WRITE))?;
        let range = IovaRange::new(Iova::new(self.start.get()), self.pages.get()).ok()?;
        let (first, last) = (range.start().raw(), range.last_page().raw());
        let is_doorbell = first <= *DOORBELL.end() && last >= *DOORBELL.start();
        (last <= last_input(width) && !is_doorbell).then_some(Piece {
            range,
            gfn: Gfn::new(self.gfn.get()),
            access,
            first: flags.contains(Flags::FIRST),
            last: flags.contains(Flags::LAST),
        })
    }
}

/// The first piece from `from` on, without what lies before.
fn piece_from(space: &impl DmaSpace, host: DomainId, from: Iova) -> Option<Piece> {
    let piece = space.next_piece(host, from)?;
    let skipped = from.raw().saturating_sub(piece.range.start().raw()) / PAGE_SIZE;
    let start = Iova::new(piece.range.start().raw().max(from.raw()));
    piece.part(IovaRange::new(start, piece.range.pages() - skipped).ok()?)
}

/// The first pages of a piece, as many as there is room for.
fn front(piece: Piece, room: u64) -> Option<Piece> {
    let pages = piece.range.pages().min(room);
    piece.part(IovaRange::new(piece.range.start(), pages).ok()?)
}

/// Whether a mapping that has not ended with `piece` goes on with `next`.
fn goes_on_with(piece: &Piece, next: &Piece) -> bool {
    let end = piece.range.behind();
    let gfn = piece.gfn.number().checked_add(piece.range.pages());
    end == Some(next.range.start())
        && gfn == Some(next.gfn.number())
        && piece.access == next.access
        && !next.first
}
