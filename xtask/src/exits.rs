//! How often the guest exits, by reason: a second at a time, as reported by the
//! machine it runs on.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// What one machine reported of one period, about a second of its own time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Period {
    /// How long it was, in microseconds.
    pub us: u64,
    /// How many commands the guest gave its disk.
    #[serde(default)]
    pub commands: u64,
    /// Exits by reason.
    #[serde(flatten)]
    pub counts: BTreeMap<String, u64>,
}

/// Exits a second of the machine's time, by reason. Reasons that never occurred are
/// not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rates(BTreeMap<String, u64>);

/// Exits for each command to the disk, by reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Shares(BTreeMap<String, f64>);

/// The rates of a whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExitRates {
    /// Over all periods of both machines.
    pub run: Rates,
    /// In the period with the fewest exits: those of a guest that waits, if the guest
    /// ever did.
    pub idle: Rates,
    /// In the periods in which the disk was busy; `None` if it never was.
    pub command: Option<Shares>,
}

impl ExitRates {
    /// The rates over these periods; `None` if there are none.
    pub fn of<'p>(periods: impl IntoIterator<Item = &'p Period>) -> Option<Self> {
        let mut all = Period::default();
        let mut quietest: Option<&Period> = None;
        let periods: Vec<&Period> = periods.into_iter().collect();
        let most = periods.iter().map(|period| period.commands).max();
        let mut busy = Period::default();
        for period in periods {
            // One in which the load began or ended has much else in it.
            if period.commands * 4 >= most.unwrap_or_default() * 3 {
                busy.add(period);
            }
            all.add(period);
            if quietest.is_none_or(|least| period.rate() < least.rate()) {
                quietest = Some(period);
            }
        }
        Some(Self {
            run: Rates::of(&all),
            idle: Rates::of(quietest?),
            command: Shares::of(&busy),
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

impl Shares {
    fn of(period: &Period) -> Option<Self> {
        let share = |(reason, count): (&String, &u64)| {
            // Two places.
            let hundredths = (*count * 100).checked_div(period.commands)?;
            (hundredths > 0).then(|| (reason.clone(), hundredths as f64 / 100.0))
        };
        let shares = period.counts.iter().filter_map(share).collect();
        (period.commands > 0).then_some(Self(shares))
    }

    /// Of all reasons.
    pub fn total(&self) -> f64 {
        self.0.values().sum()
    }
}

/// The reasons, the most frequent first.
impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ranked(&self.0, f64::total_cmp, |share| {
            format!("{share:.2}")
        }))
    }
}

/// The reasons, the most frequent first.
impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ranked(&self.0, u64::cmp, u64::to_string))
    }
}

/// The reasons with their figures, the largest first.
fn ranked<T>(
    figures: &BTreeMap<String, T>,
    order: impl Fn(&T, &T) -> Ordering,
    show: impl Fn(&T) -> String,
) -> String {
    let mut reasons: Vec<_> = figures.iter().collect();
    reasons.sort_by(|(_, one), (_, other)| order(other, one));
    let words: Vec<String> = reasons
        .iter()
        .map(|(reason, figure)| format!("{reason} {}", show(figure)))
        .collect();
    words.join(", ")
}

impl Period {
    fn add(&mut self, other: &Self) {
        self.us = self.us.saturating_add(other.us);
        self.commands = self.commands.saturating_add(other.commands);
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

    #[test]
    fn exits_for_a_command_are_those_of_seconds_in_which_the_disk_is_busy() {
        let periods = [
            period(r#"{"us":1000000,"commands":0,"port":90000}"#),
            period(r#"{"us":1000000,"commands":1000,"iommu":4000,"cpuid":3}"#),
            period(r#"{"us":1000000,"commands":1000,"iommu":5000,"device":2500}"#),
        ];
        let shares = ExitRates::of(&periods).unwrap().command.unwrap();
        assert_eq!(shares.to_string(), "iommu 4.50, device 1.25");
        assert!((shares.total() - 5.75).abs() < 1e-9);
        assert_eq!(ExitRates::of(&periods[..1]).unwrap().command, None);
    }
}
