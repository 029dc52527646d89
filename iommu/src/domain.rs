//! Which domains there are, and which devices use them.

use crate::space::{Attachment, SpaceError};
use crate::unit::{DomainId, SourceId};
use heapless::LinearMap;
use hv_core::Hpa;

/// How many domains there may be, beside the identity domain.
pub const MAX_DOMAINS: usize = 255;
/// How many devices may be attached or blocked in the course of time.
pub const MAX_DEVICES: usize = 32;

/// The number under which hardware caches the identity domain. Those of the
/// others follow; 0 is not used.
pub(crate) const IDENTITY: DomainId = DomainId::new(1);

/// The domains a caller made, each with the root of its tables, and where each
/// known device's DMA goes.
pub(crate) struct Domains {
    roots: [Option<Hpa>; MAX_DOMAINS],
    devices: LinearMap<SourceId, Attachment, MAX_DEVICES>,
}

impl Domains {
    pub(crate) const fn new() -> Self {
        Self {
            roots: [None; MAX_DOMAINS],
            devices: LinearMap::new(),
        }
    }

    /// The lowest number free.
    pub(crate) fn vacant(&self) -> Option<DomainId> {
        let index = self.roots.iter().position(Option::is_none)?;
        u16::try_from(index)
            .ok()
            .map(|index| DomainId::new(IDENTITY.number() + 1 + index))
    }

    /// Gives `domain` these tables, or none.
    pub(crate) fn set_root(&mut self, domain: DomainId, root: Option<Hpa>) {
        if let Some(slot) = index(domain).and_then(|index| self.roots.get_mut(index)) {
            *slot = root;
        }
    }

    /// The root of `domain`'s tables. The identity domain is not among those a
    /// caller can name.
    pub(crate) fn root(&self, domain: DomainId) -> Option<Hpa> {
        *self.roots.get(index(domain)?)?
    }

    /// The first domain from number `from` on, and its root; the identity domain
    /// is not among them.
    pub(crate) fn first_from(&self, from: DomainId) -> Option<(DomainId, Hpa)> {
        (from.number()..=IDENTITY.number() + MAX_DOMAINS as u16)
            .map(DomainId::new)
            .find_map(|domain| Some((domain, self.root(domain)?)))
    }

    /// Whether a device is attached to `domain`.
    pub(crate) fn is_used(&self, domain: DomainId) -> bool {
        self.devices
            .values()
            .any(|to| *to == Attachment::Domain(domain))
    }

    /// Whether a device is attached to all of the guest's memory.
    pub(crate) fn identity_is_used(&self) -> bool {
        self.devices.values().any(|to| *to == Attachment::Identity)
    }

    /// Where the DMA of `device` goes; a device never seen is blocked.
    pub(crate) fn attachment(&self, device: SourceId) -> Attachment {
        *self.devices.get(&device).unwrap_or(&Attachment::Blocked)
    }

    /// Notes where the DMA of `device` goes.
    pub(crate) fn set_attachment(
        &mut self,
        device: SourceId,
        to: Attachment,
    ) -> Result<(), SpaceError> {
        self.devices
            .insert(device, to)
            .map(|_| ())
            .map_err(|_| SpaceError::OutOfMemory)
    }
}

fn index(domain: DomainId) -> Option<usize> {
    domain
        .number()
        .checked_sub(IDENTITY.number() + 1)
        .map(usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reused_lowest_first_and_spare_zero_and_identity() {
        let mut domains = Domains::new();
        let root = Some(Hpa::new(0x1000));
        for number in [2, 3, 4] {
            let domain = domains.vacant().unwrap();
            assert_eq!(domain, DomainId::new(number));
            domains.set_root(domain, root);
        }
        domains.set_root(DomainId::new(3), None);
        assert_eq!(domains.vacant(), Some(DomainId::new(3)));
        for number in [0, 1, 3, u16::MAX] {
            assert_eq!(domains.root(DomainId::new(number)), None);
        }
    }
}
