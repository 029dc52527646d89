//! Whether a guest that moved is well. Every rule is here, each with its reason.

use super::console::Console;
use crate::run::Outcome;
use crate::verdict::{Verdict, stray_interrupts};

/// How far the guest's clock may be from the truth beside the time it stood still:
/// its figures have two places, and the last is said some milliseconds before the end.
const CLOCK_SLACK_US: u64 = 50_000;

/// What is expected of a run with a Linux guest.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The guest moves, and does not end where it booted.
    pub migrates: bool,
    /// It has a disk to use, before and after it moves.
    pub disk: bool,
    /// The CPUs that it sees.
    pub cpus: u32,
    /// Whether it has its IOMMU remap interrupts, as far as that is known.
    pub interrupts: Option<bool>,
    /// Its CPUs, if there are several, send each other NMIs at the end.
    pub nmis: bool,
}

/// How many times as long as without a hypervisor booting may take.
const SLOWEST_BOOT: u64 = 4;

/// Judges a run with a Linux guest. `direct` is what the same kernel said without a
/// hypervisor under it, if that was tried.
pub fn judge(
    outcome: &Outcome,
    console: &Console,
    direct: Option<&Console>,
    expect: Expect,
) -> Verdict {
    // A destination to which no guest is to come refuses in the end, and rightly.
    let destination = Some(&outcome.destination).filter(|_| expect.migrates);
    let refused: Vec<String> = [Some(&outcome.source), destination]
        .into_iter()
        .flatten()
        .filter_map(|seen| seen.refused.clone())
        .collect();
    // All else would only say that nothing was started.
    if !refused.is_empty() && console.kernel.is_none() {
        return Verdict(refused);
    }
    let mut rules = Rules(refused);
    rules.0.extend(stray_interrupts(outcome));
    rules.machines(outcome, expect.migrates);
    rules.session(console, expect.cpus);
    if let Some(expected) = expect.interrupts {
        let count = console.remapped_interrupts;
        rules.require(count.is_some_and(|it| (it > 0) == expected), || {
            let wanted = if expected { "some" } else { "none" };
            let count = said(count);
            format!("of the guest's interrupts {count} are remapped, and {wanted} should be")
        });
    }
    if expect.nmis {
        rules.nmis(console, expect.cpus);
    }
    rules.clock(outcome, console);
    if let Some(direct) = direct {
        rules.boot(console.init_cycles, direct.init_cycles);
    }
    if expect.disk {
        rules.disk(console, expect.migrates);
        rules.resets(outcome, expect.migrates);
    }
    rules.0.extend(console.errors.iter().cloned());
    Verdict(rules.0)
}

/// A number that the guest told, or that it told none.
fn said(number: Option<impl ToString>) -> String {
    number.map_or("an unknown number".into(), |it| it.to_string())
}

/// What went wrong.
struct Rules(Vec<String>);

impl Rules {
    fn require(&mut self, ok: bool, what: impl FnOnce() -> String) {
        if !ok {
            self.0.push(what());
        }
    }

    /// Booting took not much longer than it did without a hypervisor, in cycles.
    fn boot(&mut self, here: Option<u64>, direct: Option<u64>) {
        let fast = here
            .zip(direct)
            .is_some_and(|(here, direct)| here <= direct.saturating_mul(SLOWEST_BOOT));
        self.require(fast, || {
            let (here, direct) = (said(here), said(direct));
            format!("init started after {here} cycles, and after {direct} without a hypervisor")
        });
    }

    /// The machines did what they were to do, and the guest ended where it was to.
    fn machines(&mut self, outcome: &Outcome, migrates: bool) {
        let (source, destination) = (&outcome.source, &outcome.destination);
        for seen in [source, destination] {
            self.0.extend(seen.migration_failed.clone());
            if let Some(first) = seen.mismatches.first() {
                let count = seen.mismatches.len();
                self.0.push(format!(
                    "{count} frames differed at switchover, the first is {first:#x}"
                ));
            }
        }
        if let Some(limit) = outcome.timed_out {
            self.0.push(format!("no end within {} s", limit.as_secs()));
        }
        let home = if migrates { destination } else { source };
        self.require(source.migrated.is_some() == migrates, || {
            "the guest did not end on the machine it was to end on".into()
        });
        self.require(home.guest_exit == Some(0), || {
            let way = &home.guest_exit_way;
            home.guest_exit
                .map_or("the guest did not end".into(), |status| {
                    format!("the guest's status is {status} {way}")
                })
        });
    }

    /// The console is one session: nothing of it is missing or comes twice.
    fn session(&mut self, console: &Console, cpus: u32) {
        self.require(console.init.is_some(), || "init did not start".into());
        self.require(console.init.is_none() || console.cpus == Some(cpus), || {
            format!("the guest sees {} CPUs, and has {cpus}", said(console.cpus))
        });
        let numbers = console.ticks.iter().map(|(number, _)| *number);
        let count = console.end_ticks.unwrap_or_default();
        self.require(count > 0 && numbers.clone().eq(1..=count), || {
            let seen: Vec<u32> = numbers.collect();
            format!(
                "of {} ticks these were seen: {seen:?}",
                said(console.end_ticks)
            )
        });
        // Threads on several CPUs tell of it in any order.
        let mut progress = console.progress.clone();
        progress.sort_unstable();
        let step = progress.first().copied().unwrap_or_default();
        let steps = (1..).map(|count| count * step);
        let gap = progress.into_iter().zip(steps).find(|(a, b)| a != b);
        if let Some((_, missing)) = gap {
            self.0.push(format!(
                "the load did not tell of {missing} operations, or of some before twice"
            ));
        }
    }

    /// Of several CPUs each asked all where they are, by NMI but itself, and all answered.
    fn nmis(&mut self, console: &Console, cpus: u32) {
        let expected = if cpus > 1 { cpus * cpus } else { 0 };
        self.require(console.nmi_answers == Some(expected), || {
            let seen = said(console.nmi_answers);
            format!("CPUs answered {seen} times to an NMI or to themselves, not {expected}")
        });
    }

    /// The clock goes forward, as fast as the machines' own, and is told by the same
    /// counter all the time.
    fn clock(&mut self, outcome: &Outcome, console: &Console) {
        let ticks = console.ticks.iter().map(|(_, at)| at);
        let times = console.init.iter().chain(ticks).chain(&console.end);
        self.require(times.is_sorted(), || {
            "the guest's clock went backwards".into()
        });
        let mut sources = console.clock_sources.iter();
        let first = sources.next();
        self.require(sources.all(|source| Some(source) == first), || {
            format!("the clock source changed: {:?}", console.clock_sources)
        });
        if let Some(behind) = clock_behind_us(outcome, console) {
            let still = outcome.source.migrated.as_ref();
            let limit = still.map_or(0, |it| it.downtime_us) + CLOCK_SLACK_US;
            self.require(behind.unsigned_abs() <= limit, || {
                format!("the guest's clock is {behind} us behind, and may be off by {limit}")
            });
        }
    }

    /// Each machine that had the guest reset the disk when it took it, and again when it
    /// let it go: nothing of one user is left for the next.
    fn resets(&mut self, outcome: &Outcome, migrates: bool) {
        let both = [&outcome.source, &outcome.destination];
        for seen in both.into_iter().take(1 + usize::from(migrates)) {
            self.require(seen.device_resets >= 2, || {
                let count = seen.device_resets;
                format!("a machine reset the disk {count} times, not when it took it and let it go")
            });
        }
    }

    /// The disk was in use when the guest moved, and nothing of it was lost: neither
    /// what is on it nor what was read from it to memory.
    fn disk(&mut self, console: &Console, migrates: bool) {
        let io = console.io.unwrap_or_default();
        self.require(io.operations > 0, || "the disk was not used".into());
        self.require(io.errors == 0, || {
            format!("{} reads or writes of the disk went wrong", io.errors)
        });
        self.require(io.operations == 0 || io.verified.min(io.kept) > 0, || {
            "no block of the disk was verified".into()
        });
        let before = console.progress_on_source;
        let after = console.progress.len() - before;
        self.require(!migrates || before.min(after) > 0, || {
            format!(
                "the load told of its progress {before} times before the move and {after} after"
            )
        });
    }
}

/// How much less time passed for the guest than for the machines between its cue and
/// its end, in microseconds. `None` if either of them does not say.
pub(super) fn clock_behind_us(outcome: &Outcome, console: &Console) -> Option<i64> {
    let (source, destination) = (&outcome.source, &outcome.destination);
    let truth = match &source.migrated {
        Some(migrated) => {
            let there = source.times.left?.checked_sub(source.times.cue?)?;
            let here = destination
                .times
                .ended?
                .checked_sub(destination.times.arrived?)?;
            there + migrated.downtime_us + here
        }
        None => source.times.ended?.checked_sub(source.times.cue?)?,
    };
    let guest = console.end?.checked_sub(console.cue?)? * 10_000;
    i64::try_from(truth).ok()?.checked_sub_unsigned(guest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Migrated;
    use crate::linux::Io;
    use crate::observation::{Observation, Times};

    const WHOLE: Expect = Expect {
        migrates: true,
        disk: true,
        cpus: 2,
        interrupts: None,
        nmis: true,
    };

    fn whole() -> (Outcome, Console) {
        let console = Console {
            kernel: Some("6.1".into()),
            init: Some(130),
            init_cycles: Some(130),
            cpus: Some(2),
            cue: Some(200),
            ticks: vec![(1, 231), (2, 330)],
            ticks_on_source: 1,
            progress: vec![50, 100],
            progress_on_source: 1,
            end: Some(500),
            end_ticks: Some(2),
            nmi_answers: Some(4),
            clock_sources: vec!["tsc".into(), "tsc".into()],
            io: Some(Io {
                operations: 110,
                verified: 7,
                kept: 5,
                ..Io::default()
            }),
            ..Console::default()
        };
        let source = Observation {
            device_resets: 2,
            migrated: Some(Migrated {
                downtime_us: 50_000,
                ..Migrated::default()
            }),
            times: Times {
                cue: Some(4_000_000),
                left: Some(5_000_000),
                ..Times::default()
            },
            ..Observation::default()
        };
        let destination = Observation {
            device_resets: 2,
            guest_exit: Some(0),
            times: Times {
                arrived: Some(100_000),
                ended: Some(2_100_000),
                ..Times::default()
            },
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
    fn progress_may_be_told_in_any_order() {
        let (outcome, mut console) = whole();
        console.progress.reverse();
        assert!(judge(&outcome, &console, None, WHOLE).is_pass());
    }

    #[test]
    fn a_whole_run_passes_and_each_defect_fails() {
        type Break = fn(&mut Outcome, &mut Console);
        let (outcome, console) = whole();
        assert_eq!(judge(&outcome, &console, None, WHOLE), Verdict(Vec::new()));
        assert_eq!(clock_behind_us(&outcome, &console), Some(50_000));
        let breaks: [Break; 20] = [
            |_, console| console.io = None,
            |_, console| console.io.iter_mut().for_each(|io| io.errors = 1),
            |_, console| console.io.iter_mut().for_each(|io| io.verified = 0),
            |_, console| console.io.iter_mut().for_each(|io| io.kept = 0),
            |_, console| console.init = None,
            |_, console| console.cpus = Some(1),
            |_, console| console.ticks.truncate(1),
            |_, console| console.ticks[1].1 = 0,
            |_, console| console.end_ticks = None,
            |_, console| console.nmi_answers = Some(3),
            |_, console| console.progress[1] = 150,
            |_, console| console.progress_on_source = 2,
            |_, console| console.end = Some(600),
            |_, console| console.clock_sources[1] = "jiffies".into(),
            |_, console| console.errors.push("error <3>I/O".into()),
            |outcome, _| outcome.destination.guest_exit = Some(1),
            |outcome, _| outcome.source.migrated = None,
            |outcome, _| outcome.destination.mismatches.push(7),
            |outcome, _| outcome.destination.device_resets = 1,
            |outcome, _| outcome.source.migration_failed = Some("no".into()),
        ];
        for (index, damage) in breaks.into_iter().enumerate() {
            let (mut outcome, mut console) = whole();
            damage(&mut outcome, &mut console);
            let wrong = judge(&outcome, &console, None, WHOLE).0;
            assert_eq!(wrong.len(), 1, "{index}: {wrong:?}");
        }
    }

    #[test]
    fn a_boot_that_takes_five_times_as_long_is_too_slow() {
        let (outcome, console) = whole();
        for (init, wrong) in [(Some(26), 1), (Some(33), 0), (None, 1)] {
            let direct = Console {
                init_cycles: init,
                ..Console::default()
            };
            let verdict = judge(&outcome, &console, Some(&direct), WHOLE);
            assert_eq!(verdict.0.len(), wrong, "{verdict:?}");
        }
    }

    #[test]
    fn a_guest_that_stays_must_end_where_it_booted() {
        let (mut outcome, mut console) = whole();
        outcome.source.migrated = None;
        outcome.source.guest_exit = Some(0);
        outcome.source.times.ended = Some(7_000_000);
        console.progress_on_source = 2;
        // Nobody came to the destination, which gave up.
        outcome.destination = Observation {
            refused: Some("the source gave up".into()),
            ..Observation::default()
        };
        let expect = Expect {
            migrates: false,
            ..WHOLE
        };
        assert_eq!(judge(&outcome, &console, None, expect), Verdict(Vec::new()));
    }
}
