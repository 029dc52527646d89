//! How much of a large range is worked on at once.
//!
//! # As few drains as the guest's turn allows
//! A drain is a wait for the hardware, so a range is best unmapped by one of them,
//! however large it is. But what a guest asks for in one request must not hold up the
//! host: its turn is so many steps, each the work of a leaf table at the most. So one
//! call takes on all that is left of the turn, and a turn has one drain a request. What
//! counts are the tables that are there: an empty gigabyte costs nothing.

use crate::layer::MapError;
use crate::space::{DmaSpace, Piece, SpaceError};
use crate::unit::DomainId;
use crate::{Iova, IovaRange};
use hv_core::PAGE_SHIFT;

/// The pages of a leaf table: what one step may map or unmap.
const STEP_PAGES: u64 = 512;
/// How many pages may be moved to another machine at once: the work of sixteen steps.
pub(super) const PORTION_PAGES: u64 = 16 * STEP_PAGES;

/// Maps the front of `rest`, a part of `mapping`, and returns what is left of it. The
/// step has `left` more that it may take.
pub(super) fn map_front(
    host: DomainId,
    mapping: &Piece,
    rest: IovaRange,
    space: &mut impl DmaSpace,
    left: &mut u32,
) -> Result<Option<IovaRange>, MapError> {
    let part = front_of(rest, 1 + *left);
    let piece = mapping.part(part).ok_or(MapError::OutOfRange)?;
    space.map_piece(host, &piece)?;
    *left -= tables_of(part) - 1;
    Ok(behind(rest, part))
}

/// Unmaps the front of what is mapped in `range`, and reports it. Returns what is left.
/// The step has `left` more that it may take.
pub(super) fn unmap_front(
    host: DomainId,
    range: IovaRange,
    space: &mut impl DmaSpace,
    left: &mut u32,
) -> Result<Option<IovaRange>, SpaceError> {
    let front = space.unmap_front(host, range, 1 + *left)?;
    *left -= front.tables.saturating_sub(1).min(*left);
    Ok(front.rest)
}

/// The front of `range` that so many leaf tables hold.
fn front_of(range: IovaRange, tables: u32) -> IovaRange {
    let first = range.start().raw() >> PAGE_SHIFT;
    let room = u64::from(tables) * STEP_PAGES - first % STEP_PAGES;
    // A front of a range is one.
    IovaRange::new(range.start(), range.pages().min(room)).unwrap_or(range)
}

/// How many leaf tables have a part of `range`.
fn tables_of(range: IovaRange) -> u32 {
    let table = |at: Iova| at.raw() >> PAGE_SHIFT >> STEP_PAGES.trailing_zeros();
    let count = table(range.last_page()) - table(range.start()) + 1;
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What is left of `range` behind `part`, its front.
fn behind(range: IovaRange, part: IovaRange) -> Option<IovaRange> {
    let pages = range.pages().checked_sub(part.pages())?;
    let start = part.behind()?;
    IovaRange::new(start, pages).ok()
}

/// What was done of `range` when `rest` was left.
pub(super) fn before(range: IovaRange, rest: IovaRange) -> Option<IovaRange> {
    let pages = range.pages().checked_sub(rest.pages())?;
    IovaRange::new(range.start(), pages).ok()
}
