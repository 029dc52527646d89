//! Mechanisms that a test build can break on purpose.
//!
//! For every safety property there is a negative control: break the mechanism
//! and see the check go red. The breaking points ask [`is_active`]; without the
//! feature `sabotage` that is a constant `false`, so an ordinary image contains
//! none of them.

/// One mechanism that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sabotage {
    /// An unmap does not report the pages the device could write.
    UnmapReport = 1,
    /// The guest is told that an unmap is complete before the translation is gone
    /// from the hardware.
    UnmapOrder,
    /// CPU writes are not harvested from the nested page tables.
    CpuDirty,
    /// No invalidation is sent to the remapping hardware.
    Iotlb,
    /// Pages still mapped writable at switchover are not counted as dirty.
    MappedDirty,
    /// Writes by the hypervisor's own emulation are not logged.
    EmulationDirty,
    /// Evidence of device writes is cleared in the tables, and what the remapping
    /// hardware caches stays, through which writes leave no new evidence.
    EvidenceDrain,
    /// The remapping hardware lets every interrupt request pass as it is.
    InterruptRemapping,
}

impl Sabotage {
    /// Every sabotage.
    pub const ALL: [Self; 8] = [
        Self::UnmapReport,
        Self::UnmapOrder,
        Self::CpuDirty,
        Self::Iotlb,
        Self::MappedDirty,
        Self::EmulationDirty,
        Self::EvidenceDrain,
        Self::InterruptRemapping,
    ];

    /// The name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnmapReport => "unmap-report",
            Self::UnmapOrder => "unmap-order",
            Self::CpuDirty => "cpu-dirty",
            Self::Iotlb => "iotlb",
            Self::MappedDirty => "mapped-dirty",
            Self::EmulationDirty => "emulation-dirty",
            Self::EvidenceDrain => "evidence-drain",
            Self::InterruptRemapping => "interrupt-remapping",
        }
    }

    /// The sabotage of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// What a broken mechanism holds back, to do it too late. Without the feature there is
/// no room for anything, and taking it is a constant `None`.
#[derive(Clone, Copy, Debug)]
pub struct HeldBack<T> {
    #[cfg(feature = "sabotage")]
    held: Option<T>,
    #[cfg(not(feature = "sabotage"))]
    nothing: core::marker::PhantomData<T>,
}

impl<T> HeldBack<T> {
    /// Nothing.
    pub const NOTHING: Self = Self {
        #[cfg(feature = "sabotage")]
        held: None,
        #[cfg(not(feature = "sabotage"))]
        nothing: core::marker::PhantomData,
    };

    /// Holds `it` back.
    pub fn hold(&mut self, it: T) {
        #[cfg(feature = "sabotage")]
        {
            self.held = Some(it);
        }
        // Never called then: nothing is broken.
        #[cfg(not(feature = "sabotage"))]
        drop(it);
    }

    /// What is held back.
    pub fn held(&self) -> Option<&T> {
        #[cfg(feature = "sabotage")]
        return self.held.as_ref();
        #[cfg(not(feature = "sabotage"))]
        None
    }

    /// What was held back, for once.
    pub fn take(&mut self) -> Option<T> {
        #[cfg(feature = "sabotage")]
        return self.held.take();
        #[cfg(not(feature = "sabotage"))]
        None
    }
}

#[cfg(feature = "sabotage")]
mod active {
    use super::Sabotage;
    use core::sync::atomic::{AtomicU8, Ordering};

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Breaks `sabotage` from now on, and nothing else.
    pub fn activate(sabotage: Sabotage) {
        ACTIVE.store(sabotage as u8, Ordering::SeqCst);
    }

    /// Whether `sabotage` is to be done.
    pub fn is_active(sabotage: Sabotage) -> bool {
        ACTIVE.load(Ordering::Relaxed) == sabotage as u8
    }
}
#[cfg(feature = "sabotage")]
pub use active::{activate, is_active};

/// Whether `sabotage` is to be done: never, in this build.
#[cfg(not(feature = "sabotage"))]
pub const fn is_active(_: Sabotage) -> bool {
    false
}
