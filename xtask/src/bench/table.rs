//! The comparison: a table for people, JSON for programs.

use super::{HarvestCost, Record, Written, written};
use serde::Serialize;
use std::fmt;

/// The system compared with.
const LINUX: &str = "Linux VFIO type1";

/// What an operation may cost at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The operation.
    pub operation: &'static str,
    /// Instructions, for the whole or for each mapping.
    pub instructions: u64,
    /// Whether for each mapping.
    pub per_mapping: bool,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 5] = [
        Self::whole("map-4k", 500),
        Self::whole("unmap-4k", 400),
        Self::whole("unmap-4k-last", 400),
        Self::whole("unmap-2m-small-leaves", 6000),
        Self::each("unmap-2048-in-one-call", 60),
    ];

    const fn whole(operation: &'static str, instructions: u64) -> Self {
        Self {
            operation,
            instructions,
            per_mapping: false,
        }
    }

    const fn each(operation: &'static str, instructions: u64) -> Self {
        Self {
            operation,
            instructions,
            per_mapping: true,
        }
    }

    /// Whether `record` is of this operation and within the target; `None` if it is
    /// of another one.
    pub fn is_met(&self, record: &Record) -> Option<bool> {
        let units = if self.per_mapping { record.mappings } else { 1 };
        (record.operation == self.operation)
            .then_some(record.instructions <= self.instructions * units)
    }
}

/// One operation on both systems.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// On Strandline.
    pub strandline: Record,
    /// On Linux, if it was measured there.
    pub linux: Option<Record>,
    /// Linux's instructions without those of the system calls and of pinning the
    /// pages or releasing them, as far as these can be estimated.
    pub linux_like_for_like: Option<u64>,
    /// What it may cost at the most, if that is set down, and whether it is met.
    pub target: Option<(Target, bool)>,
}

/// All operations.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The kernel compared with.
    pub kernel: Option<String>,
    /// The operations, in the order in which they were measured.
    pub rows: Vec<Row>,
    /// What only Linux has: its system call, pinning, the bitmap of a mapping.
    pub linux_only: Vec<Record>,
    /// What was reported of pages that a device really wrote.
    pub written: Vec<Written>,
    /// What a harvest costs that finds nothing.
    pub harvest: Option<HarvestCost>,
}

impl Comparison {
    /// Puts side by side what was measured.
    pub fn new(
        strandline: Vec<Record>,
        first_stage: Vec<Record>,
        linux: Option<(String, Vec<Record>)>,
        harvest: Option<HarvestCost>,
    ) -> Self {
        let (kernel, linux) = linux.unzip();
        let linux = linux.unwrap_or_default();
        let written = [
            ("Strandline, mapped writable", &strandline),
            ("Strandline, accessed bit", &first_stage),
            (LINUX, &linux),
        ];
        let written = written.map(|(system, records)| Written::among(system, records));
        let is_cost = |record: &Record| record.written.is_none();
        let [strandline, linux] = [strandline, linux]
            .map(|records| records.into_iter().filter(is_cost).collect::<Vec<_>>());
        let of = |operation: &str| linux.iter().find(|record| record.operation == operation);
        let cost = |operation| of(operation).map_or(0, |record| record.instructions);
        let overhead = Overhead {
            call: cost("null-call"),
            pin: cost("pin-page"),
            unpin: cost("unpin-page"),
        };
        let rows: Vec<Row> = strandline
            .into_iter()
            .map(|strandline| {
                let linux = of(&strandline.operation).cloned();
                let target = Target::ALL
                    .into_iter()
                    .find_map(|target| Some((target, target.is_met(&strandline)?)));
                Row {
                    linux_like_for_like: linux.as_ref().and_then(|it| overhead.without(it)),
                    strandline,
                    linux,
                    target,
                }
            })
            .collect();
        let is_compared = |record: &Record| {
            rows.iter()
                .any(|row| row.strandline.operation == record.operation)
        };
        let linux_only = linux.iter().filter(|record| !is_compared(record));
        Self {
            kernel: kernel.filter(|_| !linux.is_empty()),
            linux_only: linux_only.cloned().collect(),
            rows,
            written: written.concat(),
            harvest,
        }
    }

    /// Whether Strandline reported what a device wrote. What Linux reports is its own
    /// business.
    pub fn reports_are_right(&self) -> bool {
        let mut reports = self.written.iter();
        reports.all(|report| report.system == LINUX || !report.is_wrong())
    }
}

/// What Linux does besides, in instructions.
struct Overhead {
    call: u64,
    pin: u64,
    unpin: u64,
}

impl Overhead {
    /// The instructions of `record` less those of its system calls and its pages'
    /// pins. `None` where these are estimated to be more: VFIO pins the parts of a
    /// huge page at once.
    fn without(&self, record: &Record) -> Option<u64> {
        let is_map = record.operation.starts_with("map-");
        let is_sweep = record.operation.ends_with("-sweep");
        let calls = if is_sweep { record.mappings } else { 1 };
        let page = if is_map { self.pin } else { self.unpin };
        record
            .instructions
            .checked_sub(self.call * calls + page * record.pages)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<34}{:>8}{:>6}{:>11}{:>10}{:>7}{:>7}{:>5}{:>5}{:>6}{:>7}{:>12}{:>12}{:>8}",
            "operation",
            "others",
            "maps",
            "instr",
            "per map",
            "locked",
            "lines",
            "inv",
            "wait",
            "mmio",
            "bits",
            "Linux",
            "like4like",
            "bits"
        )?;
        for row in &self.rows {
            row.fmt(f)?;
        }
        for record in &self.linux_only {
            writeln!(
                f,
                "{:<34}{:>8}{:>6}{:>11}{:>10}{:>7}{:>7}{:>5}{:>5}{:>6}{:>7}{:>12}{:>12}{:>8}",
                record.operation,
                "",
                record.mappings,
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                record.instructions,
                "",
                record.bits
            )?;
        }
        if let Some(kernel) = &self.kernel {
            writeln!(
                f,
                "\nLinux {kernel}, VFIO type1, iommu.strict=1 mitigations=off. like4like: less one \
                 null ioctl a call,\nand less pinning or releasing each page, estimated by \
                 vmsplice and splice of single pages.\nNo device wrote any of these pages."
            )?;
        }
        writeln!(f, "\n{}", written::heading())?;
        for written in &self.written {
            written.fmt(f)?;
        }
        writeln!(f)?;
        for row in &self.rows {
            if let Some((target, is_met)) = row.target {
                let verdict = if is_met { "met" } else { "MISSED" };
                let each = if target.per_mapping { " a mapping" } else { "" };
                writeln!(
                    f,
                    "target {:<34} at most {}{each}: {verdict}",
                    target.operation, target.instructions
                )?;
            }
        }
        match &self.harvest {
            Some(harvest) => harvest.fmt(f),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let record = &self.strandline;
        let per_mapping = record.instructions as f64 / record.mappings.max(1) as f64;
        let linux = self.linux.as_ref();
        writeln!(
            f,
            "{:<34}{:>8}{:>6}{:>11}{:>10.1}{:>7}{:>7}{:>5}{:>5}{:>6}{:>7}{:>12}{:>12}{:>8}",
            record.operation,
            record.others,
            record.mappings,
            record.instructions,
            per_mapping,
            known(record.locked),
            known(record.table_lines),
            known(record.invalidations),
            known(record.waits),
            known(record.mmio_writes),
            record.bits,
            known(linux.map(|linux| linux.instructions)),
            known(self.linux_like_for_like),
            known(linux.map(|linux| linux.bits)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(operation: &str, mappings: u64, pages: u64, instructions: u64) -> Record {
        Record {
            operation: operation.into(),
            mappings,
            pages,
            others: 0,
            instructions,
            bits: 0,
            written: None,
            invalidations: None,
            waits: None,
            locked: None,
            table_lines: None,
            mmio_reads: None,
            mmio_writes: None,
        }
    }

    #[test]
    fn targets_are_for_the_whole_or_for_each_mapping() {
        let met = |operation, mappings, instructions| {
            let record = record(operation, mappings, mappings, instructions);
            Target::ALL.iter().find_map(|target| target.is_met(&record))
        };
        assert_eq!(met("map-4k", 1, 500), Some(true));
        assert_eq!(met("map-4k", 1, 501), Some(false));
        assert_eq!(met("unmap-2048-in-one-call", 10, 600), Some(true));
        assert_eq!(met("unmap-2048-in-one-call", 10, 601), Some(false));
        assert_eq!(met("something", 1, u64::MAX), None);
    }

    #[test]
    fn a_report_of_ours_that_lacks_a_page_is_wrong_and_one_of_linux_is_not() {
        let reported = |bits| {
            let written = Record {
                bits,
                written: Some(8),
                ..record("written-some-of-64", 64, 64, 0)
            };
            vec![written]
        };
        let is_right = |ours, linux| {
            let linux = Some(("6.1".into(), reported(linux)));
            Comparison::new(reported(ours), reported(ours), linux, None).reports_are_right()
        };
        assert!(is_right(8, 64) && is_right(64, 7));
        assert!(!is_right(7, 8));
    }

    #[test]
    fn like_for_like_takes_off_calls_and_pins() {
        let linux = vec![
            record("null-call", 0, 0, 10),
            record("pin-page", 1, 1, 3),
            record("unpin-page", 1, 1, 2),
            record("map-4k", 1, 1, 100),
            record("unmap-4k-sweep", 5, 5, 100),
        ];
        let strandline = linux[3..].to_vec();
        let comparison = Comparison::new(strandline, vec![], Some(("6.1".into(), linux)), None);
        let like: Vec<_> = comparison
            .rows
            .iter()
            .map(|row| row.linux_like_for_like)
            .collect();
        assert_eq!(like, [Some(87), Some(40)]);
        assert_eq!(comparison.linux_only.len(), 3);
        assert_eq!(comparison.rows[0].target.map(|(_, met)| met), Some(true));
    }
}
