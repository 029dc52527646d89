//! What a harvest costs that finds nothing, on the machine this runs on.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::process::Stdio;

/// The least times of many turns in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HarvestCost {
    /// How many pages of 4 KiB are mapped, each by a leaf of its own.
    pub pages: u64,
    /// A harvest in which no page was written, in nanoseconds.
    pub harvest_ns: u64,
    /// A bare scan of the same tables, in nanoseconds.
    pub scan_ns: u64,
}

impl HarvestCost {
    /// At most so many times a bare scan.
    pub const TARGET: f64 = 1.2;

    /// How many times a bare scan.
    pub fn ratio(&self) -> f64 {
        self.harvest_ns as f64 / self.scan_ns as f64
    }
}

impl fmt::Display for HarvestCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "harvest of {} clean pages, on this machine: {} ns, {:.2} times a bare scan of the \
             tables ({} ns)",
            self.pages,
            self.harvest_ns,
            self.ratio(),
            self.scan_ns
        )?;
        let verdict = if self.ratio() <= Self::TARGET {
            "met"
        } else {
            "MISSED"
        };
        writeln!(
            f,
            "target harvest of clean pages             at most {} times a bare scan: {verdict}",
            Self::TARGET
        )
    }
}

/// Measures it, in a release build.
///
/// # Errors
/// The program cannot be built or run, or it failed, and said why on standard error.
pub fn harvest() -> Result<HarvestCost> {
    let mut cargo = workspace::cargo();
    cargo.args(["run", "--quiet", "--release", "--package", "iommu"]);
    cargo.args(["--example", "harvest_cost"]);
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.context("cannot run cargo")?;
    ensure!(output.status.success(), "harvest_cost: {}", output.status);
    serde_json::from_slice(&output.stdout).context("harvest_cost printed something else")
}
