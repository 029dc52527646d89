//! Whether a run is a success. Every rule is here, each with its reason.

use crate::machine::SUCCESS_CODE;
use crate::observation::{Exit, Observation};
use crate::run::Outcome;

/// What a run should show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The guest moves and ends on the destination.
    Migrates,
    /// The migration is called off and the guest ends on the source.
    StaysOnSource,
}

/// Everything that went wrong, in the order in which a reader should look at it;
/// empty for a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict(pub Vec<String>);

impl Verdict {
    /// Whether the run is a success.
    pub fn is_pass(&self) -> bool {
        self.0.is_empty()
    }
}

/// Judges a run.
pub fn judge(outcome: &Outcome, expect: Expect) -> Verdict {
    let mut wrong = Vec::new();
    if let Some(limit) = outcome.timed_out {
        wrong.push(format!("no end within {} s", limit.as_secs()));
    }
    for (name, seen) in [
        ("source", &outcome.source),
        ("destination", &outcome.destination),
    ] {
        // A line that cannot be read could have been the one that matters.
        for line in &seen.unreadable {
            wrong.push(format!("{name}: cannot read {line}"));
        }
    }
    wrong.extend(stray_interrupts(outcome));
    match expect {
        Expect::Migrates => moved(outcome, &mut wrong),
        Expect::StaysOnSource => stayed(outcome, &mut wrong),
    }
    Verdict(wrong)
}

/// A device that can raise any vector can do anything to the hypervisor.
pub(crate) fn stray_interrupts(outcome: &Outcome) -> impl Iterator<Item = String> {
    let machines = [
        ("source", &outcome.source),
        ("destination", &outcome.destination),
    ];
    machines.into_iter().filter_map(|(name, seen)| {
        let first = seen.stray_interrupts.first()?;
        let count = seen.stray_interrupts.len();
        Some(format!(
            "{name}: {count} interrupts arrived that nobody was granted, the first with vector {first:#x}"
        ))
    })
}

fn moved(outcome: &Outcome, wrong: &mut Vec<String>) {
    let (source, destination) = (&outcome.source, &outcome.destination);
    came_up("source", source, wrong);
    came_up("destination", destination, wrong);
    if let Some(reason) = &source.migration_failed {
        wrong.push(format!("source: migration failed: {reason}"));
    } else if source.migrated.is_none() {
        wrong.push(format!(
            "source: did not report the migration complete; it {}",
            source.exit
        ));
    }
    if !destination.resumed {
        wrong.push("destination: the guest did not resume".into());
    }
    // A guest that ends on the source was never moved, or runs twice.
    if source.guest_exit.is_some() || source.account.is_some() {
        wrong.push("source: the guest ended here, not on the destination".into());
    }
    if let Some(first) = destination.mismatches.first() {
        let count = destination.mismatches.len();
        wrong.push(format!(
            "{count} frames differed at switchover, the first is frame {first:#x}"
        ));
    }
    guest_is_content("destination", destination, outcome.reports_faults(), wrong);
}

fn stayed(outcome: &Outcome, wrong: &mut Vec<String>) {
    let (source, destination) = (&outcome.source, &outcome.destination);
    came_up("source", source, wrong);
    if source.migration_failed.is_none() {
        wrong.push("source: did not report the migration failed".into());
    }
    if source.migrated.is_some() {
        wrong.push("source: reported the migration complete".into());
    }
    // Two running copies of one guest would be worse than none.
    if destination.resumed || destination.guest_exit.is_some() || destination.account.is_some() {
        wrong.push("destination: the guest ran here as well".into());
    }
    guest_is_content("source", source, outcome.reports_faults(), wrong);
}

fn came_up(name: &str, seen: &Observation, wrong: &mut Vec<String>) {
    if let Some(reason) = &seen.refused {
        wrong.push(format!("{name}: refused: {reason}"));
    } else if seen.booted.is_none() {
        wrong.push(format!("{name}: did not boot; it {}", seen.exit));
    }
}

/// The guest's ledger, its status and the hypervisor's code must all agree: a
/// guest that forgets to fail its status must not hide a lost page.
fn guest_is_content(
    name: &str,
    seen: &Observation,
    faults_are_reported: bool,
    wrong: &mut Vec<String>,
) {
    match seen.pages_lost() {
        0 => {}
        1 => wrong.push(format!("{name}: 1 page lost")),
        lost => wrong.push(format!("{name}: {lost} pages lost")),
    }
    match &seen.account {
        None => wrong.push(format!("{name}: the guest gave no account of its pages")),
        Some(account) => {
            if account.verified == 0 {
                wrong.push(format!("{name}: the guest verified no page"));
            }
            // A unit that does not report can only lead to too few.
            let missing = account.faults < account.faults_expected && faults_are_reported;
            if missing || account.faults > account.faults_expected {
                wrong.push(format!(
                    "{name}: the guest saw {} DMA faults where {} were due",
                    account.faults, account.faults_expected
                ));
            }
        }
    }
    match seen.guest_exit {
        Some(0) => {}
        Some(status) => wrong.push(format!("{name}: the guest ended with status {status}")),
        None => wrong.push(format!("{name}: the guest did not end")),
    }
    if seen.exit != Exit::Code(SUCCESS_CODE) {
        wrong.push(format!("{name}: the machine {}", seen.exit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Migrated;
    use crate::ledger::{Account, LostPage};
    use std::time::Duration;

    fn content(seen: &mut Observation) {
        seen.guest_exit = Some(0);
        seen.exit = Exit::Code(SUCCESS_CODE);
        seen.account = Some(Account {
            verified: 100,
            ..Account::default()
        });
    }

    fn good_move() -> Outcome {
        let mut outcome = Outcome::default();
        outcome.source.booted = Some("1".into());
        outcome.source.migrated = Some(Migrated::default());
        outcome.source.exit = Exit::Code(SUCCESS_CODE);
        outcome.destination.booted = Some("1".into());
        outcome.destination.resumed = true;
        content(&mut outcome.destination);
        outcome
    }

    fn good_stay() -> Outcome {
        let mut outcome = Outcome::default();
        outcome.source.booted = Some("1".into());
        outcome.source.migration_failed = Some("no acknowledgement".into());
        content(&mut outcome.source);
        outcome.destination.exit = Exit::Killed;
        outcome
    }

    #[track_caller]
    fn fails_with(outcome: &Outcome, expect: Expect, text: &str) {
        let verdict = judge(outcome, expect);
        assert!(
            verdict.0.iter().any(|line| line.contains(text)),
            "{verdict:?} lacks {text}"
        );
    }

    #[test]
    fn a_verified_guest_on_the_destination_is_a_success() {
        assert_eq!(judge(&good_move(), Expect::Migrates), Verdict(Vec::new()));
    }

    #[test]
    fn a_guest_that_runs_on_at_the_source_is_a_success_only_when_expected() {
        assert!(judge(&good_stay(), Expect::StaysOnSource).is_pass());
        fails_with(&good_stay(), Expect::Migrates, "did not resume");
        fails_with(&good_stay(), Expect::Migrates, "ended here, not on");
        fails_with(&good_move(), Expect::StaysOnSource, "ran here as well");
    }

    #[test]
    fn lost_pages_fail_a_run_even_if_the_guest_ends_with_status_0() {
        let mut outcome = good_move();
        outcome.destination.account.as_mut().unwrap().lost = 2;
        fails_with(&outcome, Expect::Migrates, "2 pages lost");

        let mut outcome = good_move();
        outcome.destination.lost.push(LostPage {
            gfn: 1,
            last: "cpu".into(),
            operation: 1,
        });
        fails_with(&outcome, Expect::Migrates, "1 page lost");
    }

    #[test]
    fn each_missing_sign_of_success_fails_a_run() {
        type Break = fn(&mut Outcome);
        let breaks: [(Break, &str); 13] = [
            (|o| o.destination.resumed = false, "did not resume"),
            (|o| o.destination.account = None, "no account"),
            (
                |o| o.destination.account.as_mut().unwrap().verified = 0,
                "verified no page",
            ),
            (
                |o| o.destination.account.as_mut().unwrap().faults = 1,
                "1 DMA faults where 0 were due",
            ),
            (|o| o.destination.guest_exit = None, "did not end"),
            (|o| o.destination.guest_exit = Some(7), "status 7"),
            (|o| o.destination.exit = Exit::Code(0x11), "code 0x11"),
            (|o| o.destination.booted = None, "did not boot"),
            (|o| o.destination.mismatches.push(0x123), "frame 0x123"),
            (|o| o.source.migrated = None, "did not report"),
            (
                |o| o.source.stray_interrupts.push(0x77),
                "source: 1 interrupts arrived that nobody was granted, the first with vector 0x77",
            ),
            (|o| o.source.unreadable.push("`x`".into()), "cannot read"),
            (
                |o| o.timed_out = Some(Duration::from_secs(120)),
                "no end within 120 s",
            ),
        ];
        for (break_it, text) in breaks {
            let mut outcome = good_move();
            break_it(&mut outcome);
            fails_with(&outcome, Expect::Migrates, text);
        }
    }

    #[test]
    fn faults_may_be_missing_only_where_a_unit_does_not_report_them() {
        let mut outcome = good_move();
        let account = outcome.destination.account.as_mut().unwrap();
        (account.faults, account.faults_expected) = (1, 2);
        fails_with(&outcome, Expect::Migrates, "1 DMA faults where 2 were due");
        outcome.source.faults_unreported = true;
        assert!(judge(&outcome, Expect::Migrates).is_pass());
        outcome.destination.account.as_mut().unwrap().faults = 3;
        fails_with(&outcome, Expect::Migrates, "3 DMA faults where 2 were due");
    }

    #[test]
    fn a_guest_verified_on_the_source_is_no_migration() {
        let mut outcome = good_move();
        content(&mut outcome.source);
        fails_with(&outcome, Expect::Migrates, "ended here, not on");
    }
}
