//! The I/O load in a stock guest: `load DEVICE OPERATIONS STEP`. `load cycles` says
//! instead how long the machine has been on.
//!
//! Some threads write blocks of a disk past the page cache and read back blocks that
//! they wrote before, each with its place, its generation and a checksum in it, until
//! all together did so many operations. What was read is kept for a while, untouched,
//! and looked at again before its place is used for the next. In the end every block
//! that was written is read once more. After every STEP operations a line says so,
//! and the last line says what was done:
//!
//! ```text
//! linux: progress uptime=S operations=N
//! linux: io operations=N errors=N verified=N kept=N longest_us=N mean_us=N
//! ```

mod block;
mod cycles;
mod progress;
mod shelf;
mod worker;

use anyhow::{Context, Result, bail};
use progress::Progress;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use worker::{Tally, Worker};

/// How many commands are on the disk at a time.
const THREADS: u64 = 4;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [device, operations, step] = match arguments.as_slice() {
        [what] if what == "cycles" => {
            println!("{}", cycles::since_reset());
            return ExitCode::SUCCESS;
        }
        [device, operations, step] => [device, operations, step],
        _ => return usage(),
    };
    let (Ok(operations), Ok(step)) = (operations.parse(), step.parse()) else {
        return usage();
    };
    match run(device.as_ref(), &Progress::new(operations, step)) {
        Ok(tally) => {
            println!("linux: io {tally}");
            ExitCode::from(u8::from(tally.errors > 0))
        }
        Err(error) => {
            println!("linux: error load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: load DEVICE OPERATIONS STEP | load cycles");
    ExitCode::from(2)
}

fn run(device: &Path, progress: &Progress) -> Result<Tally> {
    let workers: Vec<Worker> = (0..THREADS)
        .map(|number| Worker::open(device, number))
        .collect::<Result<_>>()
        .with_context(|| format!("cannot open {}", device.display()))?;
    let tallies: Option<Vec<Tally>> = thread::scope(|scope| {
        let running: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(|| worker.run(progress)))
            .collect();
        running.into_iter().map(|it| it.join().ok()).collect()
    });
    let Some(tallies) = tallies else {
        bail!("a thread panicked");
    };
    Ok(tallies.into_iter().fold(Tally::default(), Tally::with))
}
