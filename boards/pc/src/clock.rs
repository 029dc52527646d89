//! Time: the time stamp counter, calibrated against ACPI's power management timer.
#![allow(unsafe_code)]

use crate::acpi::PmTimer;
use core::arch::x86_64::_rdtsc;
use hv_core::clock::Clock;
use strandline_rt::apic::LocalApic;
use strandline_rt::cpu;
use x86_64::instructions::port::PortReadOnly;

/// The power management timer's rate in Hz (ACPI 6.5, section 4.8.2.1).
const PM_TIMER_HZ: u64 = 3_579_545;

/// For how many of its clocks the others are compared with it: 10 ms, far below
/// the 4.7 s after which a 24-bit timer wraps.
const CALIBRATION_CLOCKS: u32 = (PM_TIMER_HZ / 100) as u32;

/// How often the timer is read in vain before it counts as broken. A read takes
/// about a microsecond, so this is minutes.
const MAX_READS: u32 = 100_000_000;

/// A timer does not advance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClockError {
    /// The power management timer stands still.
    #[error("the power management timer does not count")]
    PmTimer,
    /// The time stamp counter or the local APIC's timer stands still.
    #[error("the time stamp counter or the APIC timer does not count")]
    Calibrated,
}

/// The rates of a machine's clocks, in Hz, none of them 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    /// The time stamp counter's.
    pub tsc_hz: u64,
    /// The local APIC timer's.
    pub apic_timer_hz: u64,
}

impl Rates {
    /// Measures them, which takes 10 ms. The APIC's timer is stopped afterwards.
    pub fn measure(timer: PmTimer, apic: &LocalApic) -> Result<Self, ClockError> {
        let pm_start = read_pm_timer(timer);
        apic.start_silent_timer(u32::MAX);
        let tsc_start = read_tsc();
        let pm_clocks = wait(timer, pm_start, CALIBRATION_CLOCKS)?;
        let tsc_clocks = read_tsc().wrapping_sub(tsc_start);
        let apic_clocks = u32::MAX - apic.timer_count();
        apic.stop_timer();

        let rates = Self {
            tsc_hz: rate(tsc_clocks, pm_clocks),
            apic_timer_hz: rate(u64::from(apic_clocks), pm_clocks),
        };
        if rates.tsc_hz == 0 || rates.apic_timer_hz == 0 {
            return Err(ClockError::Calibrated);
        }
        Ok(rates)
    }
}

/// Waits for at least `clocks` of the timer since `start`; returns how many.
fn wait(timer: PmTimer, start: u32, clocks: u32) -> Result<u32, ClockError> {
    for _ in 0..MAX_READS {
        let passed = clocks_between(timer, start, read_pm_timer(timer));
        if passed >= clocks {
            return Ok(passed);
        }
        cpu::pause();
    }
    Err(ClockError::PmTimer)
}

/// How many clocks lie between two readings, less than one wrap apart.
fn clocks_between(timer: PmTimer, from: u32, to: u32) -> u32 {
    let mask = if timer.is_32_bit { u32::MAX } else { 0xff_ffff };
    to.wrapping_sub(from) & mask
}

/// The rate of a clock that advanced by `clocks` while the power management timer
/// advanced by `pm_clocks`.
fn rate(clocks: u64, pm_clocks: u32) -> u64 {
    let hz = u128::from(clocks) * u128::from(PM_TIMER_HZ) / u128::from(pm_clocks.max(1));
    u64::try_from(hz).unwrap_or(u64::MAX)
}

fn read_pm_timer(timer: PmTimer) -> u32 {
    // SAFETY: the port of the timer according to the FADT; even if that is wrong,
    // reading a port does not change memory.
    unsafe { PortReadOnly::<u32>::new(timer.port).read() }
}

fn read_tsc() -> u64 {
    // SAFETY: every CPU with long mode has the counter.
    unsafe { _rdtsc() }
}

/// The machine's clock: microseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct TscClock {
    start: u64,
    hz: u64,
}

impl TscClock {
    /// A clock that starts now.
    pub fn new(rates: Rates) -> Self {
        Self {
            start: read_tsc(),
            hz: rates.tsc_hz,
        }
    }
}

impl Clock for TscClock {
    fn now_us(&self) -> u64 {
        microseconds(read_tsc().wrapping_sub(self.start), self.hz)
    }
}

fn microseconds(clocks: u64, hz: u64) -> u64 {
    let us = u128::from(clocks) * 1_000_000 / u128::from(hz.max(1));
    u64::try_from(us).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_wraps_still_counts_forward() {
        let narrow = PmTimer {
            port: 0x608,
            is_32_bit: false,
        };
        let wide = PmTimer {
            is_32_bit: true,
            ..narrow
        };
        assert_eq!(clocks_between(narrow, 0xff_fff0, 0x10), 0x20);
        assert_eq!(clocks_between(wide, 0xffff_fff0, 0x10), 0x20);
        assert_eq!(clocks_between(wide, 0xff_fff0, 0x100_0010), 0x20);
    }

    #[test]
    fn rates_and_times_do_not_overflow() {
        assert_eq!(rate(10_000_000, 35_795), 1_000_012_571);
        assert_eq!(rate(u64::MAX, 1), u64::MAX);
        assert_eq!(rate(0, 0), 0);
        assert_eq!(microseconds(3_000_000, 1_000_000_000), 3_000);
        assert_eq!(microseconds(u64::MAX, 1_000_000), u64::MAX);
    }
}
