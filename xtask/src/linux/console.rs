//! What the guest said on its console, on both machines.

use crate::machine::Role;
use crate::run::Outcome;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;

const PREFIX: &str = "linux: ";

/// The guest's own account. Times are in hundredths of a second of its clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// The kernel's version, as it names itself.
    pub kernel: Option<String>,
    /// How many of its interrupts its IOMMU remaps, at its end.
    pub remapped_interrupts: Option<u32>,
    /// How often a CPU said at the end where it was, when another or itself asked.
    pub nmi_answers: Option<u32>,
    /// When init started.
    pub init: Option<u64>,
    /// The same in cycles since the machine was reset: what the kernel did before it had
    /// a clock is in it.
    pub init_cycles: Option<u64>,
    /// How many CPUs it saw then.
    pub cpus: Option<u32>,
    /// When it gave the cue for its migration.
    pub cue: Option<u64>,
    /// Each tick of init, with its number.
    pub ticks: Vec<(u32, u64)>,
    /// Ticks until the guest left the source.
    pub ticks_on_source: usize,
    /// What the load had done when it said so.
    pub progress: Vec<u64>,
    /// How often it had said so when the guest left the source.
    pub progress_on_source: usize,
    /// When init ended.
    pub end: Option<u64>,
    /// How many ticks init counted.
    pub end_ticks: Option<u32>,
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
    /// Blocks that the disk wrote to memory, and that were right when they were looked
    /// at much later.
    pub kept: u64,
    /// The operation that took longest, in microseconds of the guest's clock.
    pub longest_us: u64,
    /// How long one took on average, in microseconds.
    pub mean_us: u64,
}

impl Console {
    /// Reads the consoles of both machines as the one session that they are. `cue` is
    /// the word at the end of a line that starts the migration.
    ///
    /// # Errors
    /// A console cannot be read.
    pub fn read(outcome: &Outcome, cue: Option<&str>) -> Result<Self> {
        let read = |role| {
            let path = outcome.files(role).console;
            let bytes = fs::read(&path);
            let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (source, destination) = (read(Role::Source)?, read(Role::Destination)?);
        Ok(Self::of(&source, &destination, cue))
    }

    /// The account of a guest that said `source` on one machine and then
    /// `destination` on the other.
    pub fn of(source: &str, destination: &str, cue: Option<&str>) -> Self {
        let mut console = Self::default();
        let mut left = source.len();
        // The switchover may cut a line in two.
        for line in (source.to_owned() + destination).split_inclusive('\n') {
            if left > 0 {
                left = left.saturating_sub(line.len());
                console.note(line.trim_end(), cue);
                console.ticks_on_source = console.ticks.len();
                console.progress_on_source = console.progress.len();
            } else {
                console.note(line.trim_end(), cue);
            }
        }
        console
    }

    fn note(&mut self, line: &str, cue: Option<&str>) {
        if let Some((_, rest)) = line.split_once("] Linux version ") {
            self.kernel = rest.split(' ').next().map(str::to_owned);
        }
        let Some((_, line)) = line.split_once(PREFIX) else {
            return;
        };
        let member = |name: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let number = |name| member(name).and_then(|value| value.parse::<u64>().ok());
        let small = |name| number(name).and_then(|value| u32::try_from(value).ok());
        let uptime = || member("uptime").and_then(hundredths);
        self.clock_sources
            .extend(member("clocksource").map(str::to_owned));
        if cue.is_some_and(|cue| line.ends_with(cue)) && self.cue.is_none() {
            self.cue = uptime();
        }
        match line.split(' ').next() {
            Some("init") => {
                (self.init, self.init_cycles) = (uptime(), number("cycles"));
                self.cpus = small("cpus");
                // A quiet kernel has not said it yet.
                self.kernel = self.kernel.take().or(member("kernel").map(str::to_owned));
            }
            Some("end") => {
                (self.end, self.end_ticks) = (uptime(), small("ticks"));
                self.remapped_interrupts = small("remapped");
                self.nmi_answers = small("answers");
            }
            Some("tick") => self.ticks.extend(small("n").zip(uptime())),
            Some("progress") => self.progress.extend(number("operations")),
            Some("io") => {
                self.io = (|| {
                    Some(Io {
                        operations: number("operations")?,
                        errors: number("errors")?,
                        verified: number("verified")?,
                        kept: number("kept")?,
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

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
[    0.000000] Linux version 6.1.0-9-amd64 (someone)\r
linux: init uptime=1.30 cycles=7000000000 clocksource=tsc cpus=2\r
linux: progress uptime=1.90 operations=100\r
linux: tick uptime=2.3";
    const DESTINATION: &str = "\
1 n=1\r
linux: progress uptime=2.90 operations=200\r
linux: io operations=210 errors=0 verified=7 kept=5 longest_us=800 mean_us=50\r
linux: end clocksource=tsc ticks=1 uptime=3.00\r
";

    #[test]
    fn what_the_guest_says_on_both_machines_is_one_session() {
        let console = Console::of(SOURCE, DESTINATION, Some("operations=100"));
        assert_eq!(console.kernel.as_deref(), Some("6.1.0-9-amd64"));
        assert_eq!((console.init, console.cpus), (Some(130), Some(2)));
        assert_eq!(console.init_cycles, Some(7_000_000_000));
        assert_eq!(console.cue, Some(190));
        assert_eq!(console.ticks, [(1, 231)], "cut by the switchover");
        assert_eq!(console.progress, [100, 200]);
        assert_eq!(
            (console.ticks_on_source, console.progress_on_source),
            (1, 1)
        );
        assert_eq!((console.end, console.end_ticks), (Some(300), Some(1)));
        assert_eq!(
            console.io.map(|io| (io.operations, io.kept)),
            Some((210, 5))
        );
    }

    #[test]
    fn the_version_of_a_quiet_kernel_is_known_from_init() {
        let console = Console::of("linux: init uptime=1.30 kernel=6.1.0-9-amd64\n", "", None);
        assert_eq!(console.kernel.as_deref(), Some("6.1.0-9-amd64"));
    }

    #[test]
    fn a_line_that_is_cut_off_is_no_account() {
        let cut = DESTINATION.split_once(" mean_us").map(|(before, _)| before);
        let console = Console::of(SOURCE, cut.unwrap_or_default(), None);
        assert_eq!((console.io, console.end), (None, None));
    }
}
