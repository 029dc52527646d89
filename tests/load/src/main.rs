//! The I/O load in a stock guest: `load DEVICE STOP`.
//!
//! Some threads write blocks of a disk past the page cache and read back blocks that
//! they wrote before, each with its place, its generation and a checksum in it, until
//! a file STOP appears. In the end every block that was written is read once more.
//! The last line says what was done:
//!
//! ```text
//! linux: io operations=N errors=N verified=N longest_us=N mean_us=N
//! ```

mod block;
mod worker;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use worker::{Tally, Worker};

/// How many commands are on the disk at a time.
const THREADS: u64 = 4;
/// How often STOP is looked for.
const LOOK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [device, stop] = arguments.as_slice() else {
        eprintln!("usage: load DEVICE STOP");
        return ExitCode::from(2);
    };
    match run(device.as_ref(), stop.as_ref()) {
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

fn run(device: &Path, stop: &Path) -> Result<Tally> {
    let workers: Vec<Worker> = (0..THREADS)
        .map(|number| Worker::open(device, number))
        .collect::<Result<_>>()
        .with_context(|| format!("cannot open {}", device.display()))?;
    let stopping = AtomicBool::new(false);
    let tallies: Option<Vec<Tally>> = thread::scope(|scope| {
        let running: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(|| worker.run(&stopping)))
            .collect();
        while !stop.exists() {
            thread::sleep(LOOK);
        }
        stopping.store(true, Ordering::Relaxed);
        running.into_iter().map(|it| it.join().ok()).collect()
    });
    let Some(tallies) = tallies else {
        bail!("a thread panicked");
    };
    Ok(tallies.into_iter().fold(Tally::default(), Tally::with))
}
