//! What has to be known of a controller to make another one the same.

use super::NvmeError;
use super::command::{BEHAVIOR_BYTES, Command, Completion, admin};
use super::register::{capabilities, configuration};
use crate::PAGE_SIZE;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Queues of each kind: the admin queue, number 0, and as many for I/O as fit.
pub const MAX_QUEUES: usize = 9;
/// The most Asynchronous Event Requests that wait in a controller.
pub(super) const MAX_EVENTS: usize = 16;
/// The most features that can be set.
pub(super) const MAX_FEATURES: usize = 16;

/// A submission queue.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SubmissionQueue {
    /// Its IOVA.
    pub base: u64,
    /// How many entries; 0: there is no such queue.
    pub entries: u32,
    /// The next entry the guest will fill. At rest the controller's head is here too.
    pub tail: u32,
    /// The completion queue it goes with.
    pub completion: u16,
    /// Its priority, 0 to 3.
    pub priority: u16,
    /// Zero.
    pub reserved: u32,
}

/// A completion queue.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CompletionQueue {
    /// Its IOVA.
    pub base: u64,
    /// How many entries; 0: there is no such queue.
    pub entries: u32,
    /// The next entry the guest will look at.
    pub head: u32,
    /// The phase tag that makes the entry at `head` a new one.
    pub phase: u32,
    /// New entries the guest has not looked at, as of the last look at a controller
    /// at rest.
    pub waiting: u32,
    /// Commands submitted that the guest has seen no completion of.
    pub outstanding: u32,
    /// The interrupt vector.
    pub vector: u16,
    /// 1 if it interrupts.
    pub interrupts: u16,
}

/// A feature that was set.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Feature {
    /// The namespace.
    pub namespace: u32,
    /// Dwords 10 to 15 of the command.
    pub words: [u32; 6],
}

/// The state of a controller at rest, as it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NvmeState {
    /// CAP, to check that the controllers are alike.
    pub capabilities: u64,
    /// CC.
    pub configuration: u32,
    /// How many of `events` there are.
    pub event_count: u32,
    /// By number.
    pub submission: [SubmissionQueue; MAX_QUEUES],
    /// By number.
    pub completion: [CompletionQueue; MAX_QUEUES],
    /// Ids of the event requests that wait.
    pub events: [u16; MAX_EVENTS],
    /// In the order they were set.
    pub features: [Feature; MAX_FEATURES],
    /// How many of `features` there are.
    pub feature_count: u32,
    /// 1 if `behavior` was set.
    pub has_behavior: u32,
    /// The Host Behavior Support feature.
    pub behavior: [u64; BEHAVIOR_BYTES / 8],
}

/// A run of the device's address space, in whole pages, that a ring takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingPages {
    /// The first IOVA.
    pub start: u64,
    /// How many pages.
    pub pages: u64,
    /// Which scratch page stands in for all of them: an index into
    /// [`super::Scratch`].
    pub scratch: usize,
}

/// A controller that was never turned on.
impl Default for NvmeState {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl SubmissionQueue {
    pub(super) const fn exists(&self) -> bool {
        self.entries != 0
    }
}

impl CompletionQueue {
    pub(super) const fn exists(&self) -> bool {
        self.entries != 0
    }

    /// The entry `count` after `at`, both 0 to `entries`.
    pub(super) const fn after(&self, at: u32, count: u32) -> u32 {
        ((at as u64 + count as u64) % self.entries as u64) as u32
    }

    /// How many completions, modulo two laps, bring a new queue to where this one
    /// is: two, for the phase changes with every lap.
    pub(super) fn position(&self) -> u64 {
        let tail = u64::from(self.head) + u64::from(self.waiting);
        let lap = u64::from(self.phase == 0);
        (tail + lap * u64::from(self.entries)) % self.lap_pair()
    }

    pub(super) fn lap_pair(&self) -> u64 {
        2 * u64::from(self.entries)
    }
}

impl NvmeState {
    /// Whether the controller works, and so has queues.
    pub fn is_enabled(&self) -> bool {
        self.configuration & configuration::ENABLE != 0
    }

    /// The event requests that wait.
    pub fn events(&self) -> &[u16] {
        let count = (self.event_count as usize).min(MAX_EVENTS);
        &self.events[..count]
    }

    /// The features that were set.
    pub fn features(&self) -> &[Feature] {
        let count = (self.feature_count as usize).min(MAX_FEATURES);
        &self.features[..count]
    }

    /// The vectors of queues with entries that the guest has not looked at.
    pub fn waiting_vectors(&self) -> impl Iterator<Item = usize> + '_ {
        self.completion
            .iter()
            .filter(|queue| queue.exists() && queue.interrupts != 0 && queue.waiting != 0)
            .map(|queue| queue.vector.into())
    }

    /// The submission queues that go with completion queue `number`.
    pub(super) fn feeding(
        &self,
        number: usize,
    ) -> impl Iterator<Item = (usize, &SubmissionQueue)> + '_ {
        self.submission
            .iter()
            .enumerate()
            .filter(move |(_, queue)| queue.exists() && usize::from(queue.completion) == number)
    }

    /// A submission queue for I/O, whose place can be lent to data while the queues
    /// do not work yet.
    pub(super) fn io_submission(&self) -> Option<&SubmissionQueue> {
        self.submission.iter().skip(1).find(|queue| queue.exists())
    }

    /// Where the rings are.
    pub fn rings(&self) -> impl Iterator<Item = RingPages> + '_ {
        let pages = |entries: u32, bytes: u64| (u64::from(entries) * bytes).div_ceil(PAGE_SIZE);
        let submission = self.submission.iter().enumerate().map(move |(index, it)| {
            let scratch = if index == 0 { 0 } else { 2 };
            (it.base, pages(it.entries, Command::BYTES), scratch)
        });
        let completion = self.completion.iter().enumerate().map(move |(index, it)| {
            let scratch = if index == 0 { 1 } else { 3 };
            (it.base, pages(it.entries, Completion::BYTES), scratch)
        });
        submission
            .chain(completion)
            .filter(|(_, pages, _)| self.is_enabled() && *pages > 0)
            .map(|(start, pages, scratch)| RingPages {
                start,
                pages,
                scratch,
            })
    }

    /// Checks a state that came from outside: a controller with the capabilities
    /// `cap` can have it, at rest.
    pub(super) fn check(&self, cap: u64) -> Result<(), NvmeError> {
        if self.capabilities != cap {
            return Err(NvmeError::OtherController {
                ours: cap,
                theirs: self.capabilities,
            });
        }
        let is_counted =
            self.event_count as usize <= MAX_EVENTS && self.feature_count as usize <= MAX_FEATURES;
        if !is_counted {
            return Err(NvmeError::ImpossibleState);
        }
        if !self.is_enabled() {
            return Ok(());
        }
        let most = capabilities::max_entries(cap).max(ADMIN_ENTRIES);
        let is_ring = |base: u64, entries: u32| {
            (2..=most).contains(&entries)
                && base.is_multiple_of(PAGE_SIZE)
                && base
                    .checked_add(u64::from(entries) * Command::BYTES)
                    .is_some()
        };
        let submission_is_right = |queue: &SubmissionQueue| {
            let target = self.completion.get(usize::from(queue.completion));
            is_ring(queue.base, queue.entries)
                && queue.tail < queue.entries
                && target.is_some_and(CompletionQueue::exists)
        };
        let completion_is_right = |queue: &CompletionQueue| {
            is_ring(queue.base, queue.entries)
                && queue.head < queue.entries
                && queue.waiting < queue.entries
                && queue.phase <= 1
        };
        let is_right = self.submission[0].exists()
            && self.completion[0].exists()
            && self.submission[0].completion == 0
            && self
                .submission
                .iter()
                .filter(|it| it.exists())
                .all(submission_is_right)
            && self
                .completion
                .iter()
                .filter(|it| it.exists())
                .all(completion_is_right)
            && self.submission[1..]
                .iter()
                .all(|it| !it.exists() || it.completion != 0);
        is_right.then_some(()).ok_or(NvmeError::ImpossibleState)
    }
}

/// The most entries of an admin queue, whatever CAP.MQES is (AQA has 12 bits).
const ADMIN_ENTRIES: u32 = 4096;

/// A feature as a command that sets it.
impl From<&Feature> for Command {
    fn from(feature: &Feature) -> Self {
        Self {
            namespace: feature.namespace,
            ..Self::new(admin::SET_FEATURES, feature.words)
        }
    }
}
