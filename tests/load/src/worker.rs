//! One thread's share of the disk and of the work.

use crate::block::{BYTES, Block};
use crate::progress::Progress;
use crate::shelf::{Label, Shelf};
use anyhow::Result;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How many blocks a thread writes.
const BLOCKS: u64 = 512;
/// How long a thread waits after a write and a read. Without, an emulated machine
/// gets nowhere: its time stands still while its hypervisor works.
const PAUSE: Duration = Duration::from_millis(5);
/// How many errors a thread names.
const NAMED: u64 = 4;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Reads and writes.
    pub(crate) operations: u64,
    /// Those that failed, and blocks that were wrong.
    pub(crate) errors: u64,
    /// Blocks that were right at the end.
    pub(crate) verified: u64,
    /// Blocks that were still right when they had been kept for a while.
    kept: u64,
    /// The operation that took longest.
    longest: Duration,
    /// All operations together.
    total: Duration,
}

impl Tally {
    /// Both together.
    pub(crate) fn with(self, other: Self) -> Self {
        Self {
            operations: self.operations + other.operations,
            errors: self.errors + other.errors,
            verified: self.verified + other.verified,
            kept: self.kept + other.kept,
            longest: self.longest.max(other.longest),
            total: self.total + other.total,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = self.total.as_micros() / u128::from(self.operations.max(1));
        write!(
            f,
            "operations={} errors={} verified={} kept={} longest_us={} mean_us={mean}",
            self.operations,
            self.errors,
            self.verified,
            self.kept,
            self.longest.as_micros(),
        )
    }
}

/// A thread's blocks: `BLOCKS` in a row, and which generation each holds.
pub(crate) struct Worker {
    file: File,
    first: u64,
    /// 0 for a block not written yet.
    generations: Vec<u64>,
    /// What is written comes from here.
    block: Box<Block>,
    /// What is read goes here.
    shelf: Shelf,
    tally: Tally,
}

impl Worker {
    pub(crate) fn open(device: &Path, number: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(device)?;
        Ok(Self {
            file,
            first: number * BLOCKS,
            generations: vec![0; BLOCKS as usize],
            block: Block::new(),
            shelf: Shelf::new(),
            tally: Tally::default(),
        })
    }

    /// Works until all operations are done; then reads everything once more.
    pub(crate) fn run(mut self, progress: &Progress) -> Tally {
        let mut step = self.first;
        while !progress.is_over() {
            // A stride that is prime to the number of blocks visits all of them.
            step += 181;
            self.write((step % BLOCKS) as usize);
            progress.count();
            self.read((step * 7 % BLOCKS) as usize);
            progress.count();
            thread::sleep(PAUSE);
        }
        for _ in 0..self.shelf.places() {
            self.look_at_oldest();
            self.shelf.keep(None);
        }
        for index in 0..self.generations.len() {
            if self.generations[index] > 0 && self.read(index) {
                self.tally.verified += 1;
            }
        }
        self.tally
    }

    fn write(&mut self, index: usize) {
        let place = self.first + index as u64;
        let generation = self.generations[index] + 1;
        self.block.fill(place, generation);
        let (file, block) = (&self.file, &self.block);
        let done = timed(&mut self.tally, || {
            file.write_all_at(&block.0, place * BYTES as u64)
        });
        match done {
            Ok(()) => self.generations[index] = generation,
            Err(error) => self.note(&format!("write of block {place}: {error}")),
        }
    }

    /// Reads a block that was written, and keeps it; says whether it was right.
    fn read(&mut self, index: usize) -> bool {
        let (place, generation) = (self.first + index as u64, self.generations[index]);
        if generation == 0 {
            return true;
        }
        self.look_at_oldest();
        let (file, block) = (&self.file, self.shelf.place());
        let done = timed(&mut self.tally, || {
            file.read_exact_at(&mut block.0, place * BYTES as u64)
        });
        let fault = match done {
            Ok(()) => block.fault(place, generation),
            Err(error) => Some(format!("read of block {place}: {error}")),
        };
        let label = Label { place, generation };
        self.shelf.keep(fault.is_none().then_some(label));
        if let Some(fault) = &fault {
            self.note(fault);
        }
        fault.is_none()
    }

    /// Looks at the block that was kept longest, whose place is needed.
    fn look_at_oldest(&mut self) {
        let Some((Label { place, generation }, block)) = self.shelf.oldest() else {
            return;
        };
        match block.fault(place, generation) {
            None => self.tally.kept += 1,
            Some(fault) => self.note(&format!("kept in memory: {fault}")),
        }
    }

    fn note(&mut self, what: &str) {
        self.tally.errors += 1;
        if self.tally.errors <= NAMED {
            println!("linux: error {what}");
        }
    }
}

/// Does one operation and takes its time.
fn timed(tally: &mut Tally, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let started = Instant::now();
    let done = act();
    let took = started.elapsed();
    tally.operations += 1;
    tally.longest = tally.longest.max(took);
    tally.total += took;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_and_the_longest_counts() {
        let tally = |operations, longest| Tally {
            operations,
            errors: 1,
            verified: 2,
            kept: 3,
            longest: Duration::from_micros(longest),
            total: Duration::from_micros(10 * operations),
        };
        assert_eq!(
            tally(3, 9).with(tally(1, 5)).to_string(),
            "operations=4 errors=2 verified=4 kept=6 longest_us=9 mean_us=10"
        );
    }
}
