//! What is reported of pages that a device really wrote.

use super::Record;
use serde::Serialize;
use std::fmt;

/// One unmap of pages of which a device wrote some, or read some where it may not
/// write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Whose unmap, and what it takes for evidence of a write.
    pub system: &'static str,
    /// What was unmapped.
    pub operation: String,
    /// How many pages.
    pub mapped: u64,
    /// How many of them the device wrote, by what they hold.
    pub written: u64,
    /// How many were reported.
    pub reported: u64,
}

impl Written {
    /// Those of `records` in which a device did something.
    pub(super) fn among(system: &'static str, records: &[Record]) -> Vec<Self> {
        let written = |record: &Record| {
            Some(Self {
                system,
                operation: record.operation.clone(),
                mapped: record.pages,
                written: record.written?,
                reported: record.bits,
            })
        };
        records.iter().filter_map(written).collect()
    }

    /// Pages reported for each that was written; `None` if none was.
    pub fn per_page(&self) -> Option<f64> {
        (self.written > 0).then(|| self.reported as f64 / self.written as f64)
    }

    /// Whether a page is missing from the report, or was reported although no device
    /// could write it.
    pub fn is_wrong(&self) -> bool {
        self.reported < self.written || self.written == 0 && self.reported > 0
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_page = self.per_page();
        writeln!(
            f,
            "{:<34}{:<24}{:>8}{:>9}{:>10}{:>13}",
            self.system,
            self.operation,
            self.mapped,
            self.written,
            self.reported,
            per_page.map_or("-".to_owned(), |bits| format!("{bits:.1}")),
        )
    }
}

/// The line above them.
pub(super) fn heading() -> String {
    format!(
        "{:<34}{:<24}{:>8}{:>9}{:>10}{:>13}",
        "pages that edu wrote", "operation", "mapped", "written", "reported", "per written"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(written: u64, reported: u64) -> Written {
        Written {
            system: "",
            operation: String::new(),
            mapped: 64,
            written,
            reported,
        }
    }

    #[test]
    fn a_page_too_few_is_wrong_and_a_page_too_many_where_none_could_be_written() {
        assert!(report(8, 7).is_wrong());
        assert!(!report(8, 8).is_wrong() && !report(8, 64).is_wrong());
        assert!(report(0, 1).is_wrong() && !report(0, 0).is_wrong());
        assert_eq!(report(8, 64).per_page(), Some(8.0));
        assert_eq!(report(0, 0).per_page(), None);
    }
}
