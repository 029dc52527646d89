//! Reading the guest's root, context and second-stage tables.
//!
//! Two readers of the same structures: [`context`] and [`translate`] follow one
//! address as hardware would and give the reason when it ends; [`next_chunk`]
//! goes through a whole table, one chunk a call, for the shadow.
//!
//! Each word of guest memory is loaded once, and what was loaded is what is
//! decided on. A table that points back to itself is walked like any other: the
//! number of levels bounds the depth, the chunk bounds the work.

use super::capability::{HOST_ADDRESS_WIDTH, capabilities, extended_capabilities};
use super::paging_entry::PagingEntry;
use crate::Iova;
use crate::space::{Access, MAX_REPLACE, Mapping};
use crate::unit::SourceId;
use crate::vtd::{AddressWidth, ContextEntry, FaultReason, RootEntry};
use core::sync::atomic::Ordering;
use hv_core::memory::{Frame, GuestMemory, PhysMemory};
use hv_core::{Gfn, Gpa, PAGE_SHIFT};

/// log2 of the number of entries in a paging table.
const INDEX_BITS: u32 = 9;

/// A DMA that the unit would refuse.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    /// Why.
    pub(super) reason: FaultReason,
    /// There is a context entry, and it says that its faults are not to be
    /// recorded (FPD).
    pub(super) silent: bool,
}

/// The context entry of `source` under the root table at `root`, for a unit whose
/// IOVAs have up to `width` bits.
pub(super) fn context<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    root: u64,
    width: AddressWidth,
    source: SourceId,
) -> Result<ContextEntry, Refusal> {
    let loud = |reason| Refusal {
        reason,
        silent: false,
    };
    let raw = read_entry(guest, root, source.bus()).ok_or(loud(FaultReason::RootUnreadable))?;
    let entry = RootEntry::decode(raw, HOST_ADDRESS_WIDTH).map_err(loud)?;
    let raw = read_entry(guest, entry.context_table, source.devfn())
        .ok_or(loud(FaultReason::ContextUnreadable))?;
    ContextEntry::decode(
        raw,
        &capabilities(width),
        // Whether interrupts are remapped is all the same to it.
        &extended_capabilities(false),
        HOST_ADDRESS_WIDTH,
    )
    .map_err(|reason| Refusal {
        reason,
        silent: ContextEntry::is_silent(raw),
    })
}

/// Entry `index` of a table of 256 entries of 128 bits. The low half, with its
/// present bit, is loaded first: a driver stores it last.
fn read_entry<M: PhysMemory>(guest: &GuestMemory<'_, M>, table: u64, index: u8) -> Option<u128> {
    let at = Gpa::new(table).checked_add(u64::from(index) * RootEntry::SIZE as u64)?;
    let low = guest.read_u64(at).ok()?;
    let high = guest.read_u64(at.checked_add(8)?).ok()?;
    Some(u128::from(high) << 64 | u128::from(low))
}

/// Where a DMA through `context` ends.
pub(super) fn translate<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    context: &ContextEntry,
    iova: Iova,
    write: bool,
) -> Result<Gpa, FaultReason> {
    if iova.raw() >> context.width.bits() != 0 {
        return Err(FaultReason::BeyondWidth);
    }
    let denied = if write {
        FaultReason::NotWritable
    } else {
        FaultReason::NotReadable
    };
    let mut at = context.table;
    for level in (1..=context.width.levels()).rev() {
        let frame = table_at(guest, at).ok_or(FaultReason::TableUnreadable)?;
        let index = index(iova.raw() >> PAGE_SHIFT, level);
        let entry = PagingEntry::decode(load(frame, index), level)?.ok_or(denied)?;
        let allowed = if write { entry.writes } else { entry.reads };
        if !allowed {
            return Err(denied);
        }
        at = entry.address;
    }
    Ok(Gpa::new(at | iova.page_offset()))
}

/// A second-stage table of the guest's, under the domain number it is used with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GuestTable {
    pub(super) domain: u16,
    pub(super) root: u64,
    pub(super) width: AddressWidth,
}

impl GuestTable {
    pub(super) const fn of(context: &ContextEntry) -> Self {
        Self {
            domain: context.domain,
            root: context.table,
            width: context.width,
        }
    }

    /// All pages that it can translate.
    pub(super) const fn pages(&self) -> PageRun {
        PageRun {
            first: 0,
            last: (1 << (self.width.bits() as u32 - PAGE_SHIFT)) - 1,
        }
    }
}

/// A run of whole pages, by page number, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PageRun {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// What the guest's table says about the pages from the start of a run on.
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack of one step (8 KiB); there is no heap to move it to"
)]
pub(super) enum Chunk {
    /// All of them up to `last` are unmapped.
    Empty { last: u64 },
    /// The first `count` of them, out of one leaf table, are to be as in `pages`.
    Leaves {
        pages: [Option<Mapping>; MAX_REPLACE],
        count: usize,
    },
}

/// Reads one table's worth of a second-stage table, from the start of `run` on:
/// either a leaf table, or a stretch of entries of an upper one that lead nowhere.
/// `run` lies within the table's width and is covered by one call or more.
pub(super) fn next_chunk<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    table: &GuestTable,
    run: PageRun,
) -> Chunk {
    let mut at = table.root;
    let mut rights = (true, true);
    for level in (2..=table.width.levels()).rev() {
        let first = index(run.first, level);
        let leads_on = |frame: &Frame, index| {
            let entry = PagingEntry::decode(load(frame, index), level).ok()??;
            let rights = (rights.0 && entry.reads, rights.1 && entry.writes);
            (rights != (false, false)).then_some((entry.address, rights))
        };
        let frame = table_at(guest, at);
        match frame.and_then(|frame| leads_on(frame, first)) {
            Some(next) => (at, rights) = next,
            None => {
                // Each entry is looked at once. An unreadable table is empty as a
                // whole.
                let end = (first + 1..1 << INDEX_BITS)
                    .find(|&index| frame.is_some_and(|frame| leads_on(frame, index).is_some()));
                let last = last_before(run.first, level, end.unwrap_or(1 << INDEX_BITS));
                return Chunk::Empty {
                    last: last.min(run.last),
                };
            }
        }
    }
    let Some(frame) = table_at(guest, at) else {
        let last = last_before(run.first, 1, 1 << INDEX_BITS);
        return Chunk::Empty {
            last: last.min(run.last),
        };
    };
    let first = index(run.first, 1);
    let count = (run.last - run.first + 1).min((MAX_REPLACE - first) as u64) as usize;
    let mut pages = [None; MAX_REPLACE];
    for (page, index) in pages.iter_mut().zip(first..first + count) {
        // The only load of this entry: what the guest makes of it from now on is
        // for its next invalidation.
        *page = leaf(load(frame, index), rights).filter(|mapping| guest.frame(mapping.gfn).is_ok());
    }
    Chunk::Leaves { pages, count }
}

/// Whether the table has anything at `page`, which may lie beyond its width.
pub(super) fn is_mapped<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    table: &GuestTable,
    page: u64,
) -> bool {
    let run = PageRun {
        first: page,
        last: page,
    };
    match next_chunk(guest, table, run) {
        Chunk::Leaves { pages, .. } => page <= table.pages().last && pages[0].is_some(),
        Chunk::Empty { .. } => false,
    }
}

/// The page behind a leaf, under the rights of the path to it.
fn leaf(raw: u64, rights: (bool, bool)) -> Option<Mapping> {
    let entry = PagingEntry::decode(raw, 1).ok()??;
    let access = Access::new(rights.0 && entry.reads, rights.1 && entry.writes)?;
    Some(Mapping {
        gfn: Gfn::containing(Gpa::new(entry.address)),
        access,
    })
}

/// The last page before entry `end` of the table of that level on the way to
/// `page`.
const fn last_before(page: u64, level: u8, end: usize) -> u64 {
    let table_bits = INDEX_BITS * level as u32;
    let entry_bits = table_bits - INDEX_BITS;
    ((page >> table_bits) << table_bits) + ((end as u64) << entry_bits) - 1
}

const fn index(page: u64, level: u8) -> usize {
    (page >> (INDEX_BITS * (level as u32 - 1))) as usize & ((1 << INDEX_BITS) - 1)
}

fn table_at<'m, M: PhysMemory>(guest: &GuestMemory<'m, M>, at: u64) -> Option<&'m Frame> {
    guest.frame(Gfn::containing(Gpa::new(at))).ok()
}

/// Entry `index` (below 512), after all that the guest stored before it.
fn load(frame: &Frame, index: usize) -> u64 {
    frame.words()[index].load(Ordering::Acquire)
}
