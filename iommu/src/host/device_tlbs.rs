//! The devices with TLBs of their own, and in which domain each is.

use crate::device_tlb::{DeviceTlb, NoDeviceTlb};
use crate::domain::MAX_DEVICES;
use crate::unit::SourceId;
use heapless::LinearMap;

/// Commands of one invalidation: the unit's own, a fence, and one for each device.
pub(super) const MAX_COMMANDS: usize = 2 + MAX_DEVICES;

/// Who may have a TLB, and who has it filled from which domain.
#[derive(Default)]
pub(super) struct DeviceTlbs {
    devices: LinearMap<SourceId, (DeviceTlb, Option<u16>), MAX_DEVICES>,
}

impl DeviceTlbs {
    /// Lets `device`, which is blocked, have one from its next attachment on.
    pub(super) fn allow(&mut self, device: SourceId, tlb: DeviceTlb) -> Result<(), NoDeviceTlb> {
        let inserted = self.devices.insert(device, (tlb, None));
        inserted.map(|_| ()).map_err(|_| NoDeviceTlb::TooMany)
    }

    /// Whether no device may have one, as is usual.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// That of `device`, if it may have one.
    pub(super) fn of(&self, device: SourceId) -> Option<DeviceTlb> {
        self.devices.get(&device).map(|(tlb, _)| *tlb)
    }

    /// Notes that `device` is translated for by `domain`, or blocked.
    pub(super) fn moved(&mut self, device: SourceId, domain: Option<u16>) {
        if let Some((_, at)) = self.devices.get_mut(&device) {
            *at = domain;
        }
    }

    /// Those that may hold translations of `domain`.
    pub(super) fn filled_from(&self, domain: u16) -> impl Iterator<Item = (SourceId, DeviceTlb)> {
        self.devices
            .iter()
            .filter(move |(_, (_, at))| *at == Some(domain))
            .map(|(device, (tlb, _))| (*device, *tlb))
    }
}
