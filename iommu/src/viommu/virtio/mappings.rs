//! The mappings as they travel.
//!
//! The guest has no tables from which the destination could build its own, so the
//! mappings go across, read out of the source's tables, which are the only place
//! where they are. They may be many, hence a stream of records in portions of any
//! size; no portion takes memory at either end but the tables themselves.

use super::VirtioIommu;
use super::config::last_input;
use super::property::DOORBELL;
use super::work::Task;
use crate::layer::MapError;
use crate::space::{Access, DmaSpace, Region, SpaceError};
use crate::unit::DomainId;
use crate::viommu::StateError;
use crate::{Iova, IovaRange};
use hv_core::{Gfn, PAGE_SIZE};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of one mapping's record.
pub const MAPPING_BYTES: usize = size_of::<Record>();

/// Where in the mappings a save has come to; they must not change meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    /// Which domain, in the order of the list.
    domain: usize,
    /// The first IOVA not looked at; `None`: the domain is done.
    from: Option<u64>,
    /// Whether `from` was set for this domain.
    is_inside: bool,
}

/// One mapping.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    /// The guest's number of the domain.
    domain: U32,
    /// 1: read, 2: write, 3: both.
    access: U32,
    /// The first IOVA.
    start: U64,
    pages: U64,
    /// The guest frame behind the first page.
    gfn: U64,
}

impl VirtioIommu {
    /// Fills the front of `to` with records of the mappings from `cursor` on,
    /// moves it behind them, and returns their length: 0 when there are no more.
    /// (`to` has room for one at least.)
    ///
    /// A mapping that is being made, or taken back, is left out: the request is
    /// done again where it is restored.
    pub fn save_mappings(
        &self,
        space: &impl DmaSpace,
        cursor: &mut Cursor,
        to: &mut [u8],
    ) -> usize {
        let mut length = 0;
        for place in to.chunks_exact_mut(MAPPING_BYTES) {
            let Some((domain, region)) = self.next_mapping(space, cursor) else {
                break;
            };
            let record = Record {
                domain: domain.into(),
                access: u32::from(region.access.reads()).into(),
                start: region.range.start().raw().into(),
                pages: region.range.pages().into(),
                gfn: region.gfn.number().into(),
            };
            let access = record.access.get() | u32::from(region.access.writes()) << 1;
            let record = Record {
                access: access.into(),
                ..record
            };
            place.copy_from_slice(record.as_bytes());
            length += MAPPING_BYTES;
        }
        length
    }

    /// Makes mappings that another unit saved, after [`crate::viommu::Viommu::restore`]
    /// and before the first step of work.
    ///
    /// # Errors
    /// A record is malformed, or cannot be mapped here; those before it are.
    pub fn restore_mappings(
        &mut self,
        space: &mut impl DmaSpace,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let malformed = StateError::Register("a mapping");
        let records = <[Record]>::ref_from_bytes(bytes).map_err(|_| malformed)?;
        for record in records {
            let domain = record.domain.get();
            let is_known = self.endpoints.domain(domain).is_some_and(|it| !it.bypass);
            if !is_known {
                return Err(malformed);
            }
            let region = record.region(self.width).ok_or(malformed)?;
            let host = self.endpoints.create_host(domain, space);
            let host = host.map_err(|error| match error {
                SpaceError::Unit(error) => MapError::Unit(error),
                _ => MapError::OutOfMemory,
            })?;
            space.map_part(host, &region, region.range)?;
        }
        Ok(())
    }

    fn next_mapping(&self, space: &impl DmaSpace, cursor: &mut Cursor) -> Option<(u32, Region)> {
        loop {
            let (domain, host) = self.endpoints.host_at(cursor.domain)?;
            let from = match cursor.is_inside {
                true => cursor.from,
                false => Some(0),
            };
            let Some(region) = from.and_then(|from| next_region(host, Iova::new(from), space))
            else {
                *cursor = Cursor {
                    domain: cursor.domain + 1,
                    ..Cursor::default()
                };
                continue;
            };
            let last = region.range.last_page();
            cursor.from = last.checked_add(PAGE_SIZE).map(Iova::raw);
            cursor.is_inside = true;
            if !self.is_unfinished(host, &region) {
                return Some((domain, region));
            }
        }
    }

    /// Whether a region is what the job in hand has made so far. Behind that may be
    /// mappings from before, which the job has yet to run into.
    fn is_unfinished(&self, host: DomainId, region: &Region) -> bool {
        let at = region.range.start();
        match self.job.map(|job| job.task) {
            Some(Task::Map {
                host: in_host,
                region: made,
                rest,
            }) => host == in_host && made.range.contains(at) && at < rest.start(),
            Some(Task::Undo {
                host: in_host,
                region: made,
            }) => host == in_host && made.range.contains(at),
            _ => false,
        }
    }
}

impl Record {
    fn region(&self, width: u8) -> Option<Region> {
        let access = match self.access.get() {
            1 => Access::Read,
            2 => Access::Write,
            3 => Access::ReadWrite,
            _ => return None,
        };
        let range = IovaRange::new(Iova::new(self.start.get()), self.pages.get()).ok()?;
        let (first, last) = (range.start().raw(), range.last_page().raw());
        let is_doorbell = first <= *DOORBELL.end() && last >= *DOORBELL.start();
        (last <= last_input(width) && !is_doorbell).then_some(Region {
            range,
            gfn: Gfn::new(self.gfn.get()),
            access,
        })
    }
}

/// The first mapping at `from` or behind it: the pieces up to the one that ends it.
fn next_region(host: DomainId, from: Iova, space: &impl DmaSpace) -> Option<Region> {
    let mut piece = space.next_piece(host, from)?;
    let (start, gfn, access) = (piece.range.start(), piece.gfn, piece.access);
    let mut pages = piece.range.pages();
    while !piece.last {
        let next = piece.range.last_page().checked_add(PAGE_SIZE)?;
        // A mapping that is being unmapped may have lost its end.
        match space.next_piece(host, next) {
            Some(more) if more.range.start() == next && !more.first => piece = more,
            _ => break,
        }
        pages += piece.range.pages();
    }
    let range = IovaRange::new(start, pages).ok()?;
    Some(Region { range, gfn, access })
}
