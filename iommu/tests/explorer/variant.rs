//! The conducts of units that are tried.

use iommu::dirty_mode::{DirtyHardware, DirtyUpdate};

/// How the unit conducts itself where specifications leave it open, or wrongly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Variant {
    /// The update is atomic and only if the whole entry is still the one walked.
    A,
    /// Like A, also for an entry from the cache that is not dirty yet.
    AInPlace,
    /// An atomic OR without looking again.
    B,
    /// Like B, also for an entry from the cache.
    BInPlace,
    /// No update if the entry is not present any more; the access goes on.
    C,
    /// The same if it lost the right to write.
    CWrite,
    /// The update is buffered, and drained by the wait.
    E,
    /// Not even by the wait.
    EUndrained,
    /// A plain store of the entry that was read, with the dirty bit.
    F,
    /// The same with the accessed bit, also by reads.
    FAccessed,
    /// A cached entry that is not dirty lets writes pass.
    G,
    /// QEMU's first-stage unit: like `FAccessed`, like `G`, and nothing is set in an
    /// entry that has either bit.
    Emulated,
    /// The wait does not wait for writes let through.
    N,
    /// The wait knows nothing of walks.
    M,
    /// Like A, and devices have TLBs.
    Ats,
    /// Like B, and devices have TLBs.
    AtsAtomic,
}

impl Variant {
    pub const ALL: [Self; 16] = [
        Self::A,
        Self::AInPlace,
        Self::B,
        Self::BInPlace,
        Self::C,
        Self::CWrite,
        Self::E,
        Self::EUndrained,
        Self::F,
        Self::FAccessed,
        Self::G,
        Self::Emulated,
        Self::N,
        Self::M,
        Self::Ats,
        Self::AtsAtomic,
    ];

    /// Whether devices have TLBs.
    pub fn has_device_tlbs(self) -> bool {
        matches!(self, Self::Ats | Self::AtsAtomic)
    }

    /// What a driver that knows its unit would say of it.
    pub fn facts(self) -> DirtyHardware {
        DirtyHardware {
            update: match self {
                Self::B | Self::BInPlace | Self::E | Self::EUndrained | Self::AtsAtomic => {
                    DirtyUpdate::Atomic
                }
                Self::C | Self::CWrite => DirtyUpdate::Skipped,
                Self::F | Self::FAccessed | Self::Emulated => DirtyUpdate::PlainStore,
                _ => DirtyUpdate::Rechecked,
            },
            coherent: true,
            drains_updates: self != Self::EUndrained,
            read_hides_write: matches!(self, Self::G | Self::Emulated),
            spares_marked: self == Self::Emulated,
        }
    }
}
