//! A run with a Linux guest, from what is asked for to what came of it.

use super::{Console, Expect, Figures, Init, Parts, Sources, direct, judge};
use crate::events::Event;
use crate::machine::Role;
use crate::qemu;
use crate::report::Report;
use crate::run::{Outcome, Run};
use crate::sabotage::Sabotage;
use crate::units::{Size, Span};
use crate::verdict::Verdict;
use crate::viommu::Viommu;
use anyhow::Result;

/// When the guest moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// In the middle of its work: see [`Load::cue`]. A guest without a disk: at its
    /// second tick.
    AtWork,
    /// So long after it was started, in the machine's time.
    After(Span),
    /// Not at all: it ends where it booted.
    Never,
}

/// The work on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many reads and writes of 4 KiB, besides a last look at every block.
    pub operations: u64,
    /// After how many of them the guest gives its cue.
    pub cue: u64,
}

/// A run with a Linux guest. Change the fields of [`Job::new`] as needed.
#[derive(Clone, Debug)]
pub struct Job {
    /// The name of the run; it names the log directory too.
    pub scenario: String,
    /// What boots.
    pub sources: Sources,
    /// The kernel's command line.
    pub append: String,
    /// The guest's memory.
    pub memory: Size,
    /// The guest's CPUs, 1 or 2.
    pub vcpus: u32,
    /// Whether its IOMMU offers to remap interrupts.
    pub interrupt_remapping: bool,
    /// The work on its disk; `None`: it has no disk and idles.
    pub load: Option<Load>,
    /// When it moves.
    pub departure: Departure,
    /// The bytes a second the migration may send, in the machine's time; `None`: no limit.
    pub max_bandwidth: Option<Size>,
    /// Also boot the same without a hypervisor, and compare.
    pub compare_boot: bool,
    /// The mechanism to break.
    pub sabotage: Option<Sabotage>,
    /// How long all may take, on the wall clock.
    pub timeout: Span,
}

/// The kernel's command line, unless another is given: each DMA unmap is an
/// invalidation at once, without which the device keeps its access.
pub const COMMAND_LINE: &str = "console=ttyS0 intel_iommu=on iommu.strict=1 iommu.passthrough=0";

/// The disk that both machines have.
const DISK: Size = Size::mib(64);

/// The tick at which a guest without a disk moves.
const IDLE_CUE: &str = "n=2";

/// What came of it.
pub struct Done {
    /// What was seen of the machines.
    pub outcome: Outcome,
    /// Whether all is well.
    pub verdict: Verdict,
    /// All in figures.
    pub report: Report,
}

impl Job {
    /// A guest with one CPU that moves in the middle of its work.
    pub fn new(scenario: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            sources: Sources::default(),
            append: COMMAND_LINE.to_owned(),
            memory: Size::mib(256),
            vcpus: 1,
            interrupt_remapping: true,
            load: Some(Load {
                operations: 8000,
                cue: 1000,
            }),
            departure: Departure::AtWork,
            // So slow that the disk writes to hundreds of pages that were sent already.
            max_bandwidth: Some(Size::mib(48)),
            compare_boot: false,
            sabotage: None,
            timeout: Span::seconds(240),
        }
    }

    /// Finds the emulator, builds and fetches what is missing, and runs it. `watch` is
    /// told each event as it comes.
    ///
    /// # Errors
    /// The run could not take place.
    pub fn execute(&self, watch: &mut dyn FnMut(Role, &Event)) -> Result<Done> {
        let qemu = qemu::find()?;
        let sources = Sources {
            init: Init::Account,
            breakable: self.sabotage.is_some(),
            ..self.sources.clone()
        };
        let parts = Parts::gather(&sources)?;
        let images = parts.images(sources.breakable)?;
        let run = self.run();
        let outcome = run.execute_with(&qemu, &images, watch)?;
        let console = Console::read(&outcome, run.migrate_on.as_deref())?;
        let direct = match self.compare_boot {
            true => Some(direct::boot(&qemu, &run, &parts)?),
            false => None,
        };
        let verdict = judge(
            &outcome,
            &console,
            direct.as_ref(),
            Expect {
                migrates: self.departure != Departure::Never,
                disk: self.load.is_some(),
                cpus: self.vcpus,
                interrupts: self.interrupts(),
                nmis: self.sources.kernel.is_none() && self.sources.initramfs.is_none(),
            },
        );
        let report = Report {
            guest: Figures::new(&outcome, &console, direct.as_ref()),
            ..Report::new(&run, &outcome, &verdict)
        };
        Ok(Done {
            outcome,
            verdict,
            report,
        })
    }

    /// Whether the kernel is to have its interrupts remapped. Debian's own does if it can
    /// and is told nothing else; what others do is their business.
    fn interrupts(&self) -> Option<bool> {
        let is_known = self.sources.kernel.is_none() && self.append.starts_with(COMMAND_LINE);
        let is_able = self.sources.viommu == Viommu::Vtd;
        is_known.then_some(is_able && self.interrupt_remapping)
    }

    fn run(&self) -> Run {
        let mut line = self.append.clone();
        if let Some(load) = self.load {
            line += &format!(" operations={} progress={}", load.operations, load.cue);
        }
        let cue = match self.load {
            Some(load) => format!("operations={}", load.cue),
            None => IDLE_CUE.to_owned(),
        };
        let (migrate_on, migrate_after) = match self.departure {
            Departure::AtWork => (Some(cue), None),
            Departure::After(span) => (None, Some(span)),
            Departure::Never => (None, Some(Span::seconds(1_000_000))),
        };
        Run {
            memory: self.memory,
            vcpus: self.vcpus,
            interrupt_remapping: self.interrupt_remapping,
            viommu: self.sources.viommu,
            disk: self.load.map(|_| DISK),
            max_bandwidth: self.max_bandwidth,
            downtime_limit: None,
            migrate_after,
            migrate_on,
            guest_line: Some(line),
            sabotage: self.sabotage,
            timeout: self.timeout,
            ..Run::new(&self.scenario)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_moves_at_its_own_word_unless_a_time_is_given() {
        let options = |job: &Job| job.run().options(Role::Source);
        let job = Job::new("linux");
        assert!(options(&job).contains("migrate-on=operations=1000 --"));
        assert!(options(&job).ends_with("operations=8000 progress=1000"));
        let idle = Job {
            load: None,
            ..job.clone()
        };
        assert!(options(&idle).contains("migrate-on=n=2 --"));
        let timed = Job {
            departure: Departure::After(Span::seconds(9)),
            ..job
        };
        assert!(options(&timed).contains("migrate-after=9000ms --"));
    }
}
