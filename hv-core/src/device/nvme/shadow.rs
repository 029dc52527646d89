//! What the guest did to its controller, as far as another one must be told.
//!
//! Doorbells say how far each queue is. Commands on the admin queue say which queues
//! there are: they are read when the guest rings for them, and count once their
//! completion is there.

use super::command::{BEHAVIOR_BYTES, Command, Completion, admin, feature};
use super::effect::Effect;
use super::state::{
    CompletionQueue, Feature, MAX_EVENTS, MAX_FEATURES, MAX_QUEUES, NvmeState, SubmissionQueue,
};
use super::{GuestDma, NvmeError};
use crate::PAGE_SIZE;
use heapless::Vec;
use zerocopy::{FromZeros, IntoBytes};

/// How many admin commands may be under way.
const MAX_PENDING: usize = 64;

/// An admin command that is not completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pending {
    id: u16,
    effect: Effect,
}

/// The shadow of a controller.
pub(super) struct Shadow {
    state: NvmeState,
    pending: Vec<Pending, MAX_PENDING>,
    /// The admin completion that comes next, and its phase.
    next: u32,
    next_phase: u32,
    /// Host Behavior Support that the controller has not accepted yet.
    offered_behavior: [u64; BEHAVIOR_BYTES / 8],
    /// Why this controller cannot be carried across, if it cannot.
    obstacle: Option<NvmeError>,
}

/// The shadow of a controller that was reset.
impl Default for Shadow {
    fn default() -> Self {
        Self {
            state: NvmeState::default(),
            pending: Vec::new(),
            next: 0,
            next_phase: 0,
            offered_behavior: [0; BEHAVIOR_BYTES / 8],
            obstacle: None,
        }
    }
}

impl Shadow {
    /// The shadow of a controller with this state.
    pub(super) fn of(state: &NvmeState) -> Self {
        let mut shadow = Self {
            state: *state,
            ..Self::default()
        };
        for id in state.events() {
            let effect = Effect::Event;
            // There are fewer than fit.
            let _ = shadow.pending.push(Pending { id: *id, effect });
        }
        // At rest nothing is under way but event requests.
        for queue in &mut shadow.state.completion {
            queue.outstanding = queue.waiting;
        }
        let events = shadow.state.events().len() as u32;
        let admin = &mut shadow.state.completion[0];
        admin.outstanding += events;
        (shadow.next, shadow.next_phase) = (admin.head, admin.phase);
        shadow
    }

    /// The controller is turned on, with its admin queues where the registers say.
    pub(super) fn enable(&mut self, cc: u32, aqa: u32, asq: u64, acq: u64) {
        *self = Self::default();
        self.state.configuration = cc;
        self.state.submission[0] = SubmissionQueue {
            base: asq,
            entries: (aqa & 0xfff) + 1,
            ..SubmissionQueue::default()
        };
        self.state.completion[0] = CompletionQueue {
            base: acq,
            entries: (aqa >> 16 & 0xfff) + 1,
            phase: 1,
            interrupts: 1,
            ..CompletionQueue::default()
        };
        self.next_phase = 1;
    }

    /// The guest changes what can be changed of a controller that works.
    pub(super) fn reconfigure(&mut self, cc: u32) {
        self.state.configuration = cc;
    }

    /// The controller is turned off: it forgets everything.
    pub(super) fn disable(&mut self, cc: u32) {
        *self = Self::default();
        self.state.configuration = cc;
    }

    /// Whether the controller works.
    pub(super) fn is_enabled(&self) -> bool {
        self.state.is_enabled()
    }

    /// The guest rings for new entries of submission queue `number` up to `tail`.
    /// Returns how many there are.
    pub(super) fn submitted(&mut self, dma: &impl GuestDma, number: usize, tail: u32) -> u32 {
        let Some(queue) = self.state.submission.get(number).copied() else {
            return 0;
        };
        if !queue.exists() || tail >= queue.entries {
            return 0;
        }
        if number == 0 {
            self.take_completions(dma);
            self.read_commands(dma, &queue, tail);
        }
        let count = (tail + queue.entries - queue.tail) % queue.entries;
        self.state.submission[number].tail = tail;
        if let Some(target) = self.state.completion.get_mut(usize::from(queue.completion)) {
            target.outstanding = target.outstanding.saturating_add(count);
        }
        count
    }

    /// The guest has looked at completion queue `number` up to `head`.
    pub(super) fn consumed(&mut self, dma: &impl GuestDma, number: usize, head: u32) {
        if number == 0 {
            self.take_completions(dma);
        }
        let Some(queue) = self.state.completion.get_mut(number) else {
            return;
        };
        if !queue.exists() || head >= queue.entries {
            return;
        }
        let count = (head + queue.entries - queue.head) % queue.entries;
        queue.outstanding = queue.outstanding.saturating_sub(count);
        queue.phase ^= u32::from(head < queue.head);
        queue.head = head;
    }

    /// Whether every command is completed. Then the state is what another controller
    /// must have.
    pub(super) fn rest(&mut self, dma: &impl GuestDma) -> Result<bool, NvmeError> {
        if !self.is_enabled() {
            return Ok(true);
        }
        self.take_completions(dma);
        if let Some(obstacle) = self.obstacle {
            return Err(obstacle);
        }
        let mut is_resting = true;
        for number in 0..MAX_QUEUES {
            let queue = self.state.completion[number];
            if !queue.exists() {
                continue;
            }
            if number > 0 && self.state.feeding(number).next().is_none() && queue.position() > 0 {
                return Err(NvmeError::UnfedQueue);
            }
            let waiting = new_entries(dma, &queue)?;
            self.state.completion[number].waiting = waiting;
            let open = queue.outstanding.saturating_sub(waiting);
            let events = if number == 0 {
                self.events().count()
            } else {
                0
            };
            is_resting &= open as usize == events;
        }
        Ok(is_resting)
    }

    /// The state of a controller at rest, but for its capabilities.
    pub(super) fn state(&self) -> Result<NvmeState, NvmeError> {
        if self.state.has_behavior != 0 && self.state.io_submission().is_none() {
            // There would be no place for its data while the other is rebuilt.
            return Err(NvmeError::FeatureWithData(feature::HOST_BEHAVIOR));
        }
        let mut state = self.state;
        let mut count = 0;
        for id in self.events() {
            *state.events.get_mut(count).ok_or(NvmeError::TooMuch)? = id;
            count += 1;
        }
        state.event_count = count as u32;
        Ok(state)
    }

    fn events(&self) -> impl Iterator<Item = u16> + '_ {
        let waiting = self.pending.iter();
        waiting
            .filter(|pending| pending.effect == Effect::Event)
            .map(|pending| pending.id)
    }

    /// Notes the admin commands from the queue's tail up to `tail`. One that would
    /// make this shadow worthless is made one that the controller refuses.
    fn read_commands(&mut self, dma: &impl GuestDma, queue: &SubmissionQueue, tail: u32) {
        let mut index = queue.tail;
        while index != tail {
            let at = queue.base.wrapping_add(u64::from(index) * Command::BYTES);
            let mut command = Command::default();
            if !dma.read(at, command.as_mut_bytes()) {
                // The controller will not be able to read it either.
                self.obstacle = Some(NvmeError::Unreadable);
                return;
            }
            if command.opcode == admin::DOORBELL_BUFFER && !dma.write(at, &[admin::NONE]) {
                self.obstacle = Some(NvmeError::Unreadable);
            }
            self.note(dma, &command);
            index = (index + 1) % queue.entries;
        }
    }

    fn note(&mut self, dma: &impl GuestDma, command: &Command) {
        let effect = match Effect::of(command) {
            Ok(Some(effect)) => effect,
            Ok(None) => return,
            Err(obstacle) => {
                self.obstacle = Some(obstacle);
                return;
            }
        };
        let mut behavior = [0; BEHAVIOR_BYTES / 8];
        if effect == Effect::SetBehavior {
            if !read_within_page(dma, command.data[0], behavior.as_mut_bytes()) {
                self.obstacle = Some(NvmeError::FeatureWithData(feature::HOST_BEHAVIOR));
            }
            self.offered_behavior = behavior;
        }
        let id = command.id;
        if self.pending.push(Pending { id, effect }).is_err() {
            self.obstacle = Some(NvmeError::TooMuch);
        }
    }

    /// Takes the admin completions that are there and were not seen before.
    fn take_completions(&mut self, dma: &impl GuestDma) {
        let queue = self.state.completion[0];
        // Bounded, though the guest may write there as it likes.
        for _ in 0..queue.entries {
            let Some(completion) = entry(dma, &queue, self.next) else {
                return;
            };
            if completion.phase() != self.next_phase {
                return;
            }
            self.next = queue.after(self.next, 1);
            self.next_phase ^= u32::from(self.next == 0);
            let found = self.pending.iter().position(|it| it.id == completion.id);
            let Some(index) = found else {
                continue;
            };
            let Pending { effect, .. } = self.pending.swap_remove(index);
            if completion.is_success() {
                self.apply(effect);
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        let NvmeState {
            submission,
            completion,
            ..
        } = &mut self.state;
        match effect {
            Effect::CreateSubmission(number, queue) => submission[number] = queue,
            Effect::CreateCompletion(number, queue) => completion[number] = queue,
            Effect::DeleteSubmission(number) if number > 0 => {
                if let Some(queue) = submission.get_mut(number) {
                    queue.zero();
                }
            }
            Effect::DeleteCompletion(number) if number > 0 => {
                if let Some(queue) = completion.get_mut(number) {
                    queue.zero();
                }
            }
            Effect::Set(feature) => self.set_feature(feature),
            Effect::SetBehavior => {
                self.state.has_behavior = 1;
                self.state.behavior = self.offered_behavior;
            }
            Effect::DeleteSubmission(_) | Effect::DeleteCompletion(_) | Effect::Event => {}
        }
    }

    /// Notes a feature, in the place of what was set before.
    fn set_feature(&mut self, feature: Feature) {
        let count = self.state.features().len();
        let is_same = |one: &Feature| {
            (one.namespace, one.words[0] as u8) == (feature.namespace, feature.words[0] as u8)
        };
        let index = self.state.features().iter().position(is_same);
        match self.state.features.get_mut(index.unwrap_or(count)) {
            Some(place) => {
                *place = feature;
                self.state.feature_count += u32::from(index.is_none());
            }
            None => self.obstacle = Some(NvmeError::TooMuch),
        }
    }
}

const _: () = assert!(MAX_EVENTS < MAX_PENDING && MAX_FEATURES > 0);

/// How many entries from the head of `queue` on are new.
fn new_entries(dma: &impl GuestDma, queue: &CompletionQueue) -> Result<u32, NvmeError> {
    // A queue is full with one entry less than it has.
    for count in 0..queue.entries - 1 {
        let index = queue.after(queue.head, count);
        let phase = queue.phase ^ u32::from(index < queue.head);
        let entry = entry(dma, queue, index).ok_or(NvmeError::Unreadable)?;
        if entry.phase() != phase {
            return Ok(count);
        }
    }
    Ok(queue.entries - 1)
}

fn entry(dma: &impl GuestDma, queue: &CompletionQueue, index: u32) -> Option<Completion> {
    let at = queue
        .base
        .checked_add(u64::from(index) * Completion::BYTES)?;
    let mut entry = Completion::default();
    dma.read(at, entry.as_mut_bytes()).then_some(entry)
}

/// Reads data that does not cross the end of a page.
fn read_within_page(dma: &impl GuestDma, at: u64, to: &mut [u8]) -> bool {
    at % PAGE_SIZE + to.len() as u64 <= PAGE_SIZE && dma.read(at, to)
}
