//! How a unit is used: which mode and which tables. Decided here, nowhere else.

use super::start::StartError;
use crate::dirty_mode::{DirtyHardware, DirtyUpdate};
use crate::tables::AnyFormat;
use crate::vtd::{AddressWidth, Capabilities, ExtendedCapabilities};
use core::fmt;

/// Whose unit it is, which decides how far its capabilities are believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Implementation {
    /// Hardware: as its registers say.
    Hardware,
    /// QEMU's. It reads memory as any CPU does and leaves ECAP.C and ECAP.SMPWC
    /// clear all the same. In first-stage tables it sets bits by a plain store of
    /// the entry it read, none at all if the entry has one already, and none for a
    /// write whose translation a read has cached.
    Emulated,
}

/// The mode and the tables in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Translation {
    /// Legacy mode, with second-stage tables. Any unit has it, and nothing in it
    /// tells of writes. The smaller width, for it has the shorter walk.
    Legacy(AddressWidth),
    /// Scalable mode, with first-stage tables of four levels, which have accessed
    /// and dirty bits always.
    FirstStage,
    /// Scalable mode, with second-stage tables that have accessed and dirty bits.
    /// Before first-stage ones, since these have no right to write alone, and four
    /// levels always.
    SecondStageDirty(AddressWidth),
}

impl Translation {
    /// Of what the unit offers and its tables' readers can be trusted with, what
    /// tells most of writes.
    pub(super) fn choose(
        capabilities: &Capabilities,
        extended: &ExtendedCapabilities,
        implementation: Implementation,
    ) -> Result<Self, StartError> {
        let emulated = implementation == Implementation::Emulated;
        // Nobody writes cache lines back for a unit that does not snoop.
        if !(extended.coherent || emulated) {
            return Err(StartError::NotCoherent);
        }
        let width = [AddressWidth::Bits39, AddressWidth::Bits48]
            .into_iter()
            .find(|width| capabilities.supports(*width));
        let scalable = extended.scalable && (extended.walk_snoops || emulated);
        match width {
            Some(width) if scalable && extended.second_stage && extended.second_stage_dirty => {
                Ok(Self::SecondStageDirty(width))
            }
            _ if scalable && extended.first_stage => Ok(Self::FirstStage),
            Some(width) => Ok(Self::Legacy(width)),
            None => Err(StartError::NoTableWidth),
        }
    }

    /// The number of table levels.
    pub(super) fn levels(self) -> u8 {
        match self {
            Self::Legacy(width) | Self::SecondStageDirty(width) => width.levels(),
            Self::FirstStage => 4,
        }
    }

    /// What the tables' entries look like.
    pub(super) fn format(self) -> AnyFormat {
        match self {
            Self::Legacy(_) => AnyFormat::VtdSecondStage,
            Self::FirstStage => AnyFormat::VtdFirstStage,
            Self::SecondStageDirty(_) => AnyFormat::VtdSecondStageDirty,
        }
    }

    /// Whether the root table is one of scalable mode.
    pub(super) fn is_scalable(self) -> bool {
        !matches!(self, Self::Legacy(_))
    }

    /// What is known of the dirty bits in these tables.
    pub(super) fn dirty_hardware(self, implementation: Implementation) -> DirtyHardware {
        let emulated = implementation == Implementation::Emulated;
        match self {
            Self::Legacy(_) => DirtyHardware::NONE,
            Self::FirstStage if emulated => DirtyHardware {
                update: DirtyUpdate::PlainStore,
                coherent: true,
                drains_updates: true,
                read_hides_write: true,
                spares_marked: true,
            },
            // Atomic is all that is written of it (3.6, 3.7), and all that is
            // relied on: not that the unit looks at the entry again.
            Self::FirstStage | Self::SecondStageDirty(_) => DirtyHardware {
                update: DirtyUpdate::Atomic,
                coherent: true,
                drains_updates: true,
                read_hides_write: false,
                spares_marked: false,
            },
        }
    }
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy(_) => "VT-d, legacy mode",
            Self::FirstStage => "VT-d, scalable mode, first-stage tables",
            Self::SecondStageDirty(_) => "VT-d, scalable mode, second-stage tables",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: AddressWidth = AddressWidth::Bits39;

    fn choose(
        extended: ExtendedCapabilities,
        implementation: Implementation,
    ) -> Result<Translation, StartError> {
        let capabilities = Capabilities {
            width_39: true,
            width_48: true,
            ..Capabilities::default()
        };
        Translation::choose(&capabilities, &extended, implementation)
    }

    const ALL: ExtendedCapabilities = ExtendedCapabilities {
        coherent: true,
        scalable: true,
        second_stage: true,
        second_stage_dirty: true,
        first_stage: true,
        walk_snoops: true,
        queued_invalidation: true,
        device_tlb: false,
        device_tlb_throttling: false,
        interrupt_remapping: false,
        extended_interrupts: false,
        pass_through: false,
        snoop_control: false,
        iotlb_offset: 0,
    };

    #[test]
    fn tables_that_tell_of_writes_come_before_those_that_do_not() {
        let hardware = |extended| choose(extended, Implementation::Hardware);
        assert_eq!(hardware(ALL), Ok(Translation::SecondStageDirty(WIDTH)));
        let no_bits = ExtendedCapabilities {
            second_stage_dirty: false,
            ..ALL
        };
        assert_eq!(hardware(no_bits), Ok(Translation::FirstStage));
        let second_only = ExtendedCapabilities {
            first_stage: false,
            ..no_bits
        };
        assert_eq!(hardware(second_only), Ok(Translation::Legacy(WIDTH)));
        let legacy = ExtendedCapabilities {
            scalable: false,
            ..ALL
        };
        assert_eq!(hardware(legacy), Ok(Translation::Legacy(WIDTH)));
    }

    #[test]
    fn walks_that_do_not_snoop_leave_legacy_mode_and_tables_not_read_coherently_nothing() {
        let walks = ExtendedCapabilities {
            walk_snoops: false,
            ..ALL
        };
        assert_eq!(
            choose(walks, Implementation::Hardware),
            Ok(Translation::Legacy(WIDTH))
        );
        let tables = ExtendedCapabilities {
            coherent: false,
            ..walks
        };
        assert_eq!(
            choose(tables, Implementation::Hardware),
            Err(StartError::NotCoherent)
        );
        assert_eq!(
            choose(tables, Implementation::Emulated),
            Ok(Translation::SecondStageDirty(WIDTH))
        );
    }

    #[test]
    fn first_stage_tables_need_no_second_stage_width() {
        let none = Capabilities::default();
        let choose = |extended| Translation::choose(&none, &extended, Implementation::Hardware);
        assert_eq!(choose(ALL), Ok(Translation::FirstStage));
        let second_only = ExtendedCapabilities {
            first_stage: false,
            ..ALL
        };
        assert_eq!(choose(second_only), Err(StartError::NoTableWidth));
    }
}
