//! What is reported of one operation.

use crate::tally::Tally;
use core::fmt;

/// The cost of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// Which operation; letters, digits and dashes only.
    pub operation: &'static str,
    /// How many mappings it makes or takes.
    pub mappings: u64,
    /// How many pages of 4 KiB these have together.
    pub pages: u64,
    /// How many other mappings there are in the domain meanwhile.
    pub others: u64,
    /// Instructions, by the time stamp counter; the most of several times.
    pub instructions: u64,
    /// Pages set in the bitmap that the operation was given.
    pub bits: u64,
    /// Pages that a device wrote meanwhile; `None` if no device did anything.
    pub written: Option<u64>,
    /// Invalidation descriptors sent to the unit, without waits.
    pub invalidations: u64,
    /// Wait descriptors sent to the unit.
    pub waits: u64,
    /// What its instructions did; `None` if it was not stepped through.
    pub tally: Option<Tally>,
}

/// One JSON object, on one line.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{{\"operation\":\"{}\",\"mappings\":{},\"pages\":{},\"others\":{},\
             \"instructions\":{},\"bits\":{},\"invalidations\":{},\"waits\":{}",
            self.operation,
            self.mappings,
            self.pages,
            self.others,
            self.instructions,
            self.bits,
            self.invalidations,
            self.waits,
        )?;
        if let Some(written) = self.written {
            write!(f, ",\"written\":{written}")?;
        }
        if let Some(tally) = &self.tally {
            write!(
                f,
                ",\"stepped\":{},\"locked\":{},\"table_lines\":{},\
                 \"mmio_reads\":{},\"mmio_writes\":{}",
                tally.instructions,
                tally.locked,
                tally.table_lines,
                tally.mmio_reads,
                tally.mmio_writes,
            )?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_record_is_one_line_of_json() {
        let mut record = Record {
            operation: "unmap",
            mappings: 1,
            pages: 2,
            others: 3,
            instructions: 4,
            bits: 5,
            written: None,
            invalidations: 6,
            waits: 7,
            tally: None,
        };
        let head = "{\"operation\":\"unmap\",\"mappings\":1,\"pages\":2,\"others\":3,\
                    \"instructions\":4,\"bits\":5,\"invalidations\":6,\"waits\":7";
        assert_eq!(record.to_string(), std::format!("{head}}}"));
        record.written = Some(13);
        record.tally = Some(Tally {
            instructions: 8,
            locked: 9,
            table_lines: 10,
            mmio_reads: 11,
            mmio_writes: 12,
        });
        let tail = ",\"written\":13,\"stepped\":8,\"locked\":9,\"table_lines\":10,\
                    \"mmio_reads\":11,\"mmio_writes\":12}";
        assert_eq!(record.to_string(), std::format!("{head}{tail}"));
    }
}
