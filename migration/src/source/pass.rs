//! One pass over guest memory: which pages, and how they get into records.

use super::SourceVm;
use crate::stream::{Kind, PAGES_PER_RECORD, PageEntry, RoundEnd, Run, Vacant};
use core::mem::size_of;
use heapless::Vec;
use hv_core::Gfn;
use hv_core::dirty::Batch;
use zerocopy::{FromBytes, IntoBytes};

/// The most runs of zero pages collected before they are sent.
const ZERO_RUNS: usize = 128;

/// Which page comes next.
enum Cursor {
    /// Every page of every slot.
    All { slot: usize, index: u64 },
    /// The pages that the log names.
    Marked { from: Gfn, batch: Option<Batch> },
}

impl Cursor {
    /// The next page. A page of the log is no longer marked when this returns it.
    fn next<V: SourceVm>(&mut self, vm: &V) -> Option<Gfn> {
        match self {
            Self::All { slot, index } => loop {
                let run = vm.slots().get(*slot)?;
                if *index < run.frames {
                    *index += 1;
                    return Some(Gfn::new(run.gfn.number() + *index - 1));
                }
                (*slot, *index) = (*slot + 1, 0);
            },
            Self::Marked { from, batch } => loop {
                if let Some(gfn) = batch.as_mut().and_then(Iterator::next) {
                    return Some(gfn);
                }
                let next = vm.log().drain(*from)?;
                *from = next.resume_at();
                *batch = Some(next);
            },
        }
    }
}

/// A pass in progress.
pub(crate) struct Pass {
    cursor: Cursor,
    last: bool,
    zero_runs: Vec<Run, ZERO_RUNS>,
    /// Whether the cursor has come to its end.
    read_all: bool,
    pages: u64,
    zero_pages: u64,
}

/// What came of a call of [`Pass::put_record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// A record is in the outbox.
    Pages,
    /// No record, for the budget ran out first.
    Nothing,
    /// The record that ends the round is in the outbox.
    RoundEnd,
}

impl Pass {
    /// The first pass: all memory, whatever the log says.
    pub(crate) fn all() -> Self {
        Self::new(Cursor::All { slot: 0, index: 0 }, false)
    }

    /// A later pass: what is in the log. `last` if the guest is at rest.
    pub(crate) fn marked(last: bool) -> Self {
        let cursor = Cursor::Marked {
            from: Gfn::new(0),
            batch: None,
        };
        Self::new(cursor, last)
    }

    fn new(cursor: Cursor, last: bool) -> Self {
        Self {
            cursor,
            last,
            zero_runs: Vec::new(),
            read_all: false,
            pages: 0,
            zero_pages: 0,
        }
    }

    /// Pages looked at and sent or to be sent, zero pages included.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    pub(crate) fn zero_pages(&self) -> u64 {
        self.zero_pages
    }

    pub(crate) fn is_last(&self) -> bool {
        self.last
    }

    /// Puts the next record of round `round` into the outbox, looking at no more
    /// than `budget` pages, which it reduces.
    ///
    /// Zero pages wait in a list and go out when it is full or the pass is over,
    /// always before the round's end: within a pass no page comes twice, so no
    /// older copy of a page can overtake a newer one.
    pub(crate) fn put_record<V: SourceVm, B: AsMut<[u8]>>(
        &mut self,
        round: u32,
        vm: &V,
        vacant: Vacant<'_, B>,
        budget: &mut u32,
    ) -> Put {
        if self.zero_runs.is_full() || (self.read_all && !self.zero_runs.is_empty()) {
            vacant.put_plain(Kind::ZeroPages, |payload| {
                let bytes = self.zero_runs.as_slice().as_bytes();
                payload[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            });
            self.zero_runs.clear();
            return Put::Pages;
        }
        if self.read_all {
            let end = RoundEnd {
                round,
                last: self.last,
                pages: self.pages,
            };
            vacant.put_plain(Kind::RoundEnd, |payload| end.write(payload));
            return Put::RoundEnd;
        }
        let put = vacant.put(Kind::Pages, |payload| {
            match self.read_pages(vm, payload, budget) {
                0 => Err(()),
                length => Ok(length),
            }
        });
        put.map_or(Put::Nothing, |()| Put::Pages)
    }

    /// Fills a `Pages` payload and returns its length; notes zero pages aside.
    fn read_pages<V: SourceVm>(&mut self, vm: &V, payload: &mut [u8], budget: &mut u32) -> usize {
        let Ok((entries, _)) = <[PageEntry]>::mut_from_prefix_with_elems(payload, PAGES_PER_RECORD)
        else {
            return 0;
        };
        let mut filled = 0;
        while filled < entries.len() && *budget > 0 && !self.zero_runs.is_full() {
            // The order that loses no write: the page leaves the log first and is
            // read afterwards. A write in between is in the copy and marked again,
            // which costs sending it twice. The other way round, a write between
            // the read and the clearing would be in neither. `drain` has acquire
            // order, so no word is read from before its mark.
            let Some(gfn) = self.cursor.next(vm) else {
                self.read_all = true;
                break;
            };
            *budget -= 1;
            let Some(frame) = vm.frame(gfn) else {
                // The log spans holes between slots; nothing to send there.
                continue;
            };
            self.pages += 1;
            if frame.is_zero() {
                self.note_zero(gfn);
            } else {
                entries[filled].read_from(gfn, frame);
                filled += 1;
            }
        }
        filled * size_of::<PageEntry>()
    }

    fn note_zero(&mut self, gfn: Gfn) {
        self.zero_pages += 1;
        let extended = self.zero_runs.last_mut().is_some_and(|run| run.extend(gfn));
        if !extended {
            // There is room: the caller stops when the list is full.
            let pushed = self.zero_runs.push(Run::new(gfn));
            debug_assert!(pushed.is_ok());
        }
    }
}
