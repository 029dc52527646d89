//! Which CPUs may still use what nested tables said before.
//!
//! A CPU that runs a guest caches leaves, and with them "D is set". Taking a right
//! or a D bit out of an entry, a downgrade, therefore needs every CPU to leave the
//! guest before, and to flush before it enters again:
//!
//! ```text
//!   CPU 0          CPU 1
//!   leaves         leaves                 each says so: GuestTlb::leave
//!   downgrades, with Stopped, which is only to be had now
//!   flush, enters  flush, enters          GuestTlb::enter asks for it
//! ```
//!
//! No emulator here shows a missing flush: a world switch of QEMU's flushes
//! everything. So it is asserted: [`Stopped::all`] does not return while a CPU is in
//! the guest, or if one ever entered after a downgrade without a flush.

use core::marker::PhantomData;

/// What the TLB of one CPU may hold of a guest's nested tables. It counts
/// downgrades: a CPU that flushed at number `n` has nothing older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestTlb {
    /// The downgrade that the last flush followed.
    flushed: u64,
    /// The downgrade that the last entry followed.
    entered: u64,
    is_inside: bool,
}

impl GuestTlb {
    /// A CPU that never ran the guest, and is to flush when it does.
    pub const fn unknown() -> Self {
        Self {
            flushed: 0,
            entered: 0,
            is_inside: false,
        }
    }

    /// The CPU is about to enter the guest, on tables after `downgrades`. Says whether
    /// it must flush with that entry.
    #[must_use = "the guest must not run before its TLB is flushed"]
    pub(crate) fn enter(&mut self, downgrades: u64) -> bool {
        self.is_inside = true;
        self.entered = downgrades;
        self.flushed < downgrades
    }

    /// The CPU has left the guest, which it entered with a flush or without.
    pub(crate) fn leave(&mut self, has_flushed: bool) {
        self.is_inside = false;
        if has_flushed {
            self.flushed = self.entered;
        }
    }

    /// Whether the CPU is in the guest.
    pub fn is_inside(&self) -> bool {
        self.is_inside
    }
}

/// Proof that no CPU is in the guest, and that each flushed after the last downgrade
/// it ran on. No CPU enters while it exists, as entering changes its [`GuestTlb`].
pub struct Stopped<'a>(PhantomData<&'a GuestTlb>);

impl<'a> Stopped<'a> {
    /// The proof for a guest whose CPUs are `all`.
    ///
    /// # Panics
    /// A CPU is in the guest, or one entered without the flush it was asked for. Both
    /// are defects of the hypervisor that would lose writes of the guest silently.
    pub fn all(all: impl IntoIterator<Item = &'a GuestTlb>) -> Self {
        for (cpu, tlb) in all.into_iter().enumerate() {
            assert!(!tlb.is_inside, "CPU {cpu} is in the guest");
            assert!(
                tlb.flushed >= tlb.entered,
                "CPU {cpu} entered after downgrade {} and flushed last after {}",
                tlb.entered,
                tlb.flushed
            );
        }
        Self(PhantomData)
    }
}
