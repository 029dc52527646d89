//! The timer of the local APIC: one-shot and periodic.
//!
//! AMD64 Architecture Programmer's Manual volume 2, section 16.4.1. It counts down
//! from the initial count at 1 GHz over a divisor, in the guest's time.

use super::Time;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The state of the timer. The layout is fixed: these bytes migrate.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TimerState {
    /// When the count began, in nanoseconds.
    start: u64,
    /// Where it begins.
    initial: u32,
    /// The divide configuration register.
    divide: u32,
    /// 1 while it counts.
    running: u32,
    reserved: u32,
}

/// What the timer did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tick {
    /// It counts, or stands still.
    Quiet,
    /// It reached 0, once or more often, since the last look.
    Expired,
}

/// The timer.
#[derive(Default)]
pub(super) struct Timer(TimerState);

impl Timer {
    /// The initial count register.
    pub(super) fn initial(&self) -> u32 {
        self.0.initial
    }

    /// Writes the initial count, which starts the timer; 0 stops it.
    pub(super) fn start(&mut self, initial: u32, now: Time) {
        self.0.initial = initial;
        self.0.start = now.ns();
        self.0.running = u32::from(initial != 0);
    }

    /// The divide configuration register.
    pub(super) fn divide(&self) -> u32 {
        self.0.divide
    }

    /// Writes the divide configuration, for the count in progress too.
    pub(super) fn set_divide(&mut self, divide: u32) {
        self.0.divide = divide & 0b1011;
    }

    /// The current count register.
    pub(super) fn current(&self, now: Time, is_periodic: bool) -> u32 {
        if self.0.running == 0 {
            return 0;
        }
        let initial = u64::from(self.0.initial);
        let passed = now.since(Time::from_ns(self.0.start)) >> self.shift();
        let left = if is_periodic {
            initial - passed % initial.max(1)
        } else {
            initial.saturating_sub(passed)
        };
        left as u32
    }

    /// Brings the timer up to `now`.
    pub(super) fn advance(&mut self, now: Time, is_periodic: bool) -> Tick {
        let period = u64::from(self.0.initial) << self.shift();
        let passed = now.since(Time::from_ns(self.0.start));
        if self.0.running == 0 || passed < period {
            return Tick::Quiet;
        }
        if is_periodic {
            // Ticks that could not be delivered in time become one.
            self.0.start = now.ns() - passed % period.max(1);
        } else {
            self.0.running = 0;
        }
        Tick::Expired
    }

    /// The state of the timer.
    pub(super) fn save(&self) -> TimerState {
        self.0
    }

    /// A timer in a state from outside, unless it is impossible.
    pub(super) fn restored(state: &TimerState) -> Option<Self> {
        let divide = state.divide & !0b1011 == 0;
        let running = state.running == 0 || state.running == 1 && state.initial != 0;
        (divide && running && state.reserved == 0).then_some(Self(*state))
    }

    /// The divisor as a power of two: bits 3, 1 and 0 say 2, 4 .. 128, 1.
    fn shift(&self) -> u32 {
        let code = self.0.divide >> 1 & 0b100 | self.0.divide & 0b11;
        (code + 1) & 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Time {
        Time::from_ns(ns)
    }

    #[test]
    fn a_one_shot_expires_once() {
        let mut timer = Timer::default();
        timer.set_divide(0b1011);
        timer.start(1000, at(500));
        assert_eq!(timer.current(at(900), false), 600);
        assert_eq!(timer.advance(at(1499), false), Tick::Quiet);
        assert_eq!(timer.advance(at(1500), false), Tick::Expired);
        assert_eq!(timer.current(at(1500), false), 0);
        assert_eq!(timer.advance(at(9999), false), Tick::Quiet);
    }

    #[test]
    fn a_periodic_timer_keeps_its_phase_when_looked_at_late() {
        let mut timer = Timer::default();
        timer.set_divide(0b0011);
        timer.start(10, at(0));
        assert_eq!(timer.advance(at(159), true), Tick::Quiet);
        assert_eq!(timer.advance(at(500), true), Tick::Expired);
        assert_eq!(timer.advance(at(639), true), Tick::Quiet);
        assert_eq!(timer.advance(at(640), true), Tick::Expired);
        assert_eq!(timer.current(at(640 + 16), true), 9);
    }

    #[test]
    fn divisors_are_those_of_the_manual() {
        let mut timer = Timer::default();
        for (code, shift) in [
            (0, 1),
            (1, 2),
            (2, 3),
            (3, 4),
            (8, 5),
            (9, 6),
            (10, 7),
            (11, 0),
        ] {
            timer.set_divide(code);
            assert_eq!(timer.shift(), shift);
        }
    }

    #[test]
    fn impossible_states_are_refused() {
        let good = TimerState::default();
        assert!(Timer::restored(&good).is_some());
        for bad in [
            TimerState { divide: 4, ..good },
            TimerState { running: 1, ..good },
            TimerState {
                running: 2,
                initial: 1,
                ..good
            },
        ] {
            assert!(Timer::restored(&bad).is_none());
        }
    }
}
