//! The format of whatever unit the machine has.

use super::{AmdV1, Entry, EntryFormat, Leaf, VtdFirstStage, VtdSecondStage, VtdSecondStageDirty};
use hv_core::Hpa;

/// One of the formats, chosen when the machine is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnyFormat {
    /// Second-stage tables of VT-d.
    VtdSecondStage,
    /// Second-stage tables of VT-d with accessed and dirty bits.
    VtdSecondStageDirty,
    /// First-stage tables of VT-d.
    VtdFirstStage,
    /// Version 1 tables of AMD-Vi.
    AmdV1,
}

/// Evaluates an expression with `$format` as the format chosen.
macro_rules! with {
    ($any:expr, $format:ident => $what:expr) => {
        match $any {
            AnyFormat::VtdSecondStage => {
                let $format = VtdSecondStage;
                $what
            }
            AnyFormat::VtdSecondStageDirty => {
                let $format = VtdSecondStageDirty;
                $what
            }
            AnyFormat::VtdFirstStage => {
                let $format = VtdFirstStage;
                $what
            }
            AnyFormat::AmdV1 => {
                let $format = AmdV1;
                $what
            }
        }
    };
}

impl EntryFormat for AnyFormat {
    fn leaf(self, level: u8, leaf: Leaf) -> u64 {
        with!(self, format => format.leaf(level, leaf))
    }

    fn table(self, level: u8, table: Hpa, live: u64) -> u64 {
        with!(self, format => format.table(level, table, live))
    }

    fn address_bits(self, levels: u8) -> u8 {
        with!(self, format => format.address_bits(levels))
    }

    fn decode(self, level: u8, entry: u64) -> Entry {
        with!(self, format => format.decode(level, entry))
    }

    fn boundaries(self) -> [u64; 2] {
        with!(self, format => format.boundaries())
    }

    fn live_bits(self, live: u64) -> u64 {
        with!(self, format => format.live_bits(live))
    }

    fn live_wraps(self) -> u64 {
        with!(self, format => format.live_wraps())
    }

    fn further(self, entry: u64, pages: u64) -> u64 {
        with!(self, format => format.further(entry, pages))
    }

    fn hardware_writes(self) -> bool {
        with!(self, format => format.hardware_writes())
    }

    fn is_attached(self, entry: u64) -> bool {
        with!(self, format => format.is_attached(entry))
    }

    fn revoked(self) -> u64 {
        with!(self, format => format.revoked())
    }

    fn accessed(self) -> u64 {
        with!(self, format => format.accessed())
    }

    fn dirty(self) -> u64 {
        with!(self, format => format.dirty())
    }

    fn harvested(self) -> u64 {
        with!(self, format => format.harvested())
    }
}
