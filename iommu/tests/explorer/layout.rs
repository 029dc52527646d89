//! The bits of table entries as the hardware sees them, by the specifications and not
//! by the layer's own code.

use hv_core::Hpa;
use iommu::tables::AnyFormat;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// Without any of these an entry is not present.
    present: u64,
    read: u64,
    pub write: u64,
    /// One of these makes an entry above level 1 lead to a table; none of them, a leaf.
    table: u64,
    /// One of these makes it a leaf whatever else.
    leaf: u64,
    pub accessed: u64,
    pub dirty: u64,
}

impl Layout {
    /// VT-d second stage with accessed and dirty bits: bit 0 reads, bit 1 writes, bit 7
    /// a leaf above level 1, bits 8 and 9.
    const VTD: Self = Self {
        present: 3,
        read: 1 << 0,
        write: 1 << 1,
        table: u64::MAX,
        leaf: 1 << 7,
        accessed: 1 << 8,
        dirty: 1 << 9,
    };
    /// AMD version 1: bit 0 present, bit 61 reads, bit 62 writes, bits 11:9 the level of
    /// the table, bits 5 and 6.
    const AMD: Self = Self {
        present: 1 << 0,
        read: 1 << 61,
        write: 1 << 62,
        table: 7 << 9,
        leaf: 0,
        accessed: 1 << 5,
        dirty: 1 << 6,
    };

    pub fn of(format: AnyFormat) -> Self {
        match format {
            AnyFormat::VtdSecondStageDirty => Self::VTD,
            AnyFormat::AmdV1 => Self::AMD,
            other => panic!("no hardware for {other:?}"),
        }
    }

    pub fn is_present(&self, entry: u64) -> bool {
        entry & self.present != 0
    }

    pub fn permits(&self, entry: u64, write: bool) -> bool {
        let right = if write { self.write } else { self.read };
        self.is_present(entry) && entry & right != 0
    }

    pub fn is_leaf(&self, entry: u64, level: u8) -> bool {
        level == 1 || entry & self.leaf != 0 || entry & self.table == 0
    }

    pub fn address(entry: u64) -> Hpa {
        Hpa::new(entry & 0x000f_ffff_ffff_f000)
    }
}
