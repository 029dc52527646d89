//! Exits of the guest by reason, reported once a second of the machine's time, and how
//! many commands it gave its device meanwhile.

use crate::clock::TscClock;
use crate::events::{self, Value};
use hv_core::clock::Clock;
use hv_core::vm::{ExitCounts, Reason};

/// How often they are reported.
const PERIOD_US: u64 = 1_000_000;

/// What was reported, and when.
pub(super) struct ExitReport {
    clock: TscClock,
    at_us: u64,
    counts: ExitCounts,
    commands: u64,
}

impl ExitReport {
    /// The first period starts now.
    pub(super) fn new(clock: TscClock) -> Self {
        Self {
            clock,
            at_us: clock.now_us(),
            counts: ExitCounts::default(),
            commands: 0,
        }
    }

    /// Time passes without the guest, which has exited as often as `counts` says.
    pub(super) fn skip(&mut self, counts: &ExitCounts) {
        (self.at_us, self.counts) = (self.clock.now_us(), *counts);
    }

    /// Reports what came since the last report, if that is long enough ago.
    pub(super) fn update(&mut self, counts: &ExitCounts, commands: u64) {
        let now = self.clock.now_us();
        let passed = now.saturating_sub(self.at_us);
        if passed < PERIOD_US {
            return;
        }
        let since = counts.since(&self.counts);
        let mut members = [("us", Value::from(passed)); Reason::ALL.len() + 2];
        members[1] = ("commands", (commands - self.commands).into());
        for (member, reason) in members.iter_mut().skip(2).zip(Reason::ALL) {
            *member = (reason.name(), since.of(reason).into());
        }
        events::emit("exits", &members);
        (self.at_us, self.counts, self.commands) = (now, *counts, commands);
    }
}
