//! Taking requests and carrying them out, in bounded steps: see
//! [`crate::viommu::steps`].
//!
//! A request stays in the available ring until it is answered, so one whose work
//! is dropped half way (save, restore) is found there again.

use super::VirtioIommu;
use super::endpoints::{Change, Settled};
use super::portion::{before, map_front, unmap_front};
use super::property::{PROBE_SIZE, properties};
use super::registers::{Interrupt, REQUESTS};
use super::request::{MAX_REQUEST, Refusal, Request, Status};
use super::ring::{Broken, Chain};
use crate::IovaRange;
use crate::layer::MapError;
use crate::space::{DmaSpace, Piece, SpaceError};
use crate::unit::{DomainId, UnitError};
use crate::viommu::steps::{Progress, Stepwise};
use hv_core::memory::{GuestMemory, PhysMemory};
use hv_core::sabotage::{Sabotage, is_active};

/// What is being done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// Endpoints go where they shall.
    Settle(Change),
    /// `rest` of a mapping is still to be made.
    Map {
        host: DomainId,
        mapping: Piece,
        rest: IovaRange,
    },
    /// What was made of a mapping that could not be made as a whole is taken back.
    Undo { host: DomainId, made: IovaRange },
    /// All mappings in a range are taken away.
    Unmap { host: DomainId, range: IovaRange },
    /// Nothing but the answer is left.
    Answer,
}

/// A task, and what the request that asked for it will be answered with.
#[derive(Clone, Copy, Debug)]
pub(in crate::viommu) struct Job {
    pub(super) task: Task,
    status: Status,
}

impl Job {
    const fn new(task: Task) -> Self {
        let status = Status::Ok;
        Self { task, status }
    }
}

impl Stepwise for VirtioIommu {
    type Job = Job;

    fn job(&self) -> Option<Job> {
        self.job
    }

    fn set_job(&mut self, job: Option<Job>) {
        self.job = job;
    }

    fn is_asked(&self) -> bool {
        let registers = &self.registers;
        !self.started
            || registers.reset_wanted
            || registers.bypass != registers.bypass_wanted
            || registers.is_notified
    }

    fn begin<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &impl DmaSpace,
    ) -> Option<Job> {
        let registers = &mut self.registers;
        if !self.started {
            return Some(Job::new(Task::Settle(Change::None)));
        }
        if registers.reset_wanted {
            return Some(Job::new(Task::Settle(Change::Reset)));
        }
        if registers.bypass != registers.bypass_wanted {
            let change = Change::Bypass(registers.bypass_wanted);
            return Some(Job::new(Task::Settle(change)));
        }
        let taken = self.take(guest, space);
        taken.unwrap_or_else(|Broken| {
            self.registers.is_notified = false;
            self.registers.demand_reset();
            None
        })
    }

    fn advance<M: PhysMemory>(
        &mut self,
        job: Job,
        _: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        left: &mut u32,
    ) -> Result<Progress<Job>, SpaceError> {
        let go_on = |task| Ok(Progress::More(Job { task, ..job }));
        match job.task {
            Task::Settle(change) => {
                let bypass = self.registers.bypass;
                match self.endpoints.settle(change, bypass, space, left)? {
                    Settled::Yes => Ok(Progress::Done(job)),
                    Settled::NotYet => go_on(job.task),
                    // Back to how it was.
                    Settled::Refused(error) => Ok(Progress::More(Job {
                        task: Task::Settle(Change::None),
                        status: status_of_unit(error),
                    })),
                }
            }
            Task::Map {
                host,
                mapping,
                rest,
            } => match map_front(host, &mapping, rest, space, left) {
                Ok(Some(rest)) => go_on(Task::Map {
                    host,
                    mapping,
                    rest,
                }),
                Ok(None) => Ok(Progress::Done(job)),
                Err(error) => Ok(Progress::More(Job {
                    task: match before(mapping.range, rest) {
                        Some(made) => Task::Undo { host, made },
                        None => Task::Answer,
                    },
                    status: status_of_map(error)?,
                })),
            },
            Task::Undo { host, made } => match unmap_front(host, made, space, left)? {
                Some(made) => go_on(Task::Undo { host, made }),
                None => Ok(Progress::Done(job)),
            },
            Task::Unmap { host, range } => match unmap_front(host, range, space, left)? {
                Some(range) => go_on(Task::Unmap { host, range }),
                None => Ok(Progress::Done(job)),
            },
            Task::Answer => Ok(Progress::Done(job)),
        }
    }

    fn finish<M: PhysMemory>(&mut self, job: Job, guest: &GuestMemory<'_, M>) {
        if let Task::Settle(change) = job.task {
            self.started = true;
            self.endpoints.commit(change);
            match change {
                Change::Bypass(bypass) => self.registers.bypass = bypass,
                Change::Reset => self.registers.reset_wanted = false,
                Change::None | Change::Move { .. } => {}
            }
        }
        // After a reset the queues are others.
        let chain = self.chain.take().filter(|_| !self.registers.reset_wanted);
        if let Some(chain) = chain {
            let written = reply(guest, &chain, &[], job.status);
            self.give_back(guest, &chain, written);
        }
    }
}

impl VirtioIommu {
    /// Looks at the oldest request: answers it, or makes a job of it.
    fn take<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &impl DmaSpace,
    ) -> Result<Option<Job>, Broken> {
        let [queue, _] = &self.registers.queues;
        let chain = match self.registers.is_live() && queue.is_ready {
            true => queue.ring.peek(guest)?,
            false => None,
        };
        let Some(chain) = chain else {
            self.registers.is_notified = false;
            return Ok(None);
        };
        if let Some((host, range)) = self.held_back.take() {
            return Ok(Some(Job::new(Task::Unmap { host, range })));
        }
        let mut bytes = [0; MAX_REQUEST];
        let request = match chain.read(guest, &mut bytes) {
            Some(count) => Request::decode(&bytes[..count], self.registers.features()),
            None => Err(Refusal::Status(Status::IoErr)),
        };
        let planned = match request {
            Ok(Request::Probe { endpoint }) => {
                let written = self.probe(guest, &chain, endpoint);
                self.give_back(guest, &chain, written);
                return Ok(None);
            }
            Ok(request) => self.plan(request, guest, space),
            Err(Refusal::Status(status)) => Err(status),
            Err(Refusal::Unrecognised) => {
                self.give_back(guest, &chain, 0);
                return Ok(None);
            }
        };
        self.chain = Some(chain);
        Ok(Some(match planned {
            Ok(task) => Job::new(self.hold_back(task)),
            Err(status) => Job {
                task: Task::Answer,
                status,
            },
        }))
    }

    fn probe<M: PhysMemory>(
        &self,
        guest: &GuestMemory<'_, M>,
        chain: &Chain,
        endpoint: Option<u32>,
    ) -> u32 {
        let has_room = chain.writable() >= (PROBE_SIZE + TAIL) as u64;
        let known = endpoint.map(|endpoint| self.endpoints.index_of(endpoint).is_some());
        let (properties, status) = match known {
            Some(false) => ([0; PROBE_SIZE], Status::NoEntry),
            Some(true) if has_room => (properties(), Status::Ok),
            _ => ([0; PROBE_SIZE], Status::Invalid),
        };
        reply(guest, chain, &properties, status)
    }

    /// Gives a request back, unless the driver has taken its queue away.
    fn give_back<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        chain: &Chain,
        written: u32,
    ) {
        self.give_back_to(REQUESTS, guest, chain, written);
    }

    /// Gives a buffer of a queue back, unless the driver has taken the queue away.
    pub(super) fn give_back_to<M: PhysMemory>(
        &mut self,
        queue: usize,
        guest: &GuestMemory<'_, M>,
        chain: &Chain,
        written: u32,
    ) {
        let Some(queue) = self.registers.queues.get_mut(queue) else {
            return;
        };
        if !queue.is_ready {
            return;
        }
        match queue.ring.give_back(guest, chain, written) {
            Ok(true) => self.registers.interrupt.insert(Interrupt::USED),
            Ok(false) => {}
            Err(Broken) => self.registers.demand_reset(),
        }
    }

    /// For [`Sabotage::UnmapOrder`]: an unmap is answered at once and done when
    /// the next request comes.
    fn hold_back(&mut self, task: Task) -> Task {
        match task {
            Task::Unmap { host, range } if is_active(Sabotage::UnmapOrder) => {
                self.held_back.hold((host, range));
                Task::Answer
            }
            task => task,
        }
    }
}

/// The size of the tail: the status and three reserved bytes.
const TAIL: usize = 4;

/// Writes an answer and returns its length: 0 if the driver left no room for the
/// status. Where it left too little for the properties, the status is the end of
/// what there is.
fn reply<M: PhysMemory>(
    guest: &GuestMemory<'_, M>,
    chain: &Chain,
    properties: &[u8],
    status: Status,
) -> u32 {
    let whole = properties.len() + TAIL;
    let length = chain.writable().min(whole as u64) as usize;
    let Some(tail) = length.checked_sub(TAIL) else {
        return 0;
    };
    let mut bytes = [0; PROBE_SIZE + TAIL];
    if let (true, Some(to)) = (length == whole, bytes.get_mut(..tail)) {
        to.copy_from_slice(properties);
    }
    if let Some(to) = bytes.get_mut(tail) {
        *to = status as u8;
    }
    match chain.write(guest, &bytes[..length]) {
        Some(()) => length as u32,
        None => 0,
    }
}

fn status_of_unit(error: UnitError) -> Status {
    match error {
        UnitError::OutOfMemory => Status::NoMemory,
        UnitError::OutOfRange | UnitError::NoAnswer | UnitError::DeviceTlb => Status::DevErr,
    }
}

/// The answer to a MAP that the host side refused, unless it failed altogether.
fn status_of_map(error: MapError) -> Result<Status, SpaceError> {
    Ok(match error {
        MapError::NoDomain => Status::NoEntry,
        MapError::OutOfRange | MapError::Unaligned => Status::Range,
        MapError::NotGuestMemory => Status::Fault,
        MapError::Overlap => Status::Invalid,
        MapError::TooManyMappings | MapError::OutOfMemory => Status::NoMemory,
        MapError::Unit(error) => return Err(SpaceError::Unit(error)),
    })
}
