//! The unit's state as it travels, without the mappings.
//!
//! Everything the guest can see, which endpoint is in which domain, and how far
//! the queues were worked off. A request that is being carried out is still in its
//! queue.

use super::VirtioIommu;
use super::config::LAST_DOMAIN;
use super::endpoints::Membership;
use super::registers::{DeviceStatus, Interrupt, QUEUES, Queue, Registers};
use super::ring::{MAX_SIZE, Ring};
use crate::viommu::{MAX_DEVICES, StateError};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version of the layout, and of that of the mappings.
pub const STATE_VERSION: u32 = 2;

/// [`VirtioIommu`]'s state: little-endian, without padding, the same on all machines.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VirtioState {
    version: U32,
    /// IOVA bits.
    width: U32,
    device_count: U32,
    devices: [U16; MAX_DEVICES],
    members: [MemberState; MAX_DEVICES],
    queues: [QueueState; QUEUES],
    driver_features: U64,
    device_features_select: U32,
    driver_features_select: U32,
    queue_select: U32,
    status: U32,
    interrupt: U32,
    bypass: U32,
    bypass_wanted: U32,
    reset_wanted: U32,
    is_notified: U32,
}

/// The domain of one endpoint.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct MemberState {
    /// 0: none, 1: one with mappings, 2: one for bypassing.
    kind: U32,
    domain: U32,
}

/// One queue.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct QueueState {
    descriptors: U64,
    driver: U64,
    device: U64,
    size: U16,
    taken: U16,
    used: U16,
    /// 0 or 1.
    is_ready: U16,
}

impl MemberState {
    fn save(membership: Option<Membership>) -> Self {
        let (kind, domain) = match membership {
            None => (0, 0),
            Some(Membership { domain, bypass }) => (1 + u32::from(bypass), domain),
        };
        Self {
            kind: kind.into(),
            domain: domain.into(),
        }
    }

    fn restore(&self) -> Option<Option<Membership>> {
        let domain = self.domain.get();
        let member = |bypass| Some(Membership { domain, bypass });
        match self.kind.get() {
            0 if domain == 0 => Some(None),
            1 if domain <= LAST_DOMAIN => Some(member(false)),
            2 if domain <= LAST_DOMAIN => Some(member(true)),
            _ => None,
        }
    }
}

impl QueueState {
    fn save(queue: &Queue) -> Self {
        let ring = &queue.ring;
        Self {
            descriptors: ring.descriptors.into(),
            driver: ring.driver.into(),
            device: ring.device.into(),
            size: ring.size.into(),
            taken: ring.taken.into(),
            used: ring.used.into(),
            is_ready: u16::from(queue.is_ready).into(),
        }
    }

    fn restore(&self) -> Result<Queue, StateError> {
        let malformed = StateError::Register("a queue");
        let ring = Ring {
            size: self.size.get(),
            descriptors: self.descriptors.get(),
            driver: self.driver.get(),
            device: self.device.get(),
            taken: self.taken.get(),
            used: self.used.get(),
        };
        let is_ready = match self.is_ready.get() {
            0 => false,
            1 if ring.is_valid() => true,
            _ => return Err(malformed),
        };
        // Nothing is given back that was not taken, and at once.
        if ring.size > MAX_SIZE || ring.taken != ring.used {
            return Err(malformed);
        }
        Ok(Queue { ring, is_ready })
    }
}

/// The state of `unit`.
pub(super) fn save(unit: &VirtioIommu) -> VirtioState {
    let registers = &unit.registers;
    let endpoint = |index: usize| unit.endpoints.all().get(index);
    let guest_id = |index| endpoint(index).map_or(0, |it| it.ids.guest.raw());
    let member = |index| endpoint(index).and_then(|it| it.membership);
    VirtioState {
        version: STATE_VERSION.into(),
        width: u32::from(unit.width).into(),
        device_count: (unit.endpoints.all().len() as u32).into(),
        devices: core::array::from_fn(|index| guest_id(index).into()),
        members: core::array::from_fn(|index| MemberState::save(member(index))),
        driver_features: registers.driver_features.into(),
        device_features_select: registers.device_features_select.into(),
        driver_features_select: registers.driver_features_select.into(),
        queue_select: registers.queue_select.into(),
        status: registers.status.bits().into(),
        interrupt: registers.interrupt.bits().into(),
        bypass: u32::from(registers.bypass).into(),
        bypass_wanted: u32::from(registers.bypass_wanted).into(),
        reset_wanted: u32::from(registers.reset_wanted).into(),
        is_notified: u32::from(registers.is_notified).into(),
        queues: core::array::from_fn(|index| QueueState::save(&registers.queues[index])),
    }
}

/// The memberships of the endpoints, in their order.
pub(super) type Memberships = [Option<Membership>; MAX_DEVICES];

/// The registers and memberships in `state`, if `unit` can have come to them.
pub(super) fn restored(
    unit: &VirtioIommu,
    state: &VirtioState,
) -> Result<(Registers, Memberships), StateError> {
    if state.version != STATE_VERSION {
        return Err(StateError::Version(state.version.get()));
    }
    let own = save(unit);
    let shape = |state: &VirtioState| (state.width, state.device_count, state.devices);
    if shape(state) != shape(&own) {
        return Err(StateError::Configuration);
    }
    let status = DeviceStatus::from_bits(state.status.get());
    let interrupt = Interrupt::from_bits(state.interrupt.get());
    let [requests, events] = &state.queues;
    let registers = Registers {
        driver_features: state.driver_features.get(),
        device_features_select: state.device_features_select.get(),
        driver_features_select: state.driver_features_select.get(),
        queue_select: state.queue_select.get(),
        status: status.ok_or(StateError::Register("Status"))?,
        interrupt: interrupt.ok_or(StateError::Register("InterruptStatus"))?,
        bypass: flag(state.bypass, "bypass")?,
        bypass_wanted: flag(state.bypass_wanted, "bypass")?,
        reset_wanted: flag(state.reset_wanted, "Status")?,
        is_notified: flag(state.is_notified, "QueueNotify")?,
        queues: [requests.restore()?, events.restore()?],
        ..Registers::new(unit.width)
    };
    if !registers.is_possible() {
        return Err(StateError::Register("Status"));
    }
    Ok((registers, memberships(unit, state)?))
}

fn memberships(unit: &VirtioIommu, state: &VirtioState) -> Result<Memberships, StateError> {
    let malformed = StateError::Register("an endpoint's domain");
    let mut all = Memberships::default();
    for (index, member) in state.members.iter().enumerate() {
        let membership = member.restore().ok_or(malformed)?;
        // No domain is of both kinds, and nobody who is not there is in one.
        let earlier = all.iter().flatten();
        let contradicts = |other: &Membership| {
            membership.is_some_and(|it| it.domain == other.domain && it.bypass != other.bypass)
        };
        let is_there = index < unit.endpoints.all().len();
        if earlier.clone().any(contradicts) || membership.is_some() && !is_there {
            return Err(malformed);
        }
        if let Some(place) = all.get_mut(index) {
            *place = membership;
        }
    }
    Ok(all)
}

fn flag(value: U32, name: &'static str) -> Result<bool, StateError> {
    match value.get() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(StateError::Register(name)),
    }
}
