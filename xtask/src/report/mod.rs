//! A run's result: a table for people, JSON for programs.

mod logs;
mod table;

pub use logs::logs_of;
pub(crate) use table::{Row, grouped, ms, row};

use crate::events::{Migrated, Rebuilt};
use crate::exits::ExitRates;
use crate::ledger::LostPage;
use crate::linux::Figures;
use crate::run::{Outcome, Run};
use crate::verdict::Verdict;
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;

/// How many lost pages the table names, and how many lines of each log it shows.
const SHOWN: usize = 16;

/// The result of a run. Its serialization is the JSON that programs read.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The name of the run.
    pub scenario: String,
    /// The seed of the guest's workload.
    pub seed: u64,
    /// The broken mechanism, if any.
    pub sabotage: Option<String>,
    /// Rounds, the final one included.
    pub rounds: u64,
    /// Pages sent, repeats and zero pages included.
    pub pages_sent: u64,
    /// Marks in the dirty log: CPU writes.
    pub pages_dirty_cpu: u64,
    /// Marks in the dirty log: pages that a device could still write.
    pub pages_dirty_mapped: u64,
    /// Marks in the dirty log: unmap reports.
    pub pages_dirty_unmap: u64,
    /// Marks in the dirty log: the hypervisor's own device emulation.
    pub pages_dirty_emulation: u64,
    /// Bytes of the stream.
    pub bytes_sent: u64,
    /// How long the guest stood still, in microseconds.
    pub downtime_us: u64,
    /// What the downtime went into.
    pub downtime: Downtime,
    /// How the passthrough device was made like the source's, if it is one that is: part
    /// of `downtime.ack_us`, but on the destination's clock.
    pub device_rebuilt: Option<Rebuilt>,
    /// The kind of remapping unit.
    pub iommu: String,
    /// What counted on the source as evidence that a device wrote a page.
    pub dirty_mode: String,
    /// Why it was that and no more.
    pub dirty_reason: String,
    /// The kind of IOMMU that the guest was given.
    pub viommu: String,
    /// Whether the remapping units tell of the DMA they refuse.
    pub dma_faults_reported: bool,
    /// Faults that the remapping hardware recorded on both machines.
    pub dma_faults: u64,
    /// Pages that the guest mapped for its device on either machine and that were
    /// refused, as they are none of its own or there was no room.
    pub mappings_refused: u64,
    /// Whether devices could raise those interrupts only that they were granted.
    pub interrupts_remapped: bool,
    /// Interrupt requests that the remapping hardware of both machines refused.
    pub interrupt_faults: u64,
    /// Pages that the guest found right at its end.
    pub pages_verified: u64,
    /// Pages that the guest found wrong, or that differed at switchover.
    pub pages_lost: u64,
    /// Pages whose last writer was the device.
    pub pages_device_last: u64,
    /// The wrong pages that the guest named.
    pub lost: Vec<LostPage>,
    /// The frames that differed between the two machines at switchover, if they
    /// were compared.
    pub mismatches: Vec<u64>,
    /// What a Linux guest said of itself; then nothing is known of pages verified,
    /// lost or written last by a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<Figures>,
    /// How often the guest exited; `null` if it ran for less than a second.
    pub exits: Option<ExitRates>,
    /// From the start of the first machine on, in milliseconds of wall clock.
    pub elapsed_ms: u64,
    /// `pass` or `fail`.
    pub result: &'static str,
    /// Why it failed.
    pub failures: Vec<String>,
}

/// The parts of the downtime, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Downtime {
    /// Stopping the guest and its device.
    pub quiesce_us: u64,
    /// The last harvest of dirty pages.
    pub harvest_us: u64,
    /// Sending the last pages.
    pub pages_us: u64,
    /// Comparing all pages; 0 unless asked for.
    pub audit_us: u64,
    /// Sending the processor's and the devices' state.
    pub state_us: u64,
    /// Waiting for the destination.
    pub ack_us: u64,
}

impl Report {
    /// Sums up a run and its verdict.
    pub fn new(run: &Run, outcome: &Outcome, verdict: &Verdict) -> Self {
        let figures = figures(outcome);
        let home = outcome.last_home();
        let account = home.account.clone().unwrap_or_default();
        let (dirty_mode, dirty_reason) = outcome.source.dirty_mode.clone().unwrap_or_default();
        Self {
            scenario: run.scenario.clone(),
            seed: run.seed,
            sabotage: run.sabotage.map(|it| it.name()),
            rounds: figures.rounds,
            pages_sent: figures.pages_sent,
            pages_dirty_cpu: figures.dirty_cpu,
            pages_dirty_mapped: figures.dirty_mapped,
            pages_dirty_unmap: figures.dirty_unmap,
            pages_dirty_emulation: figures.dirty_emulation,
            bytes_sent: figures.bytes_sent,
            downtime_us: figures.downtime_us,
            downtime: Downtime {
                quiesce_us: figures.quiesce_us,
                harvest_us: figures.harvest_us,
                pages_us: figures.pages_us,
                audit_us: figures.audit_us,
                state_us: figures.state_us,
                ack_us: figures.ack_us,
            },
            device_rebuilt: outcome.destination.device_rebuilt,
            iommu: run.iommu.name(),
            dirty_mode,
            dirty_reason,
            viommu: run.viommu.name(),
            dma_faults_reported: outcome.reports_faults(),
            dma_faults: outcome
                .source
                .dma_faults
                .saturating_add(outcome.destination.dma_faults),
            mappings_refused: outcome
                .source
                .mappings_refused
                .saturating_add(outcome.destination.mappings_refused),
            interrupts_remapped: !(outcome.source.interrupts_unremapped
                || outcome.destination.interrupts_unremapped),
            interrupt_faults: outcome
                .source
                .interrupt_faults
                .saturating_add(outcome.destination.interrupt_faults),
            pages_verified: account.verified,
            pages_lost: home.pages_lost(),
            pages_device_last: account.device_last,
            lost: home.lost.clone(),
            mismatches: home.mismatches.clone(),
            guest: None,
            exits: ExitRates::of(
                outcome
                    .source
                    .exits
                    .iter()
                    .chain(&outcome.destination.exits),
            ),
            elapsed_ms: u64::try_from(outcome.elapsed.as_millis()).unwrap_or(u64::MAX),
            result: if verdict.is_pass() { "pass" } else { "fail" },
            failures: verdict.0.clone(),
        }
    }

    /// The JSON that programs read.
    ///
    /// # Errors
    /// None that can happen: the structure has only strings and numbers.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_json()?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The source's own figures of the migration; of one that was called off, what its
/// rounds add up to.
fn figures(outcome: &Outcome) -> Migrated {
    if let Some(migrated) = &outcome.source.migrated {
        return migrated.clone();
    }
    let mut sum = Migrated::default();
    for round in &outcome.source.rounds {
        sum.rounds = sum.rounds.saturating_add(1);
        sum.pages_sent = sum.pages_sent.saturating_add(round.pages);
        sum.bytes_sent = sum.bytes_sent.saturating_add(round.bytes);
        sum.dirty_cpu = sum.dirty_cpu.saturating_add(round.dirty_cpu);
        sum.dirty_mapped = sum.dirty_mapped.saturating_add(round.dirty_mapped);
        sum.dirty_unmap = sum.dirty_unmap.saturating_add(round.dirty_unmap);
        sum.dirty_emulation = sum.dirty_emulation.saturating_add(round.dirty_emulation);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Round;
    use crate::ledger::Account;

    fn outcome() -> Outcome {
        let mut outcome = Outcome::default();
        outcome.source.migrated = Some(Migrated {
            rounds: 4,
            pages_sent: 17_000,
            downtime_us: 1_234_567,
            dirty_unmap: 57,
            ..Migrated::default()
        });
        outcome.destination.account = Some(Account {
            verified: 4096,
            lost: 1,
            ..Account::default()
        });
        outcome.destination.lost.push(LostPage {
            gfn: 0x123,
            last: "device".into(),
            operation: 17,
        });
        outcome
    }

    fn report() -> Report {
        let verdict = Verdict(vec!["1 page lost".into()]);
        Report::new(&Run::new("main"), &outcome(), &verdict)
    }

    #[test]
    fn the_json_has_every_promised_member() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json().unwrap()).unwrap();
        for (member, value) in [
            ("rounds", 4),
            ("pages_sent", 17_000),
            ("pages_dirty_cpu", 0),
            ("pages_dirty_mapped", 0),
            ("pages_dirty_unmap", 57),
            ("bytes_sent", 0),
            ("downtime_us", 1_234_567),
            ("dma_faults", 0),
            ("mappings_refused", 0),
            ("interrupt_faults", 0),
            ("pages_verified", 4096),
            ("pages_lost", 1),
        ] {
            assert_eq!(json[member], value, "{member}");
        }
        assert_eq!(json["scenario"], "main");
        assert_eq!(json["result"], "fail");
        assert_eq!(json["lost"][0]["gfn"], 0x123);
        assert_eq!(json["lost"][0]["last"], "device");
    }

    #[test]
    fn the_table_names_lost_pages_by_frame_and_ends_with_the_result() {
        let table = report().to_string();
        assert!(table.contains("frame 0x123: last written by device in operation 17"));
        assert!(table.contains("dirty, unmap report") && table.contains("1,234.567"));
        assert!(
            table.contains("FAIL") && table.ends_with("  1 page lost\n"),
            "{table}"
        );
    }

    #[test]
    fn a_migration_that_was_called_off_is_summed_up_from_its_rounds() {
        let mut outcome = Outcome::default();
        for round in 1..=3 {
            outcome.source.rounds.push(Round {
                round,
                pages: 10,
                dirty_unmap: 2,
                ..Round::default()
            });
        }
        let report = Report::new(&Run::new("x"), &outcome, &Verdict(Vec::new()));
        assert_eq!((report.rounds, report.pages_sent), (3, 30));
        assert_eq!(report.pages_dirty_unmap, 6);
        assert_eq!(report.result, "pass");
    }
}
