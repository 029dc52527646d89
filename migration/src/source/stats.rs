//! What a migration did, in numbers.

use hv_core::dirty::{DirtyLog, DirtySource};

/// How often each source marked a page. A page marked twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyCounts([u64; DirtySource::ALL.len()]);

impl DirtyCounts {
    /// The counters of the log as they stand.
    pub(crate) fn read(log: &DirtyLog<'_>) -> Self {
        Self(DirtySource::ALL.map(|source| log.marks_by(source)))
    }

    /// The marks by one source.
    pub fn by(&self, source: DirtySource) -> u64 {
        self.0[source as usize]
    }

    /// What was added since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut delta = *self;
        for (count, before) in delta.0.iter_mut().zip(earlier.0) {
            *count = count.saturating_sub(before);
        }
        delta
    }
}

/// One round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// Its number, from 1. The final pass counts as a round.
    pub round: u32,
    /// Pages sent, zero pages included.
    pub pages: u64,
    /// Pages sent as nothing but their number, since they hold only zeros.
    pub zero_pages: u64,
    /// Bytes on the link, headers included.
    pub bytes: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Marks made since the round before ended, up to this one's end.
    pub dirty: DirtyCounts,
    /// Pages known to remain when it ended: marked ones and those that devices may
    /// still write.
    pub remaining_pages: u64,
    /// Bytes a second while the engine was sending or waiting for the peer.
    pub bandwidth: u64,
    /// The downtime to expect if the guest were paused now, in microseconds.
    pub expected_downtime_us: u64,
}

/// Where the downtime went, in microseconds. The parts follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Downtime {
    /// From the pause until devices were at rest.
    pub quiesce_us: u64,
    /// Collecting the last marks.
    pub harvest_us: u64,
    /// Sending the pages left.
    pub pages_us: u64,
    /// Sending digests; 0 without audit.
    pub audit_us: u64,
    /// Saving and sending device and CPU state.
    pub state_us: u64,
    /// From `Final` until the destination runs.
    pub acknowledge_us: u64,
}

impl Downtime {
    /// The sum: from the pause until the destination is known to run.
    pub fn total_us(&self) -> u64 {
        self.quiesce_us
            + self.harvest_us
            + self.pages_us
            + self.audit_us
            + self.state_us
            + self.acknowledge_us
    }
}

/// The whole migration so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rounds ended, the final pass included.
    pub rounds: u32,
    /// Pages sent, zero pages included, each time they were.
    pub pages: u64,
    /// Zero pages among them.
    pub zero_pages: u64,
    /// Bytes handed to the link.
    pub bytes: u64,
    /// Marks since tracking began.
    pub dirty: DirtyCounts,
    /// Bytes a second, measured in the last round that sent any.
    pub bandwidth: u64,
    /// What the decision to pause expected, in microseconds.
    pub expected_downtime_us: u64,
    /// What came of it.
    pub downtime: Downtime,
    /// From the first call of `step` until the end or now, in microseconds.
    pub elapsed_us: u64,
}

/// Measures bandwidth over the time in which sending was possible: inside `step`,
/// and between calls while the peer was awaited. Time the guest runs does not
/// count, for it does not run in the final pass, whose length is to be foretold.
#[derive(Default)]
pub(crate) struct Meter {
    bytes: u64,
    busy_us: u64,
    since: Option<u64>,
}

impl Meter {
    pub(crate) fn enter(&mut self, now: u64) {
        self.since.get_or_insert(now);
    }

    /// The step ends; `waiting` if the time until the next one counts as well.
    pub(crate) fn leave(&mut self, now: u64, waiting: bool) {
        if let Some(since) = self.since {
            self.busy_us += now.saturating_sub(since);
        }
        self.since = waiting.then_some(now);
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// What was sent since the last call.
    pub(crate) fn take(&mut self, now: u64) -> Sample {
        let running = self.since.replace(now);
        let busy = self.busy_us + running.map_or(0, |since| now.saturating_sub(since));
        let bytes = core::mem::take(&mut self.bytes);
        self.busy_us = 0;
        Sample {
            bytes,
            bytes_per_second: crate::bytes_per_second(bytes, busy),
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) bytes: u64,
    pub(crate) bytes_per_second: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_time_does_not_count_and_the_peers_does() {
        let mut meter = Meter::default();
        meter.enter(0);
        meter.sent(1_000);
        meter.leave(100, false);
        meter.enter(5_000);
        meter.leave(5_100, true);
        meter.enter(5_900);
        let sample = meter.take(5_900);
        assert_eq!((sample.bytes, sample.bytes_per_second), (1_000, 1_000_000));
        meter.leave(6_000, false);
        meter.enter(7_000);
        assert_eq!(meter.take(7_000).bytes, 0);
    }
}
