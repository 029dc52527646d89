//! Memory that firmware has devices go on reaching whatever the system does: RMRR
//! structures of the DMAR table, IVMD blocks of the IVRS table.
//!
//! Behind an IOMMU such a device needs that memory at the same addresses in its domain,
//! next to whatever its guest maps, and nobody may give the memory to anybody else. A
//! device that has any is better not passed through, since who uses the memory and for
//! what is known to firmware alone.

use core::fmt;
use hv_core::Hpa;

/// Such memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservedRegion {
    /// The first byte.
    pub first: Hpa,
    /// The last byte, as firmware says; it may even lie before the first.
    pub last: Hpa,
}

impl fmt::Display for ReservedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.first, self.last)
    }
}
