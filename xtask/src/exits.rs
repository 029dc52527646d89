//! How often the guest exits, by reason: a second at a time, as reported by the
//! machine it runs on.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What one machine reported of one period, about a second of its own time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Period {
    /// How long it was, in microseconds.
    pub us: u64,
    /// Exits by reason.
    #[serde(flatten)]
    pub counts: BTreeMap<String, u64>,
}

/// Exits a second of the machine's time, by reason. Reasons that never occurred are
/// not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rates(BTreeMap<String, u64>);

/// The rates of a whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExitRates {
    /// Over all periods of both machines.
    pub run: Rates,
    /// In the period with the fewest exits: those of a guest that waits, if the guest
    /// ever did.
    pub idle: Rates,
}

impl ExitRates {
    /// The rates over these periods; `None` if there are none.
    pub fn of<'p>(periods: impl IntoIterator<Item = &'p Period>) -> Option<Self> {
        let mut all = Period::default();
        let mut quietest: Option<&Period> = None;
        for period in periods {
            all.add(period);
            if quietest.is_none_or(|least| period.rate() < least.rate()) {
                quietest = Some(period);
            }
        }
        Some(Self {
            run: Rates::of(&all),
            idle: Rates::of(quietest?),
        })
    }
}

impl Rates {
    fn of(period: &Period) -> Self {
        let rate = |(reason, count): (&String, &u64)| {
            let a_second = a_second(*count, period.us);
            (*count > 0).then(|| (reason.clone(), a_second))
        };
        Self(period.counts.iter().filter_map(rate).collect())
    }

    /// Of all reasons.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// The reasons, the most frequent first.
impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reasons: Vec<_> = self.0.iter().collect();
        reasons.sort_by_key(|(_, rate)| std::cmp::Reverse(**rate));
        let words: Vec<String> = reasons
            .iter()
            .map(|(reason, rate)| format!("{reason} {rate}"))
            .collect();
        f.write_str(&words.join(", "))
    }
}

impl Period {
    fn add(&mut self, other: &Self) {
        self.us = self.us.saturating_add(other.us);
        for (reason, count) in &other.counts {
            let sum = self.counts.entry(reason.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    fn rate(&self) -> u64 {
        a_second(self.counts.values().sum(), self.us)
    }
}

fn a_second(count: u64, us: u64) -> u64 {
    let rate = u128::from(count) * 1_000_000 / u128::from(us.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(text: &str) -> Period {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn rates_are_by_reason_over_the_run_and_in_the_quietest_second() {
        let periods = [
            period(r#"{"us":1000000,"cpuid":4,"mmio":900,"halt":0}"#),
            period(r#"{"us":2000000,"cpuid":2,"mmio":0,"halt":0}"#),
        ];
        let rates = ExitRates::of(&periods).unwrap();
        assert_eq!(rates.run.to_string(), "mmio 300, cpuid 2");
        assert_eq!(rates.run.total(), 302);
        assert_eq!(rates.idle.to_string(), "cpuid 1");
        assert_eq!(ExitRates::of([]), None);
    }
}
