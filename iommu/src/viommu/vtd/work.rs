//! The unit's work, in bounded steps: see [`crate::viommu::steps`].

use super::VtdViommu;
use super::queue::Fetched;
use super::registers::{BUSY, INTERRUPT_STATES};
use super::walk::{GuestTable, PageRun, context};
use crate::space::{Attachment, DmaSpace, SpaceError};
use crate::unit::DomainId;
use crate::viommu::steps::{Progress, Stepwise};
use crate::vtd::{FaultStatus, Global, IotlbScope};
use hv_core::PAGE_SHIFT;
use hv_core::memory::{GuestMemory, PhysMemory};

/// Devices, by their place in the list.
pub(super) type DeviceMask = u8;

/// What is being done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// These devices are brought in line with their context entries, lowest first.
    Devices {
        waiting: DeviceMask,
        filling: Option<Filling>,
    },
    /// The shadows of `domain` (of all, if `None`), from place `shadow` on, follow
    /// the guest's tables in `pages`; the first of them has `rest` left.
    Pages {
        domain: Option<u16>,
        pages: PageRun,
        shadow: usize,
        rest: Option<PageRun>,
    },
}

/// A new shadow on its way to hold all of the guest's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    table: GuestTable,
    host: DomainId,
    /// `None`: it is complete.
    rest: Option<PageRun>,
}

/// What asked for a task, and is told when it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Nobody: devices have to be somewhere from the beginning.
    Start,
    /// GCMD.TE.
    Translation,
    /// CCMD.
    ContextRegister,
    /// IOTLB.
    IotlbRegister,
    /// The descriptor at the queue's head.
    Queue,
    /// A descriptor that a sabotage reported as done before (see `queue`).
    HeldBack,
}

/// A task and its origin.
#[derive(Clone, Copy, Debug)]
pub(in crate::viommu) struct Job {
    pub(super) task: Task,
    pub(super) origin: Origin,
}

impl Job {
    pub(super) const fn devices(waiting: DeviceMask, origin: Origin) -> Self {
        let filling = None;
        Self {
            task: Task::Devices { waiting, filling },
            origin,
        }
    }

    pub(super) const fn iotlb(scope: IotlbScope, origin: Origin) -> Self {
        const ALL: PageRun = PageRun {
            first: 0,
            last: u64::MAX >> PAGE_SHIFT,
        };
        let (domain, pages) = match scope {
            IotlbScope::Global => (None, ALL),
            IotlbScope::Domain { domain } => (Some(domain), ALL),
            IotlbScope::Pages {
                domain,
                address,
                order,
                ..
            } => {
                // `order` is 18 at the most, checked where it was decoded.
                let below = (1 << order) - 1;
                let first = (address >> PAGE_SHIFT) & !below;
                (
                    Some(domain),
                    PageRun {
                        first,
                        last: first | below,
                    },
                )
            }
        };
        Self {
            task: Task::Pages {
                domain,
                pages,
                shadow: 0,
                rest: None,
            },
            origin,
        }
    }
}

/// What the unit is asked to do next, in this order of precedence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    Start,
    RootTable,
    InterruptTable,
    InterruptSwitch,
    QueueSwitch,
    Translation,
    ContextRegister,
    IotlbRegister,
    Descriptor,
}

impl Stepwise for VtdViommu {
    type Job = Job;

    fn job(&self) -> Option<Job> {
        self.job
    }

    fn set_job(&mut self, job: Option<Job>) {
        self.job = job;
    }

    fn is_asked(&self) -> bool {
        self.request().is_some()
    }

    fn begin<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        _: &impl DmaSpace,
    ) -> Option<Job> {
        let request = self.request()?;
        self.carry_out(request, guest)
    }

    fn advance<M: PhysMemory>(
        &mut self,
        job: Job,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        _: &mut u32,
    ) -> Result<Progress<Job>, SpaceError> {
        let next = self.next_task(job.task, guest, space)?;
        Ok(match next {
            Some(task) => Progress::More(Job { task, ..job }),
            None => Progress::Done(job),
        })
    }

    fn finish<M: PhysMemory>(&mut self, job: Job, _: &GuestMemory<'_, M>) {
        self.tell(job.origin);
    }
}

impl VtdViommu {
    fn request(&self) -> Option<Request> {
        let registers = &self.registers;
        let changes = registers.wanted ^ registers.status;
        let queue_runs = registers.status.contains(Global::QUEUED_INVALIDATION)
            && !registers.faults.status().contains(FaultStatus::QUEUE_ERROR);
        if !self.started {
            Some(Request::Start)
        } else if registers.root_wanted {
            Some(Request::RootTable)
        } else if registers.interrupt_table_wanted {
            Some(Request::InterruptTable)
        } else if changes.intersects(INTERRUPT_STATES) {
            Some(Request::InterruptSwitch)
        } else if changes.contains(Global::QUEUED_INVALIDATION) {
            Some(Request::QueueSwitch)
        } else if changes.contains(Global::TRANSLATION) {
            Some(Request::Translation)
        } else if registers.ccmd & BUSY != 0 {
            Some(Request::ContextRegister)
        } else if registers.iotlb & BUSY != 0 {
            Some(Request::IotlbRegister)
        } else if queue_runs && registers.head != registers.tail {
            Some(Request::Descriptor)
        } else {
            None
        }
    }

    /// Carries out what takes no time, and makes a job of everything else.
    fn carry_out<M: PhysMemory>(
        &mut self,
        request: Request,
        guest: &GuestMemory<'_, M>,
    ) -> Option<Job> {
        let registers = &mut self.registers;
        let everyone = DeviceMask::MAX;
        match request {
            Request::Start => {
                self.translating = registers.status.contains(Global::TRANSLATION);
                Some(Job::devices(everyone, Origin::Start))
            }
            Request::RootTable => {
                // Context entries from the old table stay in force until they are
                // invalidated, as the specification allows.
                registers.root = registers.rtaddr;
                registers.root_wanted = false;
                registers.status.insert(Global::ROOT_TABLE);
                None
            }
            Request::InterruptTable => {
                registers.interrupt_table = registers.irta;
                registers.interrupt_table_wanted = false;
                registers.status.insert(Global::INTERRUPT_TABLE);
                None
            }
            Request::InterruptSwitch => {
                let wanted = registers.wanted & INTERRUPT_STATES;
                registers.status.remove(INTERRUPT_STATES);
                registers.status.insert(wanted);
                None
            }
            Request::QueueSwitch => {
                registers.head = 0;
                registers.status.toggle(Global::QUEUED_INVALIDATION);
                None
            }
            Request::Translation => {
                self.translating = registers.wanted.contains(Global::TRANSLATION);
                Some(Job::devices(everyone, Origin::Translation))
            }
            Request::ContextRegister => self.begin_context_register(),
            Request::IotlbRegister => self.begin_iotlb_register(),
            Request::Descriptor => match self.fetch(guest) {
                Fetched::Job(job) => Some(job),
                Fetched::Done => {
                    self.tell(Origin::Queue);
                    None
                }
                Fetched::Malformed => {
                    self.registers.faults.queue_error();
                    None
                }
            },
        }
    }

    fn tell(&mut self, origin: Origin) {
        match origin {
            Origin::Start => self.started = true,
            Origin::Translation => {
                self.registers
                    .status
                    .set(Global::TRANSLATION, self.translating);
            }
            Origin::ContextRegister => self.finish_context_register(),
            Origin::IotlbRegister => self.finish_iotlb_register(),
            Origin::Queue => self.advance_head(),
            Origin::HeldBack => {}
        }
    }

    /// The task after its next step; `None` when it is done.
    fn next_task<M: PhysMemory>(
        &mut self,
        task: Task,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
    ) -> Result<Option<Task>, SpaceError> {
        match task {
            Task::Devices { waiting, filling } => {
                let index = waiting.trailing_zeros() as usize;
                if index >= self.shadows.devices().len() {
                    return Ok(None);
                }
                let filling = self.advance_device(index, filling, guest, space)?;
                let waiting = if filling.is_some() {
                    waiting
                } else {
                    waiting & (waiting - 1)
                };
                Ok(Some(Task::Devices { waiting, filling }))
            }
            Task::Pages {
                domain,
                pages,
                shadow,
                rest,
            } => {
                let Some((shadow, table, host)) = self.shadows.next_of(domain, shadow) else {
                    return Ok(None);
                };
                let run = rest.or(clip(pages, table.pages()));
                let rest = match run {
                    Some(run) => self.shadows.sync_chunk(&table, host, run, guest, space)?,
                    None => None,
                };
                let shadow = if rest.is_some() { shadow } else { shadow + 1 };
                Ok(Some(Task::Pages {
                    domain,
                    pages,
                    shadow,
                    rest,
                }))
            }
        }
    }

    /// Brings one device in line: finds out where it is to go and sends it there,
    /// or, if there is no shadow for that yet, starts one. Returns what has to be
    /// filled first.
    fn advance_device<M: PhysMemory>(
        &mut self,
        index: usize,
        filling: Option<Filling>,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
    ) -> Result<Option<Filling>, SpaceError> {
        match filling {
            Some(Filling {
                table,
                host,
                rest: Some(run),
            }) => {
                let rest = self.shadows.sync_chunk(&table, host, run, guest, space)?;
                Ok(Some(Filling { table, host, rest }))
            }
            Some(Filling {
                host, rest: None, ..
            }) => {
                self.shadows
                    .attach(index, Attachment::Domain(host), space)?;
                Ok(None)
            }
            None => {
                let to = match self.table_for(index, guest) {
                    Ok(table) => match self.shadows.find(&table) {
                        Some(host) => Attachment::Domain(host),
                        None => match self.shadows.create(table, space)? {
                            Some(host) => {
                                let rest = Some(table.pages());
                                return Ok(Some(Filling { table, host, rest }));
                            }
                            None => Attachment::Blocked,
                        },
                    },
                    Err(elsewhere) => elsewhere,
                };
                self.shadows.attach(index, to, space)?;
                Ok(None)
            }
        }
    }

    /// The guest's table that the device is to go through, or else where it goes.
    fn table_for<M: PhysMemory>(
        &self,
        index: usize,
        guest: &GuestMemory<'_, M>,
    ) -> Result<GuestTable, Attachment> {
        if !self.translating {
            return Err(Attachment::Identity);
        }
        let device = self
            .shadows
            .devices()
            .get(index)
            .ok_or(Attachment::Blocked)?;
        match context(guest, self.registers.root, self.width, device.ids.guest) {
            Ok(context) => Ok(GuestTable::of(&context)),
            Err(_) => Err(Attachment::Blocked),
        }
    }
}

/// What two runs have in common.
fn clip(a: PageRun, b: PageRun) -> Option<PageRun> {
    let (first, last) = (a.first.max(b.first), a.last.min(b.last));
    (first <= last).then_some(PageRun { first, last })
}
