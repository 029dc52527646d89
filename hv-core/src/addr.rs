//! Distinct types for distinct address spaces.
//!
//! A guest physical address never meets a host physical one by accident: the
//! only way from [`Gpa`] to [`Hpa`] is [`crate::memory::GuestMemory::translate`].

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// The granule of every table and of all dirty tracking, in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Declares a 64-bit address newtype with the operations every address space
/// needs; addition is checked, so that input from a guest cannot wrap it.
#[macro_export]
macro_rules! address_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address; every 64-bit value is allowed.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address, in bytes.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `bytes` further on, or `None` past 2^64.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The start of the page this address lies in.
            pub const fn page_base(self) -> Self {
                Self(self.0 & !($crate::PAGE_SIZE - 1))
            }

            /// The offset within the page, below [`PAGE_SIZE`]($crate::PAGE_SIZE).
            pub const fn page_offset(self) -> u64 {
                self.0 & ($crate::PAGE_SIZE - 1)
            }

            /// Whether this is the first byte of a page.
            pub const fn is_page_aligned(self) -> bool {
                self.page_offset() == 0
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address_type! {
    /// A guest physical address: what the guest believes to be physical.
    Gpa
}
address_type! {
    /// A host physical address: what the memory bus sees.
    Hpa
}

/// A guest frame number: a [`Gpa`] divided by [`PAGE_SIZE`].
///
/// The unit of the dirty log and of the migration stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Gfn(u64);

impl Gfn {
    /// The frame of this number. A number above 2^52 names no frame of a real
    /// machine, and [`Gfn::gpa`] saturates for it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame that holds `gpa`.
    pub const fn containing(gpa: Gpa) -> Self {
        Self(gpa.raw() >> PAGE_SHIFT)
    }

    /// The frame number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The first byte of the frame.
    pub const fn gpa(self) -> Gpa {
        Gpa::new(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl core::fmt::Display for Gfn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addition_past_the_end_is_refused() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa::new(1).checked_add(2), Some(Gpa::new(3)));
    }

    #[test]
    fn page_base_and_offset_split_an_address() {
        let gpa = Gpa::new(0x1234_5678);
        assert_eq!(gpa.page_base().raw() + gpa.page_offset(), gpa.raw());
        assert_eq!(Gfn::containing(gpa).gpa(), gpa.page_base());
    }
}
