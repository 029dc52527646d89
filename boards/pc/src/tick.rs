//! The periodic tick that gives the main loop the CPU while a guest runs.

use crate::clock::Rates;
use crate::vectors;
use strandline_rt::apic::LocalApic;

/// Starts a tick of `hz` times a second on [`vectors::TICK`]. A rate that the timer
/// cannot keep becomes the nearest one that it can.
pub fn start(apic: &LocalApic, rates: Rates, hz: u32) {
    apic.start_periodic_timer(vectors::TICK, timer_count(rates.apic_timer_hz, hz));
}

/// The timer clocks from one tick to the next, at least 1.
fn timer_count(timer_hz: u64, hz: u32) -> u32 {
    let clocks = timer_hz / u64::from(hz.max(1));
    u32::try_from(clocks).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_never_zero_and_never_too_large() {
        assert_eq!(timer_count(1_000_000_000, 100), 10_000_000);
        assert_eq!(timer_count(10, 1000), 1);
        assert_eq!(timer_count(u64::MAX, 0), u32::MAX);
    }
}
