//! Which endpoint is in which domain, and where its DMA goes on the host side.
//!
//! Virtio 1.2, sections 5.13.6.3 and 5.13.6.4: a domain comes into being with its
//! first endpoint and ceases with its last, so the endpoints' memberships are all
//! there is to know about domains. A host domain stands behind each that is not
//! for bypassing:
//!
//! ```text
//!   membership (what the guest was told)   + change under way = goal
//!                                                                | move_one
//!   host domains  <--created for a goal--  place (where it is) <-+
//!        |
//!        +-- nobody's place any more: emptied in steps, pages reported, destroyed
//! ```

use super::portion::unmap_front;
use crate::IovaRange;
use crate::space::{Attachment, DmaSpace, SpaceError};
use crate::unit::{DomainId, SourceId, UnitError};
use crate::viommu::{MAX_DEVICES, Passthrough, Passthroughs};
use heapless::Vec;

/// One for each endpoint, those of a life before a restore, and one in the making.
const MAX_HOSTS: usize = 2 * MAX_DEVICES + 1;

/// A domain that an endpoint is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Membership {
    /// The guest's number for it.
    pub(super) domain: u32,
    /// Whether it was made with `VIRTIO_IOMMU_ATTACH_F_BYPASS`.
    pub(super) bypass: bool,
}

/// Where an endpoint is to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// All of the guest's memory.
    Everything,
    /// The mappings of that domain.
    Domain(u32),
    /// Nowhere.
    Nothing,
}

/// A change of memberships that is being carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// None: endpoints are where they shall be as soon as they can.
    None,
    /// One endpoint is attached to or detached from a domain.
    Move {
        /// Which.
        index: usize,
        /// Where to.
        to: Option<Membership>,
    },
    /// `bypass` of the configuration gets this value.
    Bypass(bool),
    /// Every endpoint is detached.
    Reset,
}

/// An endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    /// Its names; the guest's is the endpoint's number.
    pub(super) ids: Passthrough,
    /// As the guest was told.
    pub(super) membership: Option<Membership>,
    /// The goal it was last sent to, and where it is, which is nowhere where the
    /// host had no means for the goal. `None` before the first time.
    place: Option<(Goal, Attachment)>,
}

/// A host domain.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// The guest's number; `None` for one of a life before [`Endpoints::forget`].
    domain: Option<u32>,
    id: DomainId,
}

/// How far the endpoints are in line with their goals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Settled {
    /// All are, and nothing is left of domains nobody uses.
    Yes,
    /// There is more to do.
    NotYet,
    /// The endpoint of a [`Change::Move`] cannot go there; it stays where it is.
    Refused(UnitError),
}

/// All endpoints.
#[derive(Debug)]
pub(super) struct Endpoints {
    all: Vec<Endpoint, MAX_DEVICES>,
    hosts: Vec<Host, MAX_HOSTS>,
}

impl Endpoints {
    pub(super) fn new(devices: &Passthroughs) -> Self {
        let endpoint = |&ids| Endpoint {
            ids,
            membership: None,
            place: None,
        };
        Self {
            all: devices.iter().map(endpoint).collect(),
            hosts: Vec::new(),
        }
    }

    pub(super) fn all(&self) -> &[Endpoint] {
        &self.all
    }

    /// The endpoint of that number.
    pub(super) fn index_of(&self, endpoint: u32) -> Option<usize> {
        let is_it = |one: &Endpoint| u32::from(one.ids.guest.raw()) == endpoint;
        self.all.iter().position(is_it)
    }

    /// The endpoint that the host knows by that id.
    pub(super) fn of_host(&self, device: SourceId) -> Option<&Endpoint> {
        self.all.iter().find(|one| one.ids.host == device)
    }

    /// Where the endpoint is that the guest knows by that id; `None` before the first
    /// time, and if there is none.
    pub(super) fn place_of(&self, source: SourceId) -> Option<Attachment> {
        let endpoint = self.all.iter().find(|one| one.ids.guest == source)?;
        endpoint.place.map(|(_, at)| at)
    }

    /// The domain of that number, if it exists.
    pub(super) fn domain(&self, domain: u32) -> Option<Membership> {
        let mut memberships = self.all.iter().filter_map(|one| one.membership);
        memberships.find(|membership| membership.domain == domain)
    }

    /// The host domain behind a domain that is not for bypassing.
    pub(super) fn host_of(&self, domain: u32) -> Option<DomainId> {
        let mut hosts = self.hosts.iter();
        hosts
            .find(|host| host.domain == Some(domain))
            .map(|host| host.id)
    }

    /// The host domain at that place of a list that lasts as long as no endpoint
    /// moves, with the guest's number.
    pub(super) fn host_at(&self, index: usize) -> Option<(u32, DomainId)> {
        let mut known = self.hosts.iter().filter_map(|host| {
            let domain = host.domain?;
            Some((domain, host.id))
        });
        known.nth(index)
    }

    /// The host domain behind `domain`, a new one if there is none.
    pub(super) fn create_host(
        &mut self,
        domain: u32,
        space: &mut impl DmaSpace,
    ) -> Result<DomainId, SpaceError> {
        if let Some(id) = self.host_of(domain) {
            return Ok(id);
        }
        if self.hosts.is_full() {
            return Err(SpaceError::OutOfMemory);
        }
        let id = space.create_domain()?;
        let domain = Some(domain);
        // There is room: see above.
        let _ = self.hosts.push(Host { domain, id });
        Ok(id)
    }

    /// Takes over memberships; where endpoints are and what was mapped before
    /// belongs to a former life, and goes once they have moved.
    pub(super) fn forget(&mut self, memberships: &[Option<Membership>]) {
        for (endpoint, membership) in self.all.iter_mut().zip(memberships) {
            endpoint.membership = *membership;
            endpoint.place = None;
        }
        for host in &mut self.hosts {
            host.domain = None;
        }
    }

    /// The memberships are such as the change was to bring about.
    pub(super) fn commit(&mut self, change: Change) {
        match change {
            Change::Move { index, to } => {
                if let Some(endpoint) = self.all.get_mut(index) {
                    endpoint.membership = to;
                }
            }
            Change::Reset => {
                for endpoint in &mut self.all {
                    endpoint.membership = None;
                }
            }
            Change::None | Change::Bypass(_) => {}
        }
    }

    /// One step towards the goals: an endpoint moves, or the front of a domain that
    /// nobody uses any more is unmapped, for which it may take some of the `left`
    /// steps. First all move: what is unmapped then, no device reaches.
    pub(super) fn settle(
        &mut self,
        change: Change,
        bypass: bool,
        space: &mut impl DmaSpace,
        left: &mut u32,
    ) -> Result<Settled, SpaceError> {
        for index in 0..self.all.len() {
            let goal = self.goal(index, change, bypass);
            let place = self.all.get(index).and_then(|endpoint| endpoint.place);
            if place.is_none_or(|(last, _)| last != goal) {
                let is_asked_for =
                    matches!(change, Change::Move { index: moved, to: Some(_) } if moved == index);
                return self.send(index, goal, is_asked_for, space);
            }
        }
        let Some(at) = self.hosts.iter().position(|host| !self.is_used(host.id)) else {
            return Ok(Settled::Yes);
        };
        if let Some(host) = self.hosts.get(at)
            && unmap_front(host.id, IovaRange::ALL, space, left)?.is_none()
        {
            space.destroy_domain(host.id)?;
            self.hosts.swap_remove(at);
        }
        Ok(Settled::NotYet)
    }

    fn goal(&self, index: usize, change: Change, bypass: bool) -> Goal {
        let told = self.all.get(index).and_then(|one| one.membership);
        let (membership, bypass) = match change {
            Change::Move { index: moved, to } if moved == index => (to, bypass),
            Change::Reset => (None, bypass),
            Change::Bypass(wanted) => (told, wanted),
            Change::Move { .. } | Change::None => (told, bypass),
        };
        match membership {
            Some(Membership {
                domain,
                bypass: false,
            }) => Goal::Domain(domain),
            Some(_) => Goal::Everything,
            None if bypass => Goal::Everything,
            None => Goal::Nothing,
        }
    }

    fn send(
        &mut self,
        index: usize,
        goal: Goal,
        is_asked_for: bool,
        space: &mut impl DmaSpace,
    ) -> Result<Settled, SpaceError> {
        let Some(device) = self.all.get(index).map(|endpoint| endpoint.ids.host) else {
            return Ok(Settled::NotYet);
        };
        let attached = self.attachment(goal, space).and_then(|to| {
            space.attach(device, to)?;
            Ok(to)
        });
        let to = match attached {
            Ok(to) => to,
            Err(error) => {
                let error = without_means(error)?;
                if is_asked_for {
                    return Ok(Settled::Refused(error));
                }
                // Without the means to go where it shall, it goes nowhere.
                space.attach(device, Attachment::Blocked)?;
                Attachment::Blocked
            }
        };
        log::debug!("vIOMMU: device {device} goes to {to:?}");
        if let Some(endpoint) = self.all.get_mut(index) {
            endpoint.place = Some((goal, to));
        }
        Ok(Settled::NotYet)
    }

    fn attachment(
        &mut self,
        goal: Goal,
        space: &mut impl DmaSpace,
    ) -> Result<Attachment, SpaceError> {
        Ok(match goal {
            Goal::Everything => Attachment::Identity,
            Goal::Domain(domain) => Attachment::Domain(self.create_host(domain, space)?),
            Goal::Nothing => Attachment::Blocked,
        })
    }

    fn is_used(&self, host: DomainId) -> bool {
        let mut places = self.all.iter().filter_map(|endpoint| endpoint.place);
        places.any(|(_, at)| at == Attachment::Domain(host))
    }
}

/// What the host side lacks, unless it failed altogether.
fn without_means(error: SpaceError) -> Result<UnitError, SpaceError> {
    match error {
        SpaceError::OutOfMemory => Ok(UnitError::OutOfMemory),
        SpaceError::Unit(error @ (UnitError::OutOfMemory | UnitError::OutOfRange)) => Ok(error),
        error => Err(error),
    }
}
