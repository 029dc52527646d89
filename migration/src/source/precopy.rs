//! The part of the source's engine that runs while the guest does.

use super::pass::{Pass, Put};
use super::{DirtyCounts, Event, NonConvergence, RoundStats, Source, SourceError, SourceVm, State};
use crate::stream::{Config, Kind, MemoryRun, PageEntry};
use crate::transfer_us;
use core::mem::size_of;
use hv_core::clock::Clock;

/// How long to rest when a round had nothing to send and yet the guest could not
/// be paused, in microseconds.
const EMPTY_ROUND_REST_US: u64 = 100_000;

/// How many bytes must have been sent for their speed to tell that of the link.
const LEAST_SAMPLE: u64 = 64 << 10;

impl Source<'_> {
    /// Looks for what would make it all in vain before the first byte is sent.
    pub(super) fn put_hello(&mut self, vm: &impl SourceVm) -> Result<(), SourceError> {
        let devices_us = vm.device_downtime_us();
        if devices_us > self.params.downtime_limit_us() {
            return Err(SourceError::DowntimeLimit(devices_us.div_ceil(1_000)));
        }
        self.config = describe(vm, self.params.audit).ok_or(SourceError::Config)?;
        if let Some(vacant) = self.outbox.vacant() {
            vacant.put_plain(Kind::Hello, |payload| self.config.write(payload));
            self.state = State::Connecting;
        }
        Ok(())
    }

    /// Tracking first, then the first full pass: a page written after it was sent
    /// is in the log.
    pub(super) fn begin_precopy(
        &mut self,
        vm: &mut impl SourceVm,
        clock: &impl Clock,
    ) -> Result<(), SourceError> {
        vm.start_tracking()?;
        self.tracking = true;
        self.precopy_began = clock.now_us();
        self.meter.take(self.precopy_began);
        self.begin_round(Pass::all(), self.precopy_began);
        self.state = State::Precopy;
        Ok(())
    }

    pub(super) fn begin_round(&mut self, pass: Pass, now: u64) {
        self.pass = pass;
        self.totals.rounds += 1;
        self.round_began = now;
        self.round_bytes = self.totals.bytes;
    }

    /// Puts the next record of the pass into the outbox.
    pub(super) fn put_pages(&mut self, vm: &impl SourceVm, budget: &mut u32) {
        let round = self.totals.rounds;
        let Some(vacant) = self.outbox.vacant() else {
            return;
        };
        if self.pass.put_record(round, vm, vacant, budget) == Put::RoundEnd {
            self.state = if self.pass.is_last() {
                State::FinalPassEnding
            } else {
                State::RoundEnding
            };
        }
    }

    /// A round's last byte has left: collects the marks, foretells the downtime,
    /// and decides whether to pause the guest or to go round again.
    pub(super) fn end_round(
        &mut self,
        vm: &mut impl SourceVm,
        clock: &impl Clock,
    ) -> Result<Event, SourceError> {
        vm.harvest();
        let now = clock.now_us();
        let stats = self.round_stats(vm, now);
        let fits = stats.expected_downtime_us <= self.params.downtime_limit_us()
            && stats.round >= self.params.min_rounds;
        let forced = !fits
            && self.limits_reached(now)
            && match self.params.on_non_convergence {
                NonConvergence::Fail => return Err(SourceError::NoConvergence),
                NonConvergence::Force => true,
            };
        if fits || forced {
            self.state = State::Pausing;
        } else {
            if vm.log().is_clean() {
                self.rest_until = now.saturating_add(EMPTY_ROUND_REST_US);
            }
            self.begin_round(Pass::marked(false), now);
            self.state = State::Precopy;
        }
        Ok(Event::RoundDone(stats))
    }

    fn limits_reached(&self, now: u64) -> bool {
        let rounds = self.params.max_rounds;
        let timeout_us = self.params.precopy_timeout_ms.saturating_mul(1_000);
        (rounds != 0 && self.totals.rounds >= rounds)
            || (timeout_us != 0 && now.saturating_sub(self.precopy_began) >= timeout_us)
    }

    /// The statistics of the round that ends now, added to the totals.
    pub(super) fn round_stats(&mut self, vm: &impl SourceVm, now: u64) -> RoundStats {
        let totals = &mut self.totals;
        totals.pages += self.pass.pages();
        totals.zero_pages += self.pass.zero_pages();
        totals.dirty = DirtyCounts::read(vm.log());
        let sample = self.meter.take(now);
        // A few bytes measure the engine, not the link; but better than nothing.
        if sample.bytes >= LEAST_SAMPLE || totals.bandwidth == 0 {
            totals.bandwidth = sample.bytes_per_second;
        }
        let bandwidth = match self.params.switchover_bandwidth {
            0 => totals.bandwidth,
            expected => expected,
        };
        let remaining_pages = vm.log().count().saturating_add(vm.device_writable_pages());
        let remaining_bytes = remaining_pages.saturating_mul(size_of::<PageEntry>() as u64);
        totals.expected_downtime_us =
            transfer_us(remaining_bytes, bandwidth).saturating_add(vm.device_downtime_us());
        let dirty = totals.dirty.since(&self.round_dirty);
        self.round_dirty = totals.dirty;
        RoundStats {
            round: totals.rounds,
            pages: self.pass.pages(),
            zero_pages: self.pass.zero_pages(),
            bytes: totals.bytes - self.round_bytes,
            duration_us: now.saturating_sub(self.round_began),
            dirty,
            remaining_pages,
            bandwidth: totals.bandwidth,
            expected_downtime_us: totals.expected_downtime_us,
        }
    }
}

/// The guest as the stream describes it, or `None` if it cannot.
fn describe(vm: &impl SourceVm, audit: bool) -> Option<Config> {
    let mut config = Config {
        audit,
        ..Config::default()
    };
    for slot in vm.slots() {
        let run = MemoryRun {
            gfn: slot.gfn,
            frames: slot.frames,
        };
        config.memory.push(run).ok()?;
    }
    for info in vm.sections() {
        config.sections.push(*info).ok()?;
    }
    config.is_sound().then_some(config)
}
