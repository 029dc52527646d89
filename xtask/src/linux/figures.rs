//! What a Linux guest's run comes to, in figures.

use super::console::{Console, Io};
use super::verdict::clock_behind_us;
use crate::report::{Row, grouped, ms, row};
use crate::run::Outcome;
use serde::Serialize;

/// The figures of the guest itself. Times are in milliseconds of its own clock.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// The kernel's version, as it names itself.
    pub kernel: String,
    /// When init started.
    pub init_ms: Option<u64>,
    /// The same in the CPU's cycles since the machine was reset, with what the kernel
    /// did before it had a clock.
    pub boot_cycles: Option<u64>,
    /// The same of the same kernel without a hypervisor, if that was tried.
    pub direct_boot_cycles: Option<u64>,
    /// When init ended.
    pub end_ms: Option<u64>,
    /// Ticks of init, one a second, before the guest moved.
    pub ticks_on_source: u64,
    /// The same afterwards.
    pub ticks_on_destination: u64,
    /// How much less time passed for the guest than for the machines from its cue to
    /// its end, in microseconds, the downtime included.
    pub clock_behind_us: Option<i64>,
    /// The clock source.
    pub clock_source: String,
    /// What was done on the disk.
    pub io: Option<Io>,
    /// Kernel messages of level error or worse until init.
    pub boot_errors: u64,
    /// The same since then.
    pub errors: u64,
}

impl Figures {
    /// Sums up what the guest said, if its kernel was started at all.
    pub fn new(outcome: &Outcome, console: &Console, direct: Option<&Console>) -> Option<Self> {
        let ms = |hundredths: Option<u64>| hundredths.map(|at| at.saturating_mul(10));
        let ticks = console.ticks.len() - console.ticks_on_source;
        Some(Self {
            kernel: console.kernel.clone()?,
            init_ms: ms(console.init),
            boot_cycles: console.init_cycles,
            direct_boot_cycles: direct.and_then(|direct| direct.init_cycles),
            end_ms: ms(console.end),
            ticks_on_source: console.ticks_on_source as u64,
            ticks_on_destination: ticks as u64,
            clock_behind_us: clock_behind_us(outcome, console),
            clock_source: console.clock_sources.first().cloned().unwrap_or_default(),
            io: console.io,
            boot_errors: console.boot_errors.len() as u64,
            errors: console.errors.len() as u64,
        })
    }

    /// How many times as long booting took with the hypervisor.
    fn boot_ratio(&self) -> String {
        match self.boot_cycles.zip(self.direct_boot_cycles) {
            Some((here, direct)) => format!(
                "cycles; the guest takes {:.2} times as long",
                here as f64 / direct as f64
            ),
            None => "not tried; --compare-boot does".into(),
        }
    }

    /// The rows of the table.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let seconds = |ms: Option<u64>| match ms {
            Some(ms) => format!("{}.{:02}", ms / 1000, ms % 1000 / 10),
            None => "-".into(),
        };
        let cycles = |count: Option<u64>| count.map_or("-".into(), grouped);
        let mut rows = self.io.as_ref().map_or_else(Vec::new, io_rows);
        rows.extend([
            row("init started", seconds(self.init_ms), "s, guest's clock"),
            row(
                "  since reset",
                cycles(self.boot_cycles),
                "cycles, with the kernel's unpacking",
            ),
            row(
                "  without hypervisor",
                cycles(self.direct_boot_cycles),
                self.boot_ratio(),
            ),
            row("init ended", seconds(self.end_ms), "s, guest's clock"),
            row("clock source", &self.clock_source, ""),
            row(
                "clock behind",
                self.clock_behind_us.map_or("-".into(), signed_ms),
                "ms from the cue to the end, the downtime included",
            ),
            row(
                "ticks",
                format!("{} + {}", self.ticks_on_source, self.ticks_on_destination),
                "before and after the move",
            ),
            row(
                "kernel errors",
                format!("{} + {}", self.boot_errors, self.errors),
                "until init and later",
            ),
        ]);
        rows
    }
}

fn io_rows(io: &Io) -> Vec<Row> {
    vec![
        row(
            "disk operations",
            io.operations,
            "reads and writes of 4 KiB",
        ),
        row("  went wrong", io.errors, ""),
        row("  verified", io.verified, "blocks, at the end"),
        row(
            "  kept",
            io.kept,
            "blocks in memory, long after the disk wrote them",
        ),
        row("  longest", ms(io.longest_us), "ms, guest's clock"),
        row("  on average", ms(io.mean_us), "ms"),
    ]
}

fn signed_ms(us: i64) -> String {
    let sign = if us < 0 { "-" } else { "" };
    format!("{sign}{}", ms(us.unsigned_abs()))
}
