//! What a measured machine says: one JSON object an operation.

use serde::{Deserialize, Serialize};

/// The cost of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which operation.
    pub operation: String,
    /// How many mappings it makes or takes.
    pub mappings: u64,
    /// How many pages of 4 KiB these have together.
    pub pages: u64,
    /// How many other mappings there are in the domain meanwhile.
    pub others: u64,
    /// Instructions of the machine.
    pub instructions: u64,
    /// Pages set in the bitmap that the operation was given.
    pub bits: u64,
    /// Pages that a device wrote meanwhile, where one did anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
    /// Invalidation descriptors sent to the remapping unit (Strandline only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalidations: Option<u64>,
    /// Wait descriptors sent to it (Strandline only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<u64>,
    /// Locked operations, seen by stepping through it (Strandline only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<u64>,
    /// Cache lines of translation tables touched, seen likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_lines: Option<u64>,
    /// Reads of the unit's registers, seen likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmio_reads: Option<u64>,
    /// Writes to them, seen likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmio_writes: Option<u64>,
}
