//! Making a reset controller one that a guest can go on with.
//!
//! A new queue starts at entry 0 in phase 1; the guest's are anywhere. Nothing sets
//! a controller's indexes, but every command that it completes moves them on. So the
//! rings are filled with harmless commands until each is where the guest's is. The
//! guest sees nothing of that: meanwhile the device reaches scratch pages in the
//! place of the rings, and nothing else.
//!
//! # How many commands
//! A submission queue moves on by one for each of its commands, a completion queue
//! for each command of all queues that feed it. To where queue `s` is it takes
//! `tail(s)` commands, less than a lap; to where completion queue `c` is, in the
//! right phase, `position(c)` modulo two laps. What the one lacks after all others
//! are done is made up before: by a submission queue that is made for this, used for
//! as many laps as it takes, and deleted again. The admin queues cannot be deleted;
//! there the number has to suit both, and does, for the guest got there too: its
//! event requests that are still open have taken a submission and no completion.
//!
//! The last completions that the guest has not looked at are not acknowledged.

use super::command::{Command, Completion, FLUSH, admin, feature};
use super::pair::Pair;
use super::register::{ACQ, AQA, ASQ, CC, CSTS, DOORBELLS, capabilities, configuration, status};
use super::shadow::Shadow;
use super::state::{
    CompletionQueue, MAX_EVENTS, MAX_FEATURES, MAX_QUEUES, NvmeState, SubmissionQueue,
};
use super::{Nvme, NvmeError};
use crate::memory::Frame;
use crate::mmio::Mmio;
use zerocopy::{FromZeros, IntoBytes};

/// How many pages of the hypervisor the rings are replaced by.
pub const SCRATCH_PAGES: usize = 4;
/// How many commands are under way at a time: as many as fit a page. What takes long is
/// less a command than the way to the controller and back.
const BATCH: u32 = 64;
/// As many admin commands as rebuilding takes at the most, but for turning.
const REBUILDING: u64 = (MAX_FEATURES + 4 * MAX_QUEUES + MAX_EVENTS) as u64;

/// Pages of the hypervisor that the device reaches in the place of the rings (see
/// [`NvmeState::rings`]), and which are nobody else's. All pages of a ring are the
/// same one, and so are all I/O rings of a kind: one is used at a time.
pub struct Scratch<'a> {
    /// In the order of [`super::RingPages::scratch`].
    pub pages: [&'a Frame; SCRATCH_PAGES],
}

impl<R: Mmio> Nvme<R> {
    /// Makes the controller one in `state`. The device reaches `scratch` and nothing
    /// else, and its interrupts go nowhere. `relax` is called while waiting; it says
    /// whether to wait on. Returns how many commands it took: up to two laps of every
    /// completion queue.
    pub fn restore(
        &mut self,
        state: &NvmeState,
        scratch: &Scratch<'_>,
        relax: &mut dyn FnMut() -> bool,
    ) -> Result<u64, NvmeError> {
        self.check(state)?;
        let builder = Builder {
            registers: &self.registers,
            stride: capabilities::doorbell_stride(state.capabilities),
            state,
            scratch,
        };
        builder.start(relax)?;
        let commands = match state.is_enabled() {
            true => builder.build(relax)?,
            false => 0,
        };
        self.shadow = Shadow::of(state);
        Ok(commands)
    }
}

/// What does not change while a controller is rebuilt.
struct Builder<'a, R> {
    registers: &'a R,
    stride: u64,
    state: &'a NvmeState,
    scratch: &'a Scratch<'a>,
}

impl<R: Mmio> Builder<'_, R> {
    /// Turns the controller off, and on again if the guest has it on.
    fn start(&self, relax: &mut dyn FnMut() -> bool) -> Result<(), NvmeError> {
        let write = |at: u64, value: u32| self.registers.write32(at as usize, value);
        write(CC, 0);
        self.wait_ready(0, relax)?;
        let (submission, completion) = (&self.state.submission[0], &self.state.completion[0]);
        if self.state.is_enabled() {
            write(
                AQA,
                (completion.entries - 1) << 16 | (submission.entries - 1),
            );
            for (at, base) in [(ASQ, submission.base), (ACQ, completion.base)] {
                write(at, base as u32);
                write(at + 4, (base >> 32) as u32);
            }
        }
        write(CC, self.state.configuration);
        let ready = self.state.configuration & configuration::ENABLE;
        self.wait_ready(ready * status::READY, relax)
    }

    fn wait_ready(&self, wanted: u32, relax: &mut dyn FnMut() -> bool) -> Result<(), NvmeError> {
        while self.registers.read32(CSTS as usize) & (status::READY | status::FATAL) != wanted {
            if !relax() {
                return Err(NvmeError::Stuck);
            }
        }
        Ok(())
    }

    /// All queues, each where the guest's is; how many commands that took.
    fn build(&self, relax: &mut dyn FnMut() -> bool) -> Result<u64, NvmeError> {
        let mut admin = self.admin_pair()?;
        let mut turned = 0;
        for feature in self.state.features() {
            self.command(&mut admin, feature.into(), relax)?;
        }
        if self.state.has_behavior != 0 {
            self.set_behavior(&mut admin, relax)?;
        }
        for number in 1..MAX_QUEUES {
            if self.state.completion[number].exists() {
                turned += self.build_queues(&mut admin, number, relax)?;
            }
        }
        let harmless = Command::new(
            admin::GET_FEATURES,
            [feature::NUMBER_OF_QUEUES.into(), 0, 0, 0, 0, 0],
        );
        for id in self.state.events() {
            let request = Command {
                id: *id,
                ..Command::new(admin::EVENT_REQUEST, [0; 6])
            };
            admin.put(request)?;
            self.ring(&admin);
            // Nothing completes it: that it was read is known from one behind it.
            self.turn(&mut admin, harmless, 1, relax)?;
        }
        let left = (admin.limit + u64::from(self.state.completion[0].waiting))
            .checked_sub(admin.seen)
            .ok_or(NvmeError::ImpossibleState)?;
        self.turn(&mut admin, harmless, left, relax)?;
        Ok(turned + admin.seen)
    }

    /// The data of this feature is put where a ring will be.
    fn set_behavior(
        &self,
        admin: &mut Pair<'_>,
        relax: &mut dyn FnMut() -> bool,
    ) -> Result<(), NvmeError> {
        let ring = self.state.io_submission();
        let ring = ring.ok_or(NvmeError::ImpossibleState)?;
        self.scratch.pages[2].write_bytes(0, self.state.behavior.as_bytes());
        let set = Command {
            data: [ring.base, 0],
            ..Command::new(
                admin::SET_FEATURES,
                [feature::HOST_BEHAVIOR.into(), 0, 0, 0, 0, 0],
            )
        };
        self.command(admin, set, relax)
    }

    /// The admin queues, with the number of completions that brings both to where
    /// the guest's are.
    fn admin_pair(&self) -> Result<Pair<'_>, NvmeError> {
        let (submission, completion) = (self.state.submission[0], self.state.completion[0]);
        let events = self.state.events().len() as u64;
        let entries = u64::from(submission.entries);
        // All of the commands can be acknowledged.
        let pair = completion.lap_pair();
        let least = (REBUILDING + u64::from(completion.waiting)).div_ceil(pair);
        let total = (least..least + entries)
            .map(|laps| completion.position() + laps * pair)
            .find(|total| (total + events) % entries == u64::from(submission.tail))
            .ok_or(NvmeError::ImpossibleState)?;
        Ok(self.pair((0, &submission), 0, total))
    }

    /// Makes completion queue `number` and those that feed it, and turns them; by how
    /// many commands.
    fn build_queues(
        &self,
        admin: &mut Pair<'_>,
        number: usize,
        relax: &mut dyn FnMut() -> bool,
    ) -> Result<u64, NvmeError> {
        let completion = &self.state.completion[number];
        self.command(admin, create_completion(number, completion), relax)?;
        let turns = || {
            self.state
                .feeding(number)
                .map(|(_, queue)| u64::from(queue.tail))
        };
        let fed: u64 = turns().sum();
        // Modulo two laps, and not less than what stays without acknowledgement.
        let pair = completion.lap_pair();
        let mut before = (completion.position() + pair - fed % pair) % pair;
        if before + fed < completion.waiting.into() {
            before += pair;
        }
        let flush = Command {
            namespace: 1,
            ..Command::new(FLUSH, [0; 6])
        };
        let mut feeding = self.state.feeding(number);
        let Some(first) = feeding.next() else {
            // It was never used.
            return Ok(0);
        };
        let mut rings = self.pair(first, number, before + fed);
        if before > 0 {
            self.command(admin, create_submission(first), relax)?;
            self.turn(&mut rings, flush, before, relax)?;
            let number = first.0 as u32;
            let delete = Command::new(admin::DELETE_SUBMISSION, [number, 0, 0, 0, 0, 0]);
            self.command(admin, delete, relax)?;
        }
        for queue in core::iter::once(first).chain(feeding) {
            self.command(admin, create_submission(queue), relax)?;
            rings.submission = queue.0;
            rings.submission_entries = queue.1.entries;
            (rings.tail, rings.head) = (0, 0);
            self.turn(&mut rings, flush, queue.1.tail.into(), relax)?;
        }
        Ok(rings.seen)
    }

    /// Rings at their beginning, for `total` completions.
    fn pair(
        &self,
        (number, submission): (usize, &SubmissionQueue),
        completion: usize,
        total: u64,
    ) -> Pair<'_> {
        let shape = self.state.completion[completion];
        let first = if completion == 0 { 0 } else { 2 };
        Pair {
            submission_page: self.scratch.pages[first],
            completion_page: self.scratch.pages[first + 1],
            submission: number,
            completion,
            submission_entries: submission.entries,
            tail: 0,
            head: 0,
            shape,
            seen: 0,
            limit: total.saturating_sub(shape.waiting.into()),
            acknowledged: 0,
        }
    }

    /// Has one command carried out, successfully.
    fn command(
        &self,
        rings: &mut Pair<'_>,
        command: Command,
        relax: &mut dyn FnMut() -> bool,
    ) -> Result<(), NvmeError> {
        let opcode = command.opcode;
        rings.forget(1);
        rings.put(command)?;
        self.ring(rings);
        let completion = self.next(rings, relax)?;
        self.acknowledge(rings);
        match completion.is_success() {
            true => Ok(()),
            false => Err(NvmeError::Refused {
                opcode,
                status: completion.status >> 1,
            }),
        }
    }

    /// Has `count` commands completed, in whatever way.
    fn turn(
        &self,
        rings: &mut Pair<'_>,
        command: Command,
        count: u64,
        relax: &mut dyn FnMut() -> bool,
    ) -> Result<(), NvmeError> {
        let mut left = count;
        while left > 0 {
            let unacknowledged = (rings.seen - rings.acknowledged) as u32;
            let places = (rings.shape.entries - 1).saturating_sub(unacknowledged);
            let batch = BATCH
                .min(rings.room())
                .min(places)
                .min(u32::try_from(left).unwrap_or(BATCH));
            if batch == 0 {
                return Err(NvmeError::ImpossibleState);
            }
            rings.forget(batch);
            for id in 0..batch {
                let id = FIRST_ID + id as u16;
                rings.put(Command { id, ..command })?;
            }
            self.ring(rings);
            for _ in 0..batch {
                if self.next(rings, relax)?.id < FIRST_ID {
                    return Err(NvmeError::Event);
                }
            }
            self.acknowledge(rings);
            left -= u64::from(batch);
        }
        Ok(())
    }

    fn ring(&self, rings: &Pair<'_>) {
        self.doorbell(2 * rings.submission, rings.tail);
    }

    /// Waits for the completion that comes next.
    fn next(
        &self,
        rings: &mut Pair<'_>,
        relax: &mut dyn FnMut() -> bool,
    ) -> Result<Completion, NvmeError> {
        let at = rings.place(rings.seen);
        loop {
            // Its phase and its id are in one word, which is read at once.
            let mut completion = Completion::new_zeroed();
            rings
                .completion_page
                .read_bytes(at, completion.as_mut_bytes());
            if completion.phase() == rings.phase(rings.seen) {
                rings.seen += 1;
                rings.head = completion.submission_head.into();
                return Ok(completion);
            }
            if !relax() {
                return Err(NvmeError::Stuck);
            }
        }
    }

    /// Gives back the places of the completions that came, as far as that goes.
    fn acknowledge(&self, rings: &mut Pair<'_>) {
        let to = rings.seen.min(rings.limit);
        if to > rings.acknowledged {
            rings.acknowledged = to;
            let head = (to % u64::from(rings.shape.entries)) as u32;
            self.doorbell(2 * rings.completion + 1, head);
        }
    }

    fn doorbell(&self, index: usize, value: u32) {
        let at = DOORBELLS + index as u64 * self.stride;
        self.registers.write32(at as usize, value);
    }
}

/// The first command id for turning: far from what drivers use for event requests,
/// which may be open.
const FIRST_ID: u16 = 0xf000;

fn create_completion(number: usize, queue: &CompletionQueue) -> Command {
    let size = (queue.entries - 1) << 16 | number as u32;
    let flags = u32::from(queue.vector) << 16 | u32::from(queue.interrupts) << 1 | 1;
    Command {
        data: [queue.base, 0],
        ..Command::new(admin::CREATE_COMPLETION, [size, flags, 0, 0, 0, 0])
    }
}

fn create_submission((number, queue): (usize, &SubmissionQueue)) -> Command {
    let size = (queue.entries - 1) << 16 | number as u32;
    let flags = u32::from(queue.completion) << 16 | u32::from(queue.priority) << 1 | 1;
    Command {
        data: [queue.base, 0],
        ..Command::new(admin::CREATE_SUBMISSION, [size, flags, 0, 0, 0, 0])
    }
}
