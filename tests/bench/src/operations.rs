//! The operations that are measured.

use crate::rig::{GUEST_PAGES, Rig, RigError, pages};
use crate::step;
use core::arch::x86_64::_rdtsc;
use hv_core::{Gfn, PAGE_SIZE};
use iommu::space::Access;
use iommu::{DirtyBitmap, Iova, IovaRange};
use strandline_bench::record::Record;

/// How often each operation is done and measured, after once for the caches: the
/// pool's frames have all been in use then.
const REPETITIONS: usize = 4;
/// Mappings in a sweep.
const SWEEP: u64 = 2048;
/// Operations with more pages are not stepped through.
const MOST_STEPPED: u64 = 2048;
const MIB: u64 = 1 << 20;
/// Where guest memory begins at which no large leaf fits.
const ODD: u64 = 1;
/// A bitmap for the largest operation.
const BITMAP_WORDS: usize = DirtyBitmap::words_needed(GUEST_PAGES) as usize;

/// Where something is mapped, from what memory, and in how many mappings.
#[derive(Clone, Copy)]
struct Layout {
    /// The first page, by IOVA.
    page: u64,
    /// Of the guest, the first one.
    gfn: u64,
    /// How many guest frames further the next mapping's memory is, going around.
    stride: u64,
    mappings: u64,
    pages_each: u64,
    access: Access,
}

impl Layout {
    /// One mapping.
    const fn one(page: u64, gfn: u64, pages_each: u64) -> Self {
        Self {
            page,
            gfn,
            stride: pages_each,
            mappings: 1,
            pages_each,
            access: Access::ReadWrite,
        }
    }

    /// Mappings of one page each, side by side.
    const fn singles(page: u64, stride: u64, mappings: u64) -> Self {
        Self {
            page,
            gfn: ODD,
            stride,
            mappings,
            pages_each: 1,
            access: Access::ReadWrite,
        }
    }

    const fn pages(&self) -> u64 {
        self.mappings * self.pages_each
    }

    fn range(&self) -> Result<IovaRange, RigError> {
        range(self.page, self.pages())
    }
}

/// A prime number of frames: going around in such steps, neighbours are never met
/// one after the other.
const SCATTER: u64 = 7919;

fn range(page: u64, count: u64) -> Result<IovaRange, RigError> {
    Ok(IovaRange::new(Iova::new(page * PAGE_SIZE), count)?)
}

/// Measures everything, and shows each record as it is made.
pub(crate) fn measure(rig: &mut Rig, show: &mut dyn FnMut(&Record)) -> Result<(), RigError> {
    let mut bench = Bench {
        rig,
        bitmap: &mut [0; BITMAP_WORDS],
        show,
        others: 0,
        counts_descriptors: false,
        sent: (0, 0),
    };
    let page = Layout::one(0, ODD, 1);
    bench.map("map-4k-first", page)?;
    bench.unmap("unmap-4k-last", page)?;
    let read_only = Layout {
        access: Access::Read,
        ..page
    };
    bench.unmap("unmap-4k-read-only", read_only)?;

    bench.others(0, 1)?;
    bench.map("map-4k", page)?;
    bench.unmap("unmap-4k", page)?;
    bench.clear()?;

    let side_by_side = Layout::singles(0, 1, SWEEP);
    let scattered = Layout::singles(0, SCATTER, SWEEP);
    bench.sweep("unmap-4k-sweep", side_by_side)?;
    bench.unmap("unmap-2048-in-one-call", side_by_side)?;
    bench.unmap("unmap-2048-in-one-call-scattered", scattered)?;

    let small = Layout::one(0, ODD, pages(2 * MIB));
    bench.map("map-2m-small-leaves", small)?;
    bench.unmap("unmap-2m-small-leaves", small)?;
    let pieces = Layout::singles(0, SCATTER, pages(2 * MIB));
    bench.unmap("unmap-2m-scattered", pieces)?;
    // Across two tables, neither of which goes as a whole.
    let straddling = Layout { page: 256, ..small };
    bench.unmap("unmap-2m-straddling", straddling)?;
    let large = Layout::one(0, 0, pages(2 * MIB));
    bench.map("map-2m-large-leaf", large)?;
    bench.unmap("unmap-2m-large-leaf", large)?;

    let much = Layout::one(0, ODD, pages(128 * MIB));
    bench.map("map-128m-small-leaves", much)?;
    bench.unmap("unmap-128m-small-leaves", much)?;
    let pieces = Layout::singles(0, SCATTER, pages(128 * MIB));
    bench.unmap("unmap-128m-scattered", pieces)?;

    bench.harvest("harvest-nothing-writable", Layout::singles(0, 1, 0))?;
    bench.harvest("harvest-128m-writable", much)?;

    let mut there = 0;
    for log2 in (0..=20).step_by(2) {
        bench.others(there, 1 << log2)?;
        there = 1 << log2;
        bench.map("curve-map-4k", page)?;
        bench.unmap("curve-unmap-4k", page)?;
    }
    bench.clear()
}

struct Bench<'b> {
    rig: &'b mut Rig,
    bitmap: &'b mut [u64; BITMAP_WORDS],
    show: &'b mut dyn FnMut(&Record),
    /// How many other mappings there are.
    others: u64,
    /// Whether descriptors are counted at present: not while instructions are.
    counts_descriptors: bool,
    /// Descriptors that invalidated, and that waited.
    sent: (u64, u64),
}

impl Bench<'_> {
    /// Measures a map into nothing.
    fn map(&mut self, operation: &'static str, layout: Layout) -> Result<(), RigError> {
        self.repeat(
            operation,
            layout,
            |_| Ok(()),
            |bench| bench.enter(layout),
            |bench| bench.remove(layout),
        )
    }

    /// Measures one call that unmaps all of it and fills the bitmap.
    fn unmap(&mut self, operation: &'static str, layout: Layout) -> Result<(), RigError> {
        let all = layout.range()?;
        self.repeat(
            operation,
            layout,
            |bench| bench.enter(layout),
            |bench| bench.report(all),
            |_| Ok(()),
        )
    }

    /// Measures one call a mapping.
    fn sweep(&mut self, operation: &'static str, layout: Layout) -> Result<(), RigError> {
        self.repeat(
            operation,
            layout,
            |bench| bench.enter(layout),
            |bench| {
                (0..layout.mappings).try_for_each(|index| {
                    let page = layout.page + index * layout.pages_each;
                    bench.report(range(page, layout.pages_each)?)
                })
            },
            |_| Ok(()),
        )
    }

    /// Measures marking what devices may write, with that much mapped.
    fn harvest(&mut self, operation: &'static str, layout: Layout) -> Result<(), RigError> {
        let enter = |bench: &mut Self| bench.enter(layout);
        let remove = |bench: &mut Self| match layout.mappings {
            0 => Ok(()),
            _ => bench.remove(layout),
        };
        let act = |bench: &mut Self| {
            bench.rig.dma.mark_writable();
            Ok(())
        };
        self.repeat(operation, layout, enter, act, remove)
    }

    /// Adds mappings after the first page, until there are `wanted`.
    fn others(&mut self, there: u64, wanted: u64) -> Result<(), RigError> {
        let more = Layout::singles(1 + there, 1, wanted - there);
        self.enter(more)?;
        self.others = wanted;
        Ok(())
    }

    /// Removes them.
    fn clear(&mut self) -> Result<(), RigError> {
        self.remove(Layout::singles(1, 1, self.others))?;
        self.others = 0;
        Ok(())
    }

    fn repeat(
        &mut self,
        operation: &'static str,
        layout: Layout,
        before: impl Fn(&mut Self) -> Result<(), RigError>,
        act: impl Fn(&mut Self) -> Result<(), RigError>,
        after: impl Fn(&mut Self) -> Result<(), RigError>,
    ) -> Result<(), RigError> {
        let nothing = instructions(|| {}).1;
        let mut instructions_most = 0;
        self.sent = (0, 0);
        for repetition in 0..=REPETITIONS {
            before(self)?;
            self.bitmap.fill(0);
            self.counts_descriptors = repetition == 0;
            let (done, count) = instructions(|| act(self));
            done?;
            if repetition > 0 {
                instructions_most = instructions_most.max(count - nothing);
            }
            after(self)?;
        }
        let bits = self.bitmap.iter().map(|word| u64::from(word.count_ones()));
        let bits = bits.sum();
        let tally = if layout.pages() <= MOST_STEPPED {
            before(self)?;
            let (tables, registers) = (self.rig.tables, self.rig.registers);
            let (done, tally) = step::through(tables, registers, || act(self));
            done?;
            after(self)?;
            Some(tally)
        } else {
            None
        };
        (self.show)(&Record {
            operation,
            mappings: layout.mappings,
            pages: layout.pages(),
            others: self.others,
            instructions: instructions_most,
            bits,
            written: None,
            invalidations: self.sent.0,
            waits: self.sent.1,
            tally,
        });
        Ok(())
    }

    fn enter(&mut self, layout: Layout) -> Result<(), RigError> {
        let rig = &mut *self.rig;
        // Room for a whole mapping from any frame on.
        let frames = GUEST_PAGES - layout.pages_each;
        let mut gfn = layout.gfn;
        for index in 0..layout.mappings {
            let pages = range(layout.page + index * layout.pages_each, layout.pages_each)?;
            let memory = Gfn::new(rig.first.number() + gfn).gpa();
            rig.dma.map(rig.domain, pages, memory, layout.access)?;
            gfn += layout.stride;
            if gfn > frames {
                gfn -= frames;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn report(&mut self, range: IovaRange) -> Result<(), RigError> {
        if self.counts_descriptors {
            return self.report_and_count(range);
        }
        let mut bitmap = DirtyBitmap::new(&mut self.bitmap[..]);
        let domain = self.rig.domain;
        self.rig.dma.unmap(domain, range, Some(&mut bitmap))?;
        Ok(())
    }

    #[cold]
    fn report_and_count(&mut self, range: IovaRange) -> Result<(), RigError> {
        let tail = self.rig.queue_tail();
        self.counts_descriptors = false;
        let done = self.report(range);
        self.counts_descriptors = true;
        let (invalidations, waits) = self.rig.sent_since(tail);
        self.sent.0 += invalidations;
        self.sent.1 += waits;
        done
    }

    fn remove(&mut self, layout: Layout) -> Result<(), RigError> {
        self.rig.dma.unmap(self.rig.domain, layout.range()?, None)?;
        Ok(())
    }
}

/// Does `act` and counts its instructions, and a few of the counting.
#[inline(never)]
fn instructions<T>(act: impl FnOnce() -> T) -> (T, u64) {
    let start = read_tsc();
    let value = act();
    (value, read_tsc().wrapping_sub(start))
}

#[allow(unsafe_code)]
fn read_tsc() -> u64 {
    // SAFETY: every CPU with long mode has the counter.
    unsafe { _rdtsc() }
}
