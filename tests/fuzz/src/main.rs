//! Throws mutations of a corpus at the targets: `fuzz-targets CORPUS FAILURES
//! SECONDS SEED [TARGET]`. What breaks one is written to FAILURES.

#![allow(clippy::print_stdout)]

use fuzz_targets::mutate::Mutator;
use fuzz_targets::{TARGETS, Target, target};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer than this for one input counts as no end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The input under way, since when, and where it goes if it breaks its target.
struct Current {
    input: Vec<u8>,
    since: Instant,
    save_as: PathBuf,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [corpus, failures, seconds, seed, name @ ..] = arguments.as_slice() else {
        return Err("usage: fuzz-targets CORPUS FAILURES SECONDS SEED [TARGET]".into());
    };
    let targets = match name {
        [] => TARGETS.to_vec(),
        [name, ..] => vec![target(name).ok_or_else(|| unknown(name))?],
    };
    let time = Duration::from_secs(seconds.parse()?) / targets.len() as u32;
    std::fs::create_dir_all(failures)?;
    save_the_input_on_panic();
    give_up_on_what_has_no_end();
    for target in targets {
        fuzz(
            target,
            corpus.as_ref(),
            failures.as_ref(),
            time,
            seed.parse()?,
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown(name: &str) -> String {
    let names = TARGETS.map(|target| target.name).join(", ");
    format!("there is no target `{name}`; there are {names}")
}

fn fuzz(
    target: Target,
    corpus: &Path,
    failures: &Path,
    time: Duration,
    seed: u64,
) -> Result<(), Box<dyn Error>> {
    let folder = corpus.join(target.name);
    let mut inputs = Vec::new();
    for entry in
        std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?
    {
        inputs.push(std::fs::read(entry?.path())?);
    }
    // The order of a folder is anybody's guess; the seed shall decide alone.
    inputs.sort();
    if inputs.is_empty() {
        return Err(format!("{} has no inputs", folder.display()).into());
    }
    let mut mutator = Mutator::new(seed);
    let save_as = failures.join(format!("{}-{seed}", target.name));
    let start = Instant::now();
    let mut count = 0u64;
    for input in &inputs {
        throw(target, input.clone(), &save_as);
    }
    while start.elapsed() < time {
        throw(target, mutator.mutate(&inputs), &save_as);
        count += 1;
    }
    println!("{}: {count} inputs, none broke it", target.name);
    Ok(())
}

fn throw(target: Target, input: Vec<u8>, save_as: &Path) {
    set_current(Some(Current {
        input: input.clone(),
        since: Instant::now(),
        save_as: save_as.to_owned(),
    }));
    (target.run)(&input);
    set_current(None);
}

fn set_current(current: Option<Current>) {
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = current;
}

/// Panics abort, so the hook is the last that can do it.
fn save_the_input_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        save_current();
    }));
}

fn give_up_on_what_has_no_end() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
            let hangs = current
                .as_ref()
                .is_some_and(|it| it.since.elapsed() > PATIENCE);
            drop(current);
            if hangs {
                eprintln!("no end after {PATIENCE:?}");
                save_current();
                std::process::exit(1);
            }
        }
    });
}

fn save_current() {
    let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(current) = &*current {
        match std::fs::write(&current.save_as, &current.input) {
            Ok(()) => eprintln!("the input is in {}", current.save_as.display()),
            Err(error) => eprintln!("the input cannot be saved: {error}"),
        }
    }
}
