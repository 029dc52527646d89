//! What was seen of one machine: its events, its guest's ledger, its end.

use crate::events::{Event, Migrated, Rebuilt, Round, Stamped};
use crate::exits::Period;
use crate::ledger::{Account, Line, LostPage};
use std::collections::BTreeSet;
use std::fmt;

/// How a machine ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    /// It has not.
    #[default]
    Running,
    /// The hypervisor wrote this code to the debug-exit port.
    Code(i32),
    /// QEMU ended by itself with this status, for example because of a bad option
    /// or a reset.
    Emulator(i32),
    /// It was killed.
    Killed,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("is still running"),
            Self::Code(code) => write!(f, "ended with code {code:#x}"),
            Self::Emulator(status) => write!(f, "ended with QEMU's own status {status}"),
            Self::Killed => f.write_str("was killed"),
        }
    }
}

/// When a guest came and went, in microseconds of the machine's own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// It said the word that its migration waits for.
    pub cue: Option<u64>,
    /// It was stopped, to leave.
    pub left: Option<u64>,
    /// It arrived.
    pub arrived: Option<u64>,
    /// It ended.
    pub ended: Option<u64>,
}

impl Times {
    fn note(&mut self, at_us: u64, event: &Event) {
        let time = match event {
            Event::Cue => &mut self.cue,
            Event::Switchover => &mut self.left,
            Event::Resumed => &mut self.arrived,
            Event::GuestExit { .. } => &mut self.ended,
            _ => return,
        };
        *time = Some(at_us);
    }
}

/// Everything seen of one machine.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The image's version, once it is up.
    pub booted: Option<String>,
    /// The kind of its remapping unit.
    pub iommu: Option<String>,
    /// What counts as evidence that a device wrote a page, and why.
    pub dirty_mode: Option<(String, String)>,
    /// Whether the unit refuses DMA without telling.
    pub faults_unreported: bool,
    /// Whether the unit lets every interrupt request pass as it is.
    pub interrupts_unremapped: bool,
    /// Why it refused to start, if it did.
    pub refused: Option<String>,
    /// Whether the destination accepted the guest.
    pub connected: bool,
    /// The pre-copy rounds, in order.
    pub rounds: Vec<Round>,
    /// Whether the guest was stopped for the switchover.
    pub switchover: bool,
    /// The figures of the completed migration.
    pub migrated: Option<Migrated>,
    /// Why the migration was called off, if it was.
    pub migration_failed: Option<String>,
    /// Frames that differed between the two machines at switchover.
    pub mismatches: Vec<u64>,
    /// Whether the guest arrived here.
    pub resumed: bool,
    /// Faults that the remapping hardware recorded.
    pub dma_faults: u64,
    /// How often the device was reset on behalf of the guest.
    pub device_resets: u64,
    /// How the passthrough device was made like the source's.
    pub device_rebuilt: Option<Rebuilt>,
    /// Pages that the guest mapped for its device here and that were refused.
    pub mappings_refused: u64,
    /// Interrupt requests that the remapping hardware refused.
    pub interrupt_faults: u64,
    /// The vectors of interrupts that reached the hypervisor though nobody was granted
    /// them.
    pub stray_interrupts: Vec<u64>,
    /// How often the guest exited here, period by period.
    pub exits: Vec<Period>,
    /// The status the guest ended with here.
    pub guest_exit: Option<u64>,
    /// The way it ended: `exit`, `power-off`, `reset` or `error`; empty before.
    pub guest_exit_way: String,
    /// The guest's account, if it ended here.
    pub account: Option<Account>,
    /// The pages the guest found wrong.
    pub lost: Vec<LostPage>,
    /// Events and ledger lines that could not be read.
    pub unreadable: Vec<String>,
    /// When what matters to the guest's clock was.
    pub times: Times,
    /// The last event, for the report of a run that hangs.
    pub last_event: Option<Event>,
    /// How the machine ended.
    pub exit: Exit,
}

impl Observation {
    /// Takes in one event.
    pub fn note_event(&mut self, stamped: &Stamped) {
        let Stamped { at_us, event } = stamped;
        self.last_event = Some(event.clone());
        self.times.note(*at_us, event);
        match event.clone() {
            Event::Boot { version, .. } => self.booted = Some(version),
            Event::Refused { reason } => self.refused = Some(reason),
            Event::Connected => self.connected = true,
            Event::Iommu {
                unit,
                reports_faults,
                remaps_interrupts,
                dirty_mode,
                dirty_reason,
            } => {
                self.iommu = Some(unit);
                self.dirty_mode = Some((dirty_mode, dirty_reason));
                self.faults_unreported = !reports_faults;
                self.interrupts_unremapped = !remaps_interrupts;
            }
            Event::Round(round) => self.rounds.push(round),
            Event::Switchover => self.switchover = true,
            Event::Migrated(migrated) => self.migrated = Some(migrated),
            Event::MigrationFailed { reason } => self.migration_failed = Some(reason),
            Event::Mismatch { gfn } => self.mismatches.push(gfn),
            Event::Resumed => self.resumed = true,
            Event::DmaFault { count } => self.dma_faults = self.dma_faults.saturating_add(count),
            Event::RefusedMapping { count } => {
                self.mappings_refused = self.mappings_refused.saturating_add(count);
            }
            Event::InterruptFault { count } => {
                self.interrupt_faults = self.interrupt_faults.saturating_add(count);
            }
            Event::StrayInterrupt { vector } => self.stray_interrupts.push(vector),
            Event::Exits(period) => self.exits.push(period),
            Event::GuestExit { status, way } => {
                self.guest_exit = Some(status);
                self.guest_exit_way = way;
            }
            Event::DeviceReset { done } => self.device_resets += u64::from(done),
            Event::DeviceRebuilt(rebuilt) => self.device_rebuilt = Some(rebuilt),
            Event::Cue | Event::Unknown => {}
        }
    }

    /// Takes in one line of the guest's ledger.
    pub fn note_ledger(&mut self, line: Line) {
        match line {
            Line::Account(account) => self.account = Some(account),
            Line::Lost(page) => self.lost.push(page),
        }
    }

    /// The frames known to be wrong: those that differed from the source's at
    /// switchover, and those the guest named.
    pub fn lost_frames(&self) -> BTreeSet<u64> {
        let named = self.lost.iter().map(|page| page.gfn);
        named.chain(self.mismatches.iter().copied()).collect()
    }

    /// How many pages are wrong. The guest may name fewer than it counts, or end
    /// before it has counted.
    pub fn pages_lost(&self) -> u64 {
        let counted = self.account.as_ref().map_or(0, |account| account.lost);
        counted.max(self.lost_frames().len() as u64)
    }

    /// Whether the machine has ended.
    pub fn has_ended(&self) -> bool {
        self.exit != Exit::Running
    }
}
