//! What a guest does that its machine cannot do for it, told to the operator once.
//!
//! A guest can do any of it as often as it likes, so of each kind only the first is
//! logged. The guest itself gets the architecture's answer each time.

use crate::Gpa;

/// One such thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Oddity {
    /// An MSR that does not exist, or a value that it cannot have.
    #[error("the guest gets #GP for MSR {0:#x}")]
    Msr(u32),
    /// A string instruction on a port.
    #[error("the guest gets #GP for a string instruction on port {0:#x}")]
    StringPort(u16),
    /// Registers in memory where there are none.
    #[error("the guest accesses {0}, where nothing is")]
    Nowhere(Gpa),
}

impl Oddity {
    const fn kind(self) -> u8 {
        match self {
            Self::Msr(_) => 0,
            Self::StringPort(_) => 1,
            Self::Nowhere(_) => 2,
        }
    }
}

/// The kinds that were logged.
#[derive(Clone, Copy, Default)]
pub(super) struct Oddities(u8);

impl Oddities {
    /// Logs it if it is the first of its kind.
    pub(super) fn note(&mut self, oddity: Oddity) {
        if self.is_first(oddity) {
            log::info!("{oddity}; more of the kind is not logged");
        }
    }

    fn is_first(&mut self, oddity: Oddity) -> bool {
        let bit = 1 << oddity.kind();
        let is_first = self.0 & bit == 0;
        self.0 |= bit;
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_kind_only_the_first_is_told() {
        let mut oddities = Oddities::default();
        let each = [
            Oddity::Msr(1),
            Oddity::StringPort(1),
            Oddity::Nowhere(Gpa::new(1)),
        ];
        for oddity in each {
            assert!(oddities.is_first(oddity), "{oddity}");
        }
        for oddity in [
            Oddity::Msr(2),
            Oddity::StringPort(2),
            Oddity::Nowhere(Gpa::new(2)),
        ] {
            assert!(!oddities.is_first(oddity), "{oddity}");
        }
    }
}
