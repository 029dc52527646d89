//! What the guest said on its console, on both machines, and whether it is well.

use super::initramfs::TICKS;
use crate::machine::Role;
use crate::run::Outcome;
use crate::verdict::{Verdict, stray_interrupts};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;

const PREFIX: &str = "linux: ";

/// The guest's own account. Times are in hundredths of a second of its clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// The kernel's version, as it names itself.
    pub kernel: Option<String>,
    /// When init started.
    pub init: Option<u64>,
    /// How many CPUs it saw then.
    pub cpus: Option<u32>,
    /// Each tick of init, with its number.
    pub ticks: Vec<(u32, u64)>,
    /// Ticks until the guest left the source.
    pub ticks_on_source: usize,
    /// When init ended.
    pub end: Option<u64>,
    /// The clock source at init's start and end.
    pub clock_sources: Vec<String>,
    /// What the load did on the disk.
    pub io: Option<Io>,
    /// Messages of the kernel of level error or worse before init.
    pub boot_errors: Vec<String>,
    /// The same since then.
    pub errors: Vec<String>,
}

/// What the guest's load did on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Io {
    /// Reads and writes of 4 KiB.
    pub operations: u64,
    /// Those that failed, and blocks that were not what was written last.
    pub errors: u64,
    /// Blocks that were right when all were read at the end.
    pub verified: u64,
    /// The operation that took longest, in microseconds of the guest's clock.
    pub longest_us: u64,
    /// How long one took on average, in microseconds.
    pub mean_us: u64,
}

impl Console {
    /// Reads the consoles of both machines, the source's first.
    ///
    /// # Errors
    /// A console cannot be read.
    pub fn read(outcome: &Outcome) -> Result<Self> {
        let mut console = Self::default();
        for role in [Role::Source, Role::Destination] {
            let path = outcome.files(role).console;
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            console.note(&String::from_utf8_lossy(&bytes));
            if role == Role::Source {
                console.ticks_on_source = console.ticks.len();
            }
        }
        Ok(console)
    }

    fn note(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("] Linux version ") {
                self.kernel = rest.split(' ').next().map(str::to_owned);
            }
            // A line that the switchover cut in two starts on the source.
            let Some((_, line)) = line.split_once(PREFIX) else {
                continue;
            };
            let member = |name: &str| {
                line.split(' ')
                    .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            };
            let uptime = || member("uptime").and_then(hundredths);
            self.clock_sources
                .extend(member("clocksource").map(str::to_owned));
            match line.split(' ').next() {
                Some("init") => {
                    self.init = uptime();
                    self.cpus = member("cpus").and_then(|count| count.parse().ok());
                }
                Some("end") => self.end = uptime(),
                Some("tick") => {
                    let number = member("n").and_then(|n| n.parse().ok());
                    self.ticks.extend(number.zip(uptime()));
                }
                Some("io") => {
                    let number = |name| member(name).and_then(|value| value.parse().ok());
                    self.io = (|| {
                        Some(Io {
                            operations: number("operations")?,
                            errors: number("errors")?,
                            verified: number("verified")?,
                            longest_us: number("longest_us")?,
                            mean_us: number("mean_us")?,
                        })
                    })();
                }
                Some("boot-error") => self.boot_errors.push(line.to_owned()),
                Some("error") => self.errors.push(line.to_owned()),
                _ => {}
            }
        }
    }
}

/// `12.34` in hundredths.
fn hundredths(text: &str) -> Option<u64> {
    let (seconds, rest) = text.split_once('.')?;
    let rest = (rest.len() == 2).then_some(rest)?;
    seconds
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(rest.parse().ok()?)
}

/// What is expected of a run with a Linux guest.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The guest moves, and does not end where it booted.
    pub migrates: bool,
    /// It has a disk to use.
    pub disk: bool,
    /// The CPUs that it sees.
    pub cpus: u32,
}

/// Judges a run with a Linux guest.
pub fn judge(outcome: &Outcome, console: &Console, expect: Expect) -> Verdict {
    let Expect {
        migrates,
        disk,
        cpus,
    } = expect;
    let machines = [&outcome.source, &outcome.destination];
    let refused: Vec<String> = machines
        .iter()
        .filter_map(|seen| seen.refused.clone())
        .collect();
    // All else would only say that nothing was started.
    if !refused.is_empty() && console.kernel.is_none() {
        return Verdict(refused);
    }
    let mut wrong = refused;
    wrong.extend(machines.iter().filter_map(|it| it.migration_failed.clone()));
    wrong.extend(stray_interrupts(outcome));
    let mut require = |ok: bool, what: String| {
        if !ok {
            wrong.push(what);
        }
    };
    if let Some(limit) = outcome.timed_out {
        require(false, format!("no end within {} s", limit.as_secs()));
    }
    let home = match migrates {
        true => &outcome.destination,
        false => &outcome.source,
    };
    require(console.init.is_some(), "init did not start".into());
    require(
        console.init.is_none() || console.cpus == Some(cpus),
        format!("the guest sees {:?} CPUs, and has {cpus}", console.cpus),
    );
    require(
        outcome.source.migrated.is_some() == migrates,
        "the guest did not end on the machine it was to end on".into(),
    );
    require(
        home.guest_exit == Some(0),
        format!("the guest's status is {:?}", home.guest_exit),
    );
    let numbers: Vec<u32> = console.ticks.iter().map(|(number, _)| *number).collect();
    require(
        numbers.iter().copied().eq(1..=TICKS),
        format!("of {TICKS} ticks these were seen: {numbers:?}"),
    );
    let times = console
        .init
        .iter()
        .chain(console.ticks.iter().map(|(_, at)| at));
    require(times.is_sorted(), "the guest's clock went backwards".into());
    let mut sources = console.clock_sources.iter();
    let first = sources.next();
    require(
        sources.all(|source| Some(source) == first),
        format!("the clock source changed: {:?}", console.clock_sources),
    );
    let io = console.io.unwrap_or_default();
    require(!disk || io.operations > 0, "the disk was not used".into());
    require(
        io.errors == 0,
        format!("{} reads or writes of the disk went wrong", io.errors),
    );
    require(
        io.operations == 0 || io.verified > 0,
        "no block of the disk was verified".into(),
    );
    for error in &console.errors {
        require(false, error.clone());
    }
    Verdict(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Migrated;
    use crate::observation::Observation;

    const WHOLE: Expect = Expect {
        migrates: true,
        disk: true,
        cpus: 2,
    };

    const TEXT: &str = "\
[    0.000000] Linux version 6.1.0-9-amd64 (someone)\r
linux: init uptime=1.30 clocksource=tsc cpus=2\r
linux: tick n=1 uptime=2.31\r
";

    fn whole() -> (Outcome, Console) {
        let mut console = Console::default();
        console.note(TEXT);
        for n in 2..=TICKS {
            console.note(&format!("linux: tick n={n} uptime={n}.99"));
        }
        console.note("linux: io operations=90 errors=0 verified=7 longest_us=800 mean_us=50");
        console.note("linux: end uptime=20.00 clocksource=tsc");
        let source = Observation {
            migrated: Some(Migrated::default()),
            ..Observation::default()
        };
        let destination = Observation {
            guest_exit: Some(0),
            ..Observation::default()
        };
        let outcome = Outcome {
            source,
            destination,
            ..Outcome::default()
        };
        (outcome, console)
    }

    #[test]
    fn what_the_guest_says_is_understood() {
        let mut console = Console::default();
        console.note(TEXT);
        assert_eq!(console.kernel.as_deref(), Some("6.1.0-9-amd64"));
        assert_eq!(
            (console.init, &console.ticks[..]),
            (Some(130), &[(1, 231)][..])
        );
    }

    #[test]
    fn a_whole_run_passes_and_each_defect_fails() {
        type Break = fn(&mut Outcome, &mut Console);
        let (outcome, console) = whole();
        assert_eq!(judge(&outcome, &console, WHOLE), Verdict(Vec::new()));
        let breaks: [Break; 10] = [
            |_, console| console.io = None,
            |_, console| console.io.iter_mut().for_each(|io| io.errors = 1),
            |_, console| console.io.iter_mut().for_each(|io| io.verified = 0),
            |_, console| console.init = None,
            |_, console| console.ticks.truncate(3),
            |_, console| console.ticks[4].1 = 0,
            |_, console| console.clock_sources[1] = "jiffies".into(),
            |_, console| console.errors.push("error <3>I/O".into()),
            |outcome, _| outcome.destination.guest_exit = Some(1),
            |outcome, _| outcome.source.migrated = None,
        ];
        for damage in breaks {
            let (mut outcome, mut console) = whole();
            damage(&mut outcome, &mut console);
            assert_eq!(judge(&outcome, &console, WHOLE).0.len(), 1);
        }
    }
}
