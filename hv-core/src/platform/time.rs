//! The guest's time, by which all of its timers go.
//!
//! It follows the guest's time stamp counter, which migration carries across, so
//! every clock that the guest can compare stands still together while the guest
//! does. A write to the counter does not move it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Rates of the counter that are believable, in Hz.
const RATES: core::ops::RangeInclusive<u64> = 1_000_000..=100_000_000_000;

/// How far the rates of two machines' counters may be apart: a part in so many. Each
/// measured its own, and a guest corrects as much as this by itself (500 parts in a
/// million, as far as NTP goes).
const TOLERANCE: u64 = 2000;

/// Nanoseconds since the guest started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(u64);

impl Time {
    /// A time, in nanoseconds.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// The time in nanoseconds.
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// The nanoseconds since `earlier`; 0 if that is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// What a counter of this rate has counted since the start, modulo 2^64.
    pub const fn clocks(self, hz: u32) -> u64 {
        (self.0 as u128 * hz as u128 / 1_000_000_000) as u64
    }
}

/// The state of the time line. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TimelineState {
    /// Counts a second of the guest's time stamp counter.
    tsc_hz: u64,
    /// The counter's value at time 0, modulo 2^64.
    origin: u64,
}

/// How the time stamp counter maps to the guest's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeline(TimelineState);

impl Timeline {
    /// Time that starts when the counter, of `tsc_hz` counts a second, is 0. Rates
    /// no counter has become the nearest one that is possible.
    pub fn new(tsc_hz: u64) -> Self {
        Self(TimelineState {
            tsc_hz: tsc_hz.clamp(*RATES.start(), *RATES.end()),
            origin: 0,
        })
    }

    /// The time at which the counter has this value.
    pub fn at(&self, tsc: u64) -> Time {
        let counts = tsc.wrapping_sub(self.0.origin);
        let ns = u128::from(counts) * 1_000_000_000 / u128::from(self.0.tsc_hz);
        Time(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// The counter jumps from one value to another, and time goes on.
    pub fn rebase(&mut self, from: u64, to: u64) {
        self.0.origin = self.0.origin.wrapping_add(to.wrapping_sub(from));
    }

    /// The state of the time line.
    pub fn save(&self) -> TimelineState {
        self.0
    }

    /// A time line in a state from outside, on the machine of this one, unless it is
    /// impossible. Nothing here scales a counter, so the rates must be alike.
    pub fn restored(&self, state: &TimelineState) -> Option<Self> {
        let apart = state.tsc_hz.abs_diff(self.0.tsc_hz);
        let is_alike = apart <= self.0.tsc_hz / TOLERANCE;
        is_alike.then_some(Self(*state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_the_counter_does_not_move_time() {
        let mut timeline = Timeline::new(2_000_000_000);
        assert_eq!(timeline.at(4_000_000_000).ns(), 2_000_000_000);
        timeline.rebase(4_000_000_000, 10);
        assert_eq!(timeline.at(10).ns(), 2_000_000_000);
        assert_eq!(timeline.at(2_010).ns(), 2_000_001_000);
    }

    #[test]
    fn rates_and_times_have_limits() {
        assert_eq!(Timeline::new(0).at(u64::MAX).ns(), u64::MAX);
    }

    #[test]
    fn a_time_line_goes_on_only_by_a_counter_of_its_own_rate() {
        let here = Timeline::new(1_000_000_000);
        let goes_on = |tsc_hz| {
            let state = TimelineState { tsc_hz, origin: 7 };
            here.restored(&state) == Some(Timeline(state))
        };
        assert!(goes_on(1_000_000_000) && goes_on(999_500_000) && goes_on(1_000_500_000));
        for other in [0, 999_499_999, 1_000_500_001, 2_000_000_000, u64::MAX] {
            assert!(!goes_on(other), "{other}");
        }
    }

    #[test]
    fn slower_counters_follow() {
        assert_eq!(Time::from_ns(1_000_000_000).clocks(3_579_545), 3_579_545);
        assert_eq!(Time::from_ns(1_000).clocks(1_193_182), 1);
    }
}
