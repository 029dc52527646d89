//! The operations that are measured: those of the benchmark image.
#![allow(unsafe_code)]

use crate::memory::{BYTES, Memory};
use crate::pinning;
use crate::vfio::{Container, PAGE};
use anyhow::Result;
use std::io::Write;

/// How often each operation is measured. A timer interrupt now and then falls into
/// one of them, which the median leaves out.
const REPETITIONS: usize = 5;
const MIB: u64 = 1 << 20;
/// Mappings in a sweep.
const SWEEP: u64 = 2048;
/// A step in pages that keeps neighbours apart.
const SCATTER: u64 = 7919;
const PAGES: u64 = BYTES as u64 / PAGE;
/// Where the one other mapping is.
const ELSEWHERE: u64 = 1 << 30;

/// Where something is mapped, from what memory, and in how many mappings.
#[derive(Clone, Copy)]
struct Layout<'m> {
    memory: &'m Memory,
    mappings: u64,
    pages_each: u64,
    /// How many pages further the next mapping's memory is, going around.
    stride: u64,
    writable: bool,
}

impl Layout<'_> {
    fn pages(&self) -> u64 {
        self.mappings * self.pages_each
    }

    fn bytes(&self) -> u64 {
        self.pages() * PAGE
    }
}

/// Measures everything and writes a record of each.
pub(crate) fn all(container: &Container, output: &mut impl Write) -> Result<()> {
    let contiguous = &Memory::contiguous()?;
    let scattered = &Memory::scattered()?;
    let mut bench = Bench {
        container,
        output,
        bitmap: vec![0; (PAGES / 64) as usize],
    };
    let one = |memory, pages_each| Layout {
        memory,
        mappings: 1,
        pages_each,
        stride: 0,
        writable: true,
    };
    let singles = |memory, mappings, stride| Layout {
        memory,
        mappings,
        pages_each: 1,
        stride,
        writable: true,
    };

    bench.bare("null-call", |bench| bench.container.nothing())?;
    let pinning = pinning::cost(scattered)?;
    bench.write("pin-page", 1, 1, 0, pinning.pin)?;
    bench.write("unpin-page", 1, 1, 0, pinning.unpin)?;

    let page = one(scattered, 1);
    bench.map("map-4k-first", page)?;
    bench.unmap("unmap-4k-last", page)?;
    let read_only = Layout {
        writable: false,
        ..page
    };
    bench.unmap("unmap-4k-read-only", read_only)?;
    bench
        .container
        .map(ELSEWHERE, scattered.address, PAGE, true)?;
    bench.map("map-4k", page)?;
    bench.unmap("unmap-4k", page)?;
    bench.container.unmap(ELSEWHERE, PAGE, &mut [0])?;

    bench.sweep("unmap-4k-sweep", singles(scattered, SWEEP, 1))?;
    bench.unmap("unmap-2048-in-one-call", singles(contiguous, SWEEP, 1))?;
    let apart = singles(scattered, SWEEP, SCATTER);
    bench.unmap("unmap-2048-in-one-call-scattered", apart)?;
    for (bytes, names) in [
        (
            2 * MIB,
            [
                "map-2m-small-leaves",
                "unmap-2m-small-leaves",
                "unmap-2m-scattered",
            ],
        ),
        (
            128 * MIB,
            [
                "map-128m-small-leaves",
                "unmap-128m-small-leaves",
                "unmap-128m-scattered",
            ],
        ),
    ] {
        let [map, unmap, unmap_scattered] = names;
        let whole = one(contiguous, bytes / PAGE);
        bench.map(map, whole)?;
        bench.unmap(unmap, whole)?;
        bench.unmap(unmap_scattered, one(scattered, bytes / PAGE))?;
    }

    let whole = one(contiguous, PAGES);
    bench.enter(whole)?;
    bench.measure(
        "get-bitmap-128m",
        whole,
        |_| Ok(()),
        |bench| bench.container.dirty(0, whole.bytes(), &mut bench.bitmap),
        |_| Ok(()),
    )?;
    bench.report(whole)
}

struct Bench<'b, W> {
    container: &'b Container,
    output: &'b mut W,
    bitmap: Vec<u64>,
}

impl<W: Write> Bench<'_, W> {
    fn bare(&mut self, operation: &str, act: impl Fn(&mut Self) -> Result<()>) -> Result<()> {
        let counts = (0..REPETITIONS)
            .map(|_| {
                let (done, count) = instructions(|| act(self));
                done.map(|()| count)
            })
            .collect::<Result<_>>()?;
        self.write(operation, 0, 0, 0, median(counts))
    }

    fn map(&mut self, operation: &str, layout: Layout<'_>) -> Result<()> {
        let act = |bench: &mut Self| bench.enter(layout);
        self.measure(
            operation,
            layout,
            |_| Ok(()),
            act,
            |bench| bench.report(layout),
        )
    }

    fn unmap(&mut self, operation: &str, layout: Layout<'_>) -> Result<()> {
        let act = |bench: &mut Self| bench.report(layout);
        self.measure(
            operation,
            layout,
            |bench| bench.enter(layout),
            act,
            |_| Ok(()),
        )
    }

    fn sweep(&mut self, operation: &str, layout: Layout<'_>) -> Result<()> {
        let act = |bench: &mut Self| {
            (0..layout.mappings).try_for_each(|index| {
                let bitmap = &mut bench.bitmap;
                bench.container.unmap(index * PAGE, PAGE, bitmap)
            })
        };
        self.measure(
            operation,
            layout,
            |bench| bench.enter(layout),
            act,
            |_| Ok(()),
        )
    }

    fn measure(
        &mut self,
        operation: &str,
        layout: Layout<'_>,
        before: impl Fn(&mut Self) -> Result<()>,
        act: impl Fn(&mut Self) -> Result<()>,
        after: impl Fn(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let mut counts = Vec::new();
        let mut bits = 0;
        for _ in 0..REPETITIONS {
            before(self)?;
            self.bitmap.fill(0);
            let (done, count) = instructions(|| act(self));
            done?;
            counts.push(count);
            bits = self
                .bitmap
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .sum();
            after(self)?;
        }
        self.write(
            operation,
            layout.mappings,
            layout.pages(),
            bits,
            median(counts),
        )
    }

    fn enter(&mut self, layout: Layout<'_>) -> Result<()> {
        let bytes = layout.pages_each * PAGE;
        for index in 0..layout.mappings {
            let page = index * layout.stride % PAGES;
            let address = layout.memory.address + page * PAGE;
            self.container
                .map(index * bytes, address, bytes, layout.writable)?;
        }
        Ok(())
    }

    fn report(&mut self, layout: Layout<'_>) -> Result<()> {
        self.container.unmap(0, layout.bytes(), &mut self.bitmap)
    }

    fn write(
        &mut self,
        operation: &str,
        mappings: u64,
        pages: u64,
        bits: u64,
        instructions: u64,
    ) -> Result<()> {
        writeln!(
            self.output,
            "{{\"operation\":\"{operation}\",\"mappings\":{mappings},\"pages\":{pages},\
             \"others\":0,\"instructions\":{instructions},\"bits\":{bits}}}"
        )?;
        Ok(())
    }
}

/// The middle one.
pub(crate) fn median(mut counts: Vec<u64>) -> u64 {
    counts.sort_unstable();
    counts.get(counts.len() / 2).copied().unwrap_or(0)
}

/// Does `act` and counts the machine's instructions meanwhile.
#[inline(never)]
pub(crate) fn instructions<T>(act: impl FnOnce() -> T) -> (T, u64) {
    let start = read_tsc();
    let value = act();
    (value, read_tsc().wrapping_sub(start))
}

fn read_tsc() -> u64 {
    // SAFETY: every 64-bit CPU has the counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}
