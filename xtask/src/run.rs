//! One run: two machines, a guest that moves from one to the other, and what was
//! seen of them.

use crate::events::Event;
use crate::images::Images;
use crate::iommu::Iommu;
use crate::machine::{Files, Machine, Role};
use crate::observation::Observation;
use crate::qemu;
use crate::sabotage::Sabotage;
use crate::site::Site;
use crate::units::{Size, Span};
use crate::viommu::Viommu;
use crate::workspace;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);

/// How long the other machine may go on after the run is decided.
const GRACE: Duration = Duration::from_secs(3);

/// When to cut the link: the destination is killed, as by a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// When the destination has accepted the guest and its memory is on the way.
    InPreCopy,
    /// When the source has stopped its guest.
    AtSwitchover,
}

/// What to run. Change the fields of [`Run::new`] as needed.
#[derive(Clone, Debug)]
pub struct Run {
    /// The name of the run; it names the log directory too.
    pub scenario: String,
    /// The seed of the guest's pseudo-random workload.
    pub seed: u64,
    /// How many operations the guest does; `None` leaves it to the guest.
    pub operations: Option<u64>,
    /// Options for the guest besides these, like `mode=garbage`.
    pub guest_options: Vec<String>,
    /// The guest's command line, instead of seed, operations and options.
    pub guest_line: Option<String>,
    /// The guest's memory.
    pub memory: Size,
    /// The guest's CPUs, 1 or 2.
    pub vcpus: u32,
    /// What the destination is told the guest's memory is, if something else.
    pub destination_memory: Option<Size>,
    /// A feature that the destination's CPUs lack, by QEMU's name for it.
    pub destination_lacks: Option<&'static str>,
    /// The remapping unit of both machines.
    pub iommu: Iommu,
    /// The IOMMU that the guest is given.
    pub viommu: Viommu,
    /// Whether the guest's IOMMU offers to remap interrupts, if its kind can.
    pub interrupt_remapping: bool,
    /// The size of an NVMe disk that the machines share, which is then the guest's
    /// device instead of `edu`.
    pub disk: Option<Size>,
    /// The bytes a second the migration may send; `None` leaves it to the hypervisor.
    pub max_bandwidth: Option<Size>,
    /// How long the guest may stand still; `None` leaves it to the hypervisor.
    pub downtime_limit: Option<Span>,
    /// How long the guest runs before its migration starts, in the machine's time;
    /// `None` leaves it to the hypervisor.
    pub migrate_after: Option<Span>,
    /// The word at the end of a line on the guest's console that starts the migration.
    pub migrate_on: Option<String>,
    /// Whether the two machines compare all pages at switchover.
    pub verify: bool,
    /// The mechanism to break.
    pub sabotage: Option<Sabotage>,
    /// When to cut the link.
    pub cut: Option<Cut>,
    /// Have the source wait for a debugger at this TCP port before its first
    /// instruction.
    pub gdb: Option<u16>,
    /// How long all may take, on the wall clock.
    pub timeout: Span,
    /// Where the logs go; `None` is `logs/<scenario>` in the target directory.
    pub logs: Option<PathBuf>,
}

impl Run {
    /// The main job under the given name.
    pub fn new(scenario: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            seed: 1,
            operations: None,
            guest_options: Vec::new(),
            guest_line: None,
            memory: Size::mib(64),
            vcpus: 1,
            destination_memory: None,
            destination_lacks: None,
            iommu: Iommu::default(),
            viommu: Viommu::default(),
            interrupt_remapping: true,
            disk: None,
            // So slow that the guest does hundreds of operations meanwhile.
            max_bandwidth: Some(Size::mib(2)),
            // Little more than the device's state takes, so that it needs some rounds.
            downtime_limit: Some(Span::ms(305)),
            migrate_after: None,
            migrate_on: None,
            verify: false,
            sabotage: None,
            cut: None,
            gdb: None,
            timeout: Span::seconds(120),
            logs: None,
        }
    }

    /// A run with one mechanism broken. It migrates slowly, so that the device writes
    /// more after a page was sent: that is what a broken mechanism loses. With nothing
    /// to hold interrupts back, the device sends some.
    pub fn broken(scenario: &str, sabotage: Sabotage) -> Self {
        let forges = sabotage == Sabotage::InterruptRemapping;
        Self {
            max_bandwidth: Some(Size::mib(1)),
            sabotage: Some(sabotage),
            guest_options: Vec::from_iter(forges.then(|| "mode=forge".to_owned())),
            ..Self::new(scenario)
        }
    }

    /// Finds the emulator, builds the images this run needs, boots both machines
    /// and watches them to the end. `watch` is told each event as it comes.
    ///
    /// # Errors
    /// The run could not take place. A run that takes place and goes wrong is an
    /// [`Outcome`], for [`crate::verdict::judge`].
    pub fn execute(&self, watch: &mut dyn FnMut(Role, &Event)) -> Result<Outcome> {
        self.execute_with(&qemu::find()?, &self.images()?, watch)
    }

    /// Builds the images this run needs.
    ///
    /// # Errors
    /// The build failed; cargo has said why.
    pub fn images(&self) -> Result<Images> {
        match self.sabotage {
            None => Images::ordinary(),
            Some(_) => Images::breakable(),
        }
    }

    /// The same with a given emulator and given images.
    ///
    /// # Errors
    /// As for [`Run::execute`].
    pub fn execute_with(
        &self,
        qemu: &Path,
        images: &Images,
        watch: &mut dyn FnMut(Role, &Event),
    ) -> Result<Outcome> {
        let site = Site::new(self, qemu, images)?;
        let started = Instant::now();
        let mut destination = site.start(Role::Destination, None)?;
        let mut source = site.start(Role::Source, None)?;
        let timed_out = self.watch(started, &mut source, &mut destination, watch)?;
        source.kill();
        destination.kill();

        Ok(Outcome {
            source: std::mem::take(&mut source.seen),
            destination: std::mem::take(&mut destination.seen),
            timed_out: timed_out.then(|| self.timeout.duration()),
            elapsed: started.elapsed(),
            logs: self.log_directory(),
        })
    }

    /// Polls both machines until the run is decided; true if time ran out first.
    fn watch(
        &self,
        started: Instant,
        source: &mut Machine,
        destination: &mut Machine,
        watch: &mut dyn FnMut(Role, &Event),
    ) -> Result<bool> {
        let mut decided_at: Option<Instant> = None;
        loop {
            for machine in [&mut *source, &mut *destination] {
                for event in machine.poll()? {
                    watch(machine.role, &event);
                }
            }
            if self.cut.is_some_and(|cut| cut.is_due(&source.seen)) {
                destination.kill();
            }
            if source.seen.has_ended() && destination.seen.has_ended() {
                return Ok(false);
            }
            if decided_at.is_none() && is_decided(&source.seen, &destination.seen) {
                decided_at = Some(Instant::now());
            }
            if decided_at.is_some_and(|at| at.elapsed() > GRACE) {
                return Ok(false);
            }
            if started.elapsed() > self.timeout.duration() {
                return Ok(decided_at.is_none());
            }
            thread::sleep(POLL);
        }
    }

    /// The hypervisor's command line; what comes after `--` is the guest's.
    pub(crate) fn options(&self, role: Role) -> String {
        let mut options = vec![format!("role={role}")];
        let memory = match role {
            Role::Source => self.memory,
            Role::Destination => self.destination_memory.unwrap_or(self.memory),
        };
        options.push(format!("memory={memory}"));
        if self.vcpus > 1 {
            options.push(format!("vcpus={}", self.vcpus));
        }
        let mut give = |key: &str, value: Option<String>| {
            options.extend(value.map(|value| format!("{key}={value}")));
        };
        let is_other = self.viommu != Viommu::default();
        give("viommu", is_other.then(|| self.viommu.name()));
        let remapping = (!self.interrupt_remapping).then(|| "off".to_owned());
        give("interrupt-remapping", remapping);
        // With a mechanism broken the guest may be too damaged to account for its
        // pages; then the comparison still names the frames.
        let verify = self.verify || self.sabotage.is_some();
        give("verify", verify.then(|| "on".to_owned()));
        give("sabotage", self.sabotage.map(Sabotage::name));
        if role == Role::Source {
            give("max-bandwidth", self.max_bandwidth.map(|it| it.to_string()));
            give(
                "downtime-limit",
                self.downtime_limit.map(|it| it.to_string()),
            );
            give("migrate-after", self.migrate_after.map(|it| it.to_string()));
            give("migrate-on", self.migrate_on.clone());
            options.push("--".to_owned());
            match &self.guest_line {
                Some(line) => options.push(line.clone()),
                None => {
                    options.push(format!("seed={}", self.seed));
                    options.extend(self.operations.map(|count| format!("operations={count}")));
                    options.extend(self.iommu.guest_options().iter().map(|&it| it.to_owned()));
                    options.extend(self.guest_options.iter().cloned());
                }
            }
        }
        options.join(" ")
    }

    pub(crate) fn log_directory(&self) -> PathBuf {
        match &self.logs {
            Some(directory) => directory.clone(),
            None => workspace::target_dir().join("logs").join(&self.scenario),
        }
    }
}

impl Cut {
    fn is_due(self, source: &Observation) -> bool {
        match self {
            Self::InPreCopy => source.connected,
            Self::AtSwitchover => source.switchover,
        }
    }
}

/// Whether nothing more can change the verdict: the machine that has the guest has
/// ended.
fn is_decided(source: &Observation, destination: &Observation) -> bool {
    let lost_with_source = source.has_ended() && source.migrated.is_none();
    let ended_on_destination = destination.has_ended() && destination.resumed;
    lost_with_source || ended_on_destination
}

/// What was seen of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The machine that booted the guest.
    pub source: Observation,
    /// The machine that waited for it.
    pub destination: Observation,
    /// The limit, if time ran out before the run was decided.
    pub timed_out: Option<Duration>,
    /// On the wall clock, from the start of the first machine on.
    pub elapsed: Duration,
    /// Where the logs are.
    pub logs: PathBuf,
}

impl Outcome {
    /// The files of the machine `role`.
    pub fn files(&self, role: Role) -> Files {
        Files::new(&self.logs, role)
    }

    /// Whether the units of both machines tell of the DMA they refuse.
    pub fn reports_faults(&self) -> bool {
        !(self.source.faults_unreported || self.destination.faults_unreported)
    }

    /// The machine on which the guest ended, or else the destination.
    pub fn last_home(&self) -> &Observation {
        if self.source.account.is_some() && self.destination.account.is_none() {
            &self.source
        } else {
            &self.destination
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Migrated, Stamped};
    use crate::observation::Exit;

    #[test]
    fn the_command_lines_carry_what_was_asked_for() {
        let run = Run {
            seed: 7,
            operations: Some(600),
            guest_options: vec!["mode=stray".into()],
            iommu: Iommu::Amd,
            viommu: Viommu::Virtio,
            max_bandwidth: Some(Size::mib(4)),
            downtime_limit: Some(Span::ms(500)),
            migrate_on: Some("now".into()),
            verify: true,
            sabotage: Some(Sabotage::UnmapReport),
            destination_memory: Some(Size::mib(32)),
            ..Run::new("x")
        };
        assert_eq!(
            run.options(Role::Source),
            "role=source memory=64M viommu=virtio verify=on sabotage=unmap-report max-bandwidth=4M \
             downtime-limit=500ms migrate-on=now -- seed=7 operations=600 faults=unreported mode=stray"
        );
        assert_eq!(
            run.options(Role::Destination),
            "role=destination memory=32M viommu=virtio verify=on sabotage=unmap-report"
        );
    }

    #[test]
    fn a_cut_is_due_at_its_event_and_not_before() {
        let note = |source: &mut Observation, event| {
            source.note_event(&Stamped { at_us: 0, event });
        };
        let mut source = Observation::default();
        assert!(!Cut::InPreCopy.is_due(&source));
        note(&mut source, Event::Connected);
        assert!(Cut::InPreCopy.is_due(&source) && !Cut::AtSwitchover.is_due(&source));
        note(&mut source, Event::Switchover);
        assert!(Cut::AtSwitchover.is_due(&source));
    }

    #[test]
    fn a_run_is_decided_when_the_machine_that_has_the_guest_ends() {
        let mut source = Observation::default();
        let mut destination = Observation {
            exit: Exit::Killed,
            ..Observation::default()
        };
        assert!(!is_decided(&source, &destination), "the source runs on");
        source.exit = Exit::Code(0x10);
        assert!(is_decided(&source, &destination));
        source.migrated = Some(Migrated::default());
        destination.exit = Exit::Running;
        assert!(!is_decided(&source, &destination), "the guest has moved");
        destination.resumed = true;
        destination.exit = Exit::Code(0x10);
        assert!(is_decided(&source, &destination));
    }
}
