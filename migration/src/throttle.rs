//! The bandwidth limit: a token bucket kept as one moment in time.

/// How far the bucket may be ahead of the steady rate, so that a step's worth of
/// records goes out together.
const BURST_NS: u64 = 5_000_000;

/// Spreads bytes over time.
///
/// Instead of tokens it keeps the moment at which everything sent so far would
/// have been sent at the steady rate; nothing more may go before that moment,
/// less the burst. An idle time is not saved up beyond the burst.
pub(crate) struct Throttle {
    /// Bytes a second; 0 is no limit.
    rate: u64,
    paid_until_ns: u64,
}

impl Throttle {
    /// A limit of `rate` bytes a second, or none when it is 0.
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            paid_until_ns: 0,
        }
    }

    /// The moment before which nothing may be sent, if it is still to come.
    pub(crate) fn wait_until_us(&self, now_us: u64) -> Option<u64> {
        let until_us = self.paid_until_ns.saturating_sub(BURST_NS).div_ceil(1_000);
        (until_us > now_us).then_some(until_us)
    }

    /// Notes that `bytes` were sent.
    pub(crate) fn spend(&mut self, bytes: u64, now_us: u64) {
        if self.rate == 0 {
            return;
        }
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let from = self.paid_until_ns.max(now_us.saturating_mul(1_000));
        self.paid_until_ns = from.saturating_add(u64::try_from(cost_ns).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_sender_gets_the_rate_and_at_most_one_burst_more() {
        const RATE: u64 = 1_000_000;
        const RECORD: u64 = 4_096;
        let mut throttle = Throttle::new(RATE);
        let mut sent = 0;
        let mut now = 7_000;
        while now < 1_007_000 {
            match throttle.wait_until_us(now) {
                Some(until) => now = until,
                None => {
                    throttle.spend(RECORD, now);
                    sent += RECORD;
                }
            }
        }
        let burst = RATE * BURST_NS / 1_000_000_000;
        assert!(sent <= RATE + burst + RECORD, "{sent}");
        assert!(sent >= RATE - RECORD, "{sent}");
    }

    #[test]
    fn no_limit_never_waits() {
        let mut throttle = Throttle::new(0);
        throttle.spend(u64::MAX, 0);
        assert_eq!(throttle.wait_until_us(0), None);
    }
}
