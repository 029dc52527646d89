//! What counts as evidence that a device wrote a page. Decided here, nowhere else.
//!
//! A dirty bit is evidence only under the unmap and the harvest that this layer
//! does: whole leaf tables are cut off at their parent, single leaves lose all
//! rights at once, and the bits are read after the one drain. Which conduct of a
//! unit that is safe with was found with a model of the hardware, in which every
//! interleaving was tried (`tests/explorer`): that is where the reasons of
//! [`DirtyReason`] come from.
//!
//! # Units that skip the bit of an entry that changed
//! Their dirty bit is true only in leaves that nobody alters. AMD's are such units, as
//! far as is known: a walk that finds its entry changed when it is about to set the bit
//! lets the access go on, and which changes those are is not written. So the bit counts
//! as long as a leaf stays in its table: for a harvest, which changes nothing but the
//! evidence, at the end, and where an unmap cuts a whole table off. A writable leaf that
//! is taken out by itself counts as written, which rests on nothing the hardware does
//! but the drain.
//!
//! An unmap of a part of a table could keep the bit: copy the table without the leaves
//! to go, put the copy in its place, drain, and carry over the bits of the leaves that
//! stay. That would cost a frame and 512 stores for each small unmap, and let an unmap
//! fail for want of a frame.
//!
//! # The accessed bit
//! A page that no walk ended at since its bit was cleared *and* the cached
//! translations were dropped has not been written: any access takes a walk first,
//! which sets the bit, whatever it fails to do to the dirty bit. So the accessed bit
//! is evidence, of reads too, on a unit whose dirty bit is not. It is cleared
//! together with the dirty bit, since there are units that leave an entry with
//! either bit alone, and so neither is set from the start.
//!
//! # Units that store what they read
//! A plain store of an entry as it was read, with a bit added, can undo a change
//! made meanwhile. It cannot hide a write: what it stores holds the bit that is
//! evidence, and a harvest's clearing undone is a page reported once more. But it
//! can bring a leaf back that an unmap has detached. Such a store is over when the
//! drain is, so the unmap looks again then: a leaf that is still detached had no
//! walk left that could bring it back, and one that came back is detached and
//! drained once more. Each return sets a bit, so there are no more of them than
//! bits. Where all bits are set from the start, the unit has nothing to store.

use crate::tables::EntryFormat;
use core::fmt;

/// How a unit sets the dirty bit of a leaf, when a walk ends at the leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyUpdate {
    /// It sets none, or it is not known how.
    None,
    /// Atomically, and only if the entry is still the one that was walked;
    /// otherwise it walks anew.
    Rechecked,
    /// Atomically, in whatever the entry is by then.
    Atomic,
    /// Not at all if the entry lost rights meanwhile; the write goes on.
    Skipped,
    /// By storing the entry it read with the bit added.
    PlainStore,
}

/// What is known of a unit's dirty bits: what its specification says, and what
/// was seen of this implementation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyHardware {
    /// How the bit is set.
    pub update: DirtyUpdate,
    /// The unit snoops the CPU's caches when it walks and updates tables.
    pub coherent: bool,
    /// The drain of an invalidation covers bits not yet set for writes that were
    /// let through.
    pub drains_updates: bool,
    /// A translation cached by a read lets writes pass without setting the bit.
    pub read_hides_write: bool,
    /// An entry that has the accessed or the dirty bit is not given the other.
    pub spares_marked: bool,
}

impl DirtyHardware {
    /// A unit that sets no dirty bits.
    pub const NONE: Self = Self {
        update: DirtyUpdate::None,
        coherent: false,
        drains_updates: false,
        read_hides_write: false,
        spares_marked: false,
    };

    /// Whether a write may leave the dirty bit clear in an entry that nobody altered.
    fn hides_dirty_bits(&self) -> bool {
        self.read_hides_write || self.spares_marked
    }
}

/// What counts as evidence of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyMode {
    /// That the page was mapped writable while writes were tracked. The bits in
    /// the tables, where the format has any, are set from the start, so that the
    /// hardware has none to set.
    MappedWritable,
    /// The accessed or the dirty bit of a writable leaf: a page may have been read
    /// only.
    AccessedBit,
    /// The dirty bit, and that a leaf a device could write was taken out by itself.
    DirtyBitWhileMapped,
    /// The dirty bit.
    DirtyBit,
}

impl fmt::Display for DirtyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MappedWritable => "mapped-writable",
            Self::AccessedBit => "accessed-bit",
            Self::DirtyBitWhileMapped => "dirty-bit-while-mapped",
            Self::DirtyBit => "dirty-bit",
        })
    }
}

/// Why a mode is the best that is safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirtyReason {
    /// The format has no such bits, or the unit does not set them.
    #[error("the unit sets no dirty bits")]
    NoBits,
    /// Bits set by a walk that does not snoop may be behind the CPU's caches.
    #[error("the unit's table walks are not coherent")]
    NotCoherent,
    /// A bit may be set after it was read for the last time.
    #[error("invalidations do not drain dirty bits")]
    NotDrained,
    /// A walk under way when a leaf is detached may write without a trace.
    #[error("the unit skips the dirty bit of an entry that changed")]
    Skipped,
    /// The accessed bit is set by any walk, so what a read hides it shows.
    #[error("a translation cached by a read hides later writes")]
    ReadHidesWrite,
    /// The accessed bit cannot be set from the start, so it may as well count.
    #[error("the unit sets no dirty bit beside an accessed bit")]
    SparesMarked,
    /// No write goes without its bit, and no bit without being read.
    #[error("the unit sets dirty bits atomically and drains them")]
    Exact,
}

/// The mode in force, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyDecision {
    /// The mode.
    pub mode: DirtyMode,
    /// Why it is this one.
    pub reason: DirtyReason,
    /// Whether a detached leaf can come back until the drain is over.
    pub leaves_return: bool,
}

impl DirtyDecision {
    /// The best mode that is safe with `format` on a unit of that kind.
    pub fn new(format: impl EntryFormat, hardware: DirtyHardware) -> Self {
        let (mode, reason) = if format.dirty() == 0 || hardware.update == DirtyUpdate::None {
            (DirtyMode::MappedWritable, DirtyReason::NoBits)
        } else if !hardware.coherent {
            (DirtyMode::MappedWritable, DirtyReason::NotCoherent)
        } else if !hardware.drains_updates {
            (DirtyMode::MappedWritable, DirtyReason::NotDrained)
        } else if hardware.update == DirtyUpdate::Skipped && hardware.hides_dirty_bits() {
            // An accessed bit may be skipped as a dirty bit may.
            (DirtyMode::MappedWritable, DirtyReason::Skipped)
        } else if hardware.read_hides_write {
            (DirtyMode::AccessedBit, DirtyReason::ReadHidesWrite)
        } else if hardware.spares_marked {
            (DirtyMode::AccessedBit, DirtyReason::SparesMarked)
        } else if hardware.update == DirtyUpdate::Skipped {
            (DirtyMode::DirtyBitWhileMapped, DirtyReason::Skipped)
        } else {
            (DirtyMode::DirtyBit, DirtyReason::Exact)
        };
        Self {
            mode,
            reason,
            leaves_return: hardware.update == DirtyUpdate::PlainStore
                && mode != DirtyMode::MappedWritable,
        }
    }

    /// The bits of a leaf any of which is evidence: all of them where every page
    /// mapped writable counts.
    pub(crate) fn evidence(self, format: impl EntryFormat) -> u64 {
        match self.mode {
            DirtyMode::MappedWritable => u64::MAX,
            DirtyMode::AccessedBit => format.accessed() | format.dirty(),
            DirtyMode::DirtyBitWhileMapped | DirtyMode::DirtyBit => format.dirty(),
        }
    }

    /// The bits a new leaf has set from the start.
    pub(crate) fn preset(self, format: impl EntryFormat) -> u64 {
        match self.mode {
            DirtyMode::MappedWritable => format.accessed() | format.dirty(),
            DirtyMode::AccessedBit => 0,
            DirtyMode::DirtyBitWhileMapped | DirtyMode::DirtyBit => format.accessed(),
        }
    }

    /// Whether a writable leaf that was taken out by itself counts as written whatever
    /// its bits say.
    pub(crate) fn altered_counts(self) -> bool {
        self.mode == DirtyMode::DirtyBitWhileMapped
    }

    /// Whether there is something to harvest from the tables.
    pub(crate) fn reads_tables(self) -> bool {
        self.mode != DirtyMode::MappedWritable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{AmdV1, VtdFirstStage, VtdSecondStage, VtdSecondStageDirty};

    const GOOD: DirtyHardware = DirtyHardware {
        update: DirtyUpdate::Rechecked,
        coherent: true,
        drains_updates: true,
        read_hides_write: false,
        spares_marked: false,
    };

    #[test]
    fn a_format_without_dirty_bits_counts_what_is_mapped_writable() {
        let decision = DirtyDecision::new(VtdSecondStage, GOOD);
        assert_eq!(decision.mode, DirtyMode::MappedWritable);
        assert_eq!(
            decision.preset(VtdSecondStage),
            0,
            "legacy leaves change not"
        );
    }

    #[test]
    fn each_doubt_costs_the_dirty_bit() {
        let decide = |hardware| DirtyDecision::new(VtdFirstStage, hardware);
        let doubts = [
            (DirtyHardware::NONE, DirtyReason::NoBits),
            (
                DirtyHardware {
                    coherent: false,
                    ..GOOD
                },
                DirtyReason::NotCoherent,
            ),
            (
                DirtyHardware {
                    drains_updates: false,
                    ..GOOD
                },
                DirtyReason::NotDrained,
            ),
            (
                DirtyHardware {
                    update: DirtyUpdate::Skipped,
                    read_hides_write: true,
                    ..GOOD
                },
                DirtyReason::Skipped,
            ),
        ];
        for (hardware, reason) in doubts {
            let decision = decide(hardware);
            assert_eq!(decision.mode, DirtyMode::MappedWritable);
            assert_eq!(decision.reason, reason);
        }
        assert_eq!(decide(GOOD).mode, DirtyMode::DirtyBit);
    }

    #[test]
    fn a_unit_that_skips_bits_is_believed_as_long_as_nobody_alters_the_leaf() {
        let skips = DirtyHardware {
            update: DirtyUpdate::Skipped,
            ..GOOD
        };
        let decision = DirtyDecision::new(AmdV1, skips);
        assert_eq!(decision.mode, DirtyMode::DirtyBitWhileMapped);
        assert_eq!(decision.reason, DirtyReason::Skipped);
        assert_eq!(decision.evidence(AmdV1), 1 << 6);
        assert_eq!(decision.preset(AmdV1), 1 << 5);
        assert!(decision.altered_counts());
        assert!(!DirtyDecision::new(AmdV1, GOOD).altered_counts());
    }

    #[test]
    fn where_the_dirty_bit_is_hidden_the_accessed_bit_counts_and_both_are_cleared() {
        let hides = DirtyHardware {
            read_hides_write: true,
            ..GOOD
        };
        let spares = DirtyHardware {
            spares_marked: true,
            ..GOOD
        };
        for hardware in [hides, spares] {
            let decision = DirtyDecision::new(VtdFirstStage, hardware);
            assert_eq!(decision.mode, DirtyMode::AccessedBit);
            assert_eq!(decision.evidence(VtdFirstStage), 0x60);
            assert_eq!(decision.preset(VtdFirstStage), 0);
        }
    }

    #[test]
    fn detached_leaves_are_looked_at_again_only_where_a_store_can_bring_them_back() {
        let stores = DirtyHardware {
            update: DirtyUpdate::PlainStore,
            ..GOOD
        };
        assert!(DirtyDecision::new(VtdFirstStage, stores).leaves_return);
        assert!(!DirtyDecision::new(VtdFirstStage, GOOD).leaves_return);
        let undrained = DirtyHardware {
            drains_updates: false,
            ..stores
        };
        let decision = DirtyDecision::new(VtdFirstStage, undrained);
        assert!(!decision.leaves_return, "all bits are set from the start");
    }

    #[test]
    fn the_bits_that_are_not_evidence_are_set_from_the_start() {
        let decision = DirtyDecision::new(VtdSecondStageDirty, GOOD);
        assert_eq!(decision.evidence(VtdSecondStageDirty), 1 << 9);
        assert_eq!(decision.preset(VtdSecondStageDirty), 1 << 8);
        let fallback = DirtyDecision::new(VtdFirstStage, DirtyHardware::NONE);
        assert_eq!(fallback.preset(VtdFirstStage), 0x60);
    }
}
