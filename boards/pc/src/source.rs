//! The role of the source: runs the guest, and sends it away when it is time.
//!
//! The guest comes first. Migration gets the CPU when the tick cuts in, one step a
//! tick, and whenever the guest waits for an interrupt. Once the guest is paused
//! it gets all of it.

use crate::events::{self, Value};
use crate::guest::{Guest, GuestEnd};
use crate::turns::{self, Next};
use core::ops::ControlFlow;
use hv_core::clock::Clock;
use hv_core::dirty::DirtySource;
use log::{error, info, warn};
use migration::link::Link;
use migration::source::{Event, Outcome, RoundStats, Source, Status, Totals};

/// How it ended for this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest runs at the destination.
    Migrated,
    /// The guest ended here.
    Guest(GuestEnd),
    /// The guest may run at the destination, and stays paused here.
    InDoubt,
}

/// Runs the guest until it has left or ended. Its migration starts
/// `migrate_after_us` from now, when the guest gives its cue, or when the operator asks
/// for it. An interrupt cuts in at least every few milliseconds: the caller has started
/// the tick.
pub fn run(
    guest: &mut Guest<'_>,
    mut migration: Source<'_>,
    link: &mut impl Link,
    clock: &impl Clock,
    migrate_after_us: u64,
) -> End {
    let mut start_at = clock.now_us().saturating_add(migrate_after_us);
    let mut over = false;
    let left = turns::run(guest, |guest| {
        let is_cued = guest.take_cue();
        if is_cued {
            events::emit("cue", &[]);
        }
        if is_cued || events::take_migration_request() {
            start_at = 0;
        }
        if over || clock.now_us() < start_at {
            return ControlFlow::Continue(Next::Sleep);
        }
        let step = migration.step(guest, link, clock);
        if let Some(event) = step.event {
            report(&event);
        }
        ControlFlow::Continue(match step.status {
            Status::Working => Next::Work,
            Status::WaitingForPeer => Next::Spin,
            Status::ThrottledUntil(_) => Next::Sleep,
            Status::Finished(Outcome::Done) => {
                report_migrated(migration.progress());
                return ControlFlow::Break(End::Migrated);
            }
            Status::Finished(Outcome::InDoubt(error)) => {
                error!("migration: {error}; the guest may run at the destination");
                return ControlFlow::Break(End::InDoubt);
            }
            Status::Finished(Outcome::Failed(error)) => {
                warn!("migration failed, the guest goes on here: {error}");
                events::emit("migration-failed", &[("reason", (&error).into())]);
                over = true;
                Next::Work
            }
        })
    });
    left.unwrap_or_else(|end| {
        if !over {
            migration.cancel(guest, link);
        }
        End::Guest(end)
    })
}

fn report(event: &Event) {
    match event {
        Event::Connected => events::emit("connected", &[]),
        Event::Paused => events::emit("switchover", &[]),
        Event::RoundDone(round) => report_round(round),
    }
}

fn report_round(round: &RoundStats) {
    info!(
        "migration: round {}, {} pages, {} bytes, {} pages remain",
        round.round, round.pages, round.bytes, round.remaining_pages
    );
    let dirty = |source| Value::from(round.dirty.by(source));
    events::emit(
        "round",
        &[
            ("round", round.round.into()),
            ("pages", round.pages.into()),
            ("zero", round.zero_pages.into()),
            ("bytes", round.bytes.into()),
            ("dirty_cpu", dirty(DirtySource::Cpu)),
            ("dirty_mapped", dirty(DirtySource::Mapped)),
            ("dirty_unmap", dirty(DirtySource::Unmap)),
            ("dirty_emulation", dirty(DirtySource::Hypervisor)),
            ("remaining", round.remaining_pages.into()),
            ("rate", round.bandwidth.into()),
        ],
    );
}

fn report_migrated(totals: &Totals) {
    let downtime = &totals.downtime;
    let dirty = |source| Value::from(totals.dirty.by(source));
    info!("migration: done, downtime {} us", downtime.total_us());
    events::emit(
        "migrated",
        &[
            ("rounds", totals.rounds.into()),
            ("pages_sent", totals.pages.into()),
            ("bytes_sent", totals.bytes.into()),
            ("downtime_us", downtime.total_us().into()),
            ("quiesce_us", downtime.quiesce_us.into()),
            ("harvest_us", downtime.harvest_us.into()),
            ("pages_us", downtime.pages_us.into()),
            ("audit_us", downtime.audit_us.into()),
            ("state_us", downtime.state_us.into()),
            ("ack_us", downtime.acknowledge_us.into()),
            ("dirty_cpu", dirty(DirtySource::Cpu)),
            ("dirty_mapped", dirty(DirtySource::Mapped)),
            ("dirty_unmap", dirty(DirtySource::Unmap)),
            ("dirty_emulation", dirty(DirtySource::Hypervisor)),
        ],
    );
}
