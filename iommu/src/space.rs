//! What an emulated IOMMU asks of the host side.
//!
//! A vIOMMU model knows the guest's tables and nothing of the host's; through
//! this trait it says what each device shall reach, by guest frame.

use crate::layer::MapError;
use crate::unit::{DomainId, SourceId, UnitError};
use crate::{Iova, IovaRange};
use hv_core::Gfn;

/// What a device may do with a page. A mapping with neither right does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The device may read.
    Read,
    /// The device may write.
    Write,
    /// The device may read and write.
    ReadWrite,
}

impl Access {
    /// The access with these rights, `None` without any.
    pub const fn new(read: bool, write: bool) -> Option<Self> {
        match (read, write) {
            (true, true) => Some(Self::ReadWrite),
            (true, false) => Some(Self::Read),
            (false, true) => Some(Self::Write),
            (false, false) => None,
        }
    }

    /// Whether the device may read.
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether the device may write.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// One page that a device shall reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The guest frame behind it.
    pub gfn: Gfn,
    /// What the device may do there.
    pub access: Access,
}

/// A mapping, or a run of pages of one. A mapping is taken away only as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The IOVAs.
    pub range: IovaRange,
    /// The guest frame behind the first page; the others follow it.
    pub gfn: Gfn,
    /// What the device may do there.
    pub access: Access,
    /// Whether the mapping begins with this piece.
    pub first: bool,
    /// Whether the mapping ends with this piece.
    pub last: bool,
}

impl Piece {
    /// What it has at `part`; `None` if that is not all in it, or the guest frames
    /// behind it have no numbers.
    pub fn part(&self, part: IovaRange) -> Option<Self> {
        let (start, last) = (self.range.start(), self.range.last_page());
        let before = part.start().raw().checked_sub(start.raw())? >> hv_core::PAGE_SHIFT;
        (part.last_page() <= last).then_some(Self {
            range: part,
            gfn: Gfn::new(self.gfn.number().checked_add(before)?),
            first: self.first && part.start() == start,
            last: self.last && part.last_page() == last,
            ..*self
        })
    }
}

/// What [`DmaSpace::unmap_front`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Front {
    /// How many leaf tables, or leaves as large as one, were worked in.
    pub tables: u32,
    /// The pages behind the front; `None` if nothing was left to be unmapped.
    pub rest: Option<IovaRange>,
}

/// Where a device's DMA goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attachment {
    /// IOVA = guest physical address, all of the guest's memory and nothing
    /// else: the machine as it is before its IOMMU is turned on.
    Identity,
    /// Through the mappings of that domain.
    Domain(DomainId),
    /// Nowhere.
    Blocked,
}

/// How many pages one [`DmaSpace::replace`] may name at the most: one leaf table.
pub const MAX_REPLACE: usize = 512;

/// What a [`DmaSpace::replace`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replaced {
    /// Mappings taken away, among them those put back in another form.
    pub unmapped: u64,
    /// Mappings made.
    pub mapped: u64,
    /// Wanted pages that were refused, because they are outside the guest's
    /// memory, the tables' memory is used up, or a page's counter is full. The
    /// device faults on them.
    pub refused: u64,
}

/// Why the host side could not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpaceError {
    /// There is no such domain, or a device still uses it.
    #[error("no such domain, or it is in use")]
    NoDomain,
    /// No more domains, or no memory for the domain's root.
    #[error("out of domains or of memory for tables")]
    OutOfMemory,
    /// The range lies beyond the domain's address width, or a window is not of
    /// the form asked for.
    #[error("the range is beyond what the unit translates")]
    OutOfRange,
    /// The hardware failed.
    #[error(transparent)]
    Unit(#[from] UnitError),
}

/// The host side of a vIOMMU.
pub trait DmaSpace {
    /// The number of IOVA bits a domain translates (39 or 48).
    fn address_width(&self) -> u8;

    /// A new domain without mappings.
    fn create_domain(&mut self) -> Result<DomainId, SpaceError>;

    /// Removes a domain no device is attached to, with every mapping in it. What
    /// a device could write through them is reported.
    fn destroy_domain(&mut self, domain: DomainId) -> Result<(), SpaceError>;

    /// Makes a window of a domain look exactly as wanted: page `i` of the window
    /// becomes `wanted[i]`. `wanted` has [`MAX_REPLACE`] pages at the most.
    ///
    /// Mappings that are there already stay untouched, so the device never sees
    /// them missing. All others in the window are unmapped first, with one
    /// invalidation and report for all of them; what they could write is in the
    /// dirty log, and no DMA reaches the old pages, when this returns.
    fn replace(
        &mut self,
        domain: DomainId,
        start: Iova,
        wanted: &[Option<Mapping>],
    ) -> Result<Replaced, SpaceError>;

    /// Removes every mapping in the range, which may be of any size; ranges
    /// without tables cost next to nothing. Same promise as
    /// [`DmaSpace::replace`]. Returns how many mappings there were.
    fn unmap_range(&mut self, domain: DomainId, range: IovaRange) -> Result<u64, SpaceError>;

    /// Maps a piece of a mapping, so that a large one can be made in steps; on an
    /// error nothing changed. Once all its pieces are there it is one mapping.
    fn map_piece(&mut self, domain: DomainId, piece: &Piece) -> Result<(), MapError>;

    /// As [`DmaSpace::unmap_range`], for as much of the front of `range` as lies in
    /// `tables` leaf tables (1 at least), with one drain for all of it. A mapping that
    /// reaches behind the front is cut there: for taking a range away in steps, after
    /// [`DmaSpace::bisects`] allowed all of it.
    fn unmap_front(
        &mut self,
        domain: DomainId,
        range: IovaRange,
        tables: u32,
    ) -> Result<Front, SpaceError>;

    /// Whether `range` begins or ends inside a mapping. Takes the same time for
    /// any range.
    fn bisects(&self, domain: DomainId, range: IovaRange) -> bool;

    /// The first piece that is mapped at `from` or behind it, as the host's tables
    /// hold it: one leaf. `None` if there is none, or no such domain. Takes the same
    /// time wherever that is.
    fn next_piece(&self, domain: DomainId, from: Iova) -> Option<Piece>;

    /// Sends a device's DMA elsewhere. On return none is in flight under the old
    /// attachment. Pages it could write there stay due for a report, as long as
    /// they are mapped.
    fn attach(&mut self, device: SourceId, to: Attachment) -> Result<(), SpaceError>;
}
