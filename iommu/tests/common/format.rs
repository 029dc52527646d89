//! The formats under test, and one that is wrong.

use hv_core::Hpa;
use iommu::tables::{AnyFormat, Entry, EntryFormat, Leaf};

/// A format of the library's, or a spoiled one.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub format: AnyFormat,
    /// What a detached AMD entry would be with its PR bit left: present, without
    /// rights.
    pub keeps_present: bool,
}

pub const FORMATS: [Format; 4] = [
    Format::sound(AnyFormat::VtdSecondStage),
    Format::sound(AnyFormat::AmdV1),
    Format::sound(AnyFormat::VtdSecondStageDirty),
    Format::sound(AnyFormat::VtdFirstStage),
];

impl Format {
    const fn sound(format: AnyFormat) -> Self {
        Self {
            format,
            keeps_present: false,
        }
    }
}

impl EntryFormat for Format {
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        self.format.leaf(level, leaf)
    }

    fn table(self, level: u8, table: Hpa, live: u64) -> u64 {
        self.format.table(level, table, live)
    }

    fn decode(self, level: u8, entry: u64) -> Entry {
        self.format.decode(level, entry)
    }

    fn boundaries(self) -> [u64; 2] {
        self.format.boundaries()
    }

    fn live_bits(self, live: u64) -> u64 {
        self.format.live_bits(live)
    }

    fn live_wraps(self) -> u64 {
        self.format.live_wraps()
    }

    fn is_attached(self, entry: u64) -> bool {
        self.format.is_attached(entry)
    }

    fn revoked(self) -> u64 {
        self.format.revoked() | u64::from(self.keeps_present)
    }

    fn accessed(self) -> u64 {
        self.format.accessed()
    }

    fn dirty(self) -> u64 {
        self.format.dirty()
    }

    fn harvested(self) -> u64 {
        self.format.harvested()
    }
}
