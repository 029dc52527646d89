//! The source: pre-copy, the decision to stop, switchover.
//!
//! ```text
//!  Start ─Hello─> Connecting ─Accept─> Precopy <────────────┐
//!                                         │                 │ the rest takes too long
//!                                         └─RoundEnd─> RoundEnding
//!                                                           │ the rest fits the limit
//!                                                        Pausing
//!                                                           │ guest paused
//!  Sections <─ [Auditing] <─RoundEnd─ FinalPass <─harvest─ Quiescing
//!     │
//!   Final ─> Finishing ─Ready─> Leaving ═══last byte of Go═══> Gone ─Running─> Done
//!                                            point of no return
//! ```
//! Any failure, and a cancel, left of that line: the guest resumes here
//! ([`Outcome::Failed`]). To the right of it the guest stays paused; if `Running`
//! never comes the outcome is [`Outcome::InDoubt`], for the destination may run it.
//! One answer settles the doubt: an `Abort` there says that the destination has
//! thrown the guest away without starting it, so it resumes here.

mod outcome;
mod params;
mod pass;
mod precopy;
mod stats;
mod switchover;
mod vm;

pub use outcome::{Event, Outcome, SourceError, Status, Step};
pub use params::{NonConvergence, SourceParams};
pub use stats::{DirtyCounts, Downtime, RoundStats, Totals};
pub use vm::SourceVm;

use crate::link::{Link, LinkError};
use crate::stream::{ANSWER_BYTES, Config, Inbox, Kind, Outbox, RECORD_BYTES, Record, StreamError};
use crate::throttle::Throttle;
use core::task::Poll;
use hv_core::clock::Clock;
use pass::Pass;
use stats::Meter;

#[derive(Clone, Copy)]
enum State {
    /// Nothing was sent.
    Start,
    /// `Hello` was sent; awaits `Accept`.
    Connecting,
    /// Sends a pass while the guest runs.
    Precopy,
    /// The round's end is on its way; then comes the decision.
    RoundEnding,
    /// The decision to pause is made.
    Pausing,
    /// The guest is paused, its devices come to rest.
    Quiescing,
    /// Everything is at rest; sends the last pass.
    FinalPass,
    /// The last round's end is on its way.
    FinalPassEnding,
    /// Sends digests; `next` counts pages in the order of the config.
    Auditing { next: u64 },
    /// Sends device and CPU state.
    Sections { next: usize, continues: bool },
    /// `Final` was sent; awaits `Ready`.
    Finishing,
    /// `Go` is on its way, its last byte has not left.
    Leaving,
    /// `Go` was sent; awaits `Running`.
    Gone,
    /// It is over.
    Finished(Outcome),
}

impl State {
    const FIRST_SECTION: Self = Self::Sections {
        next: 0,
        continues: false,
    };
}

/// The engine of one migration away from this machine.
pub struct Source<'m> {
    params: SourceParams,
    config: Config,
    state: State,
    outbox: Outbox<&'m mut [u8; RECORD_BYTES]>,
    inbox: Inbox<[u8; ANSWER_BYTES]>,
    pass: Pass,
    throttle: Throttle,
    meter: Meter,
    /// What must be undone if it fails.
    tracking: bool,
    paused: bool,
    /// Since when the peer or the devices have been awaited in vain.
    stalled: Option<u64>,
    /// Send nothing before this time, for there is nothing to send.
    rest_until: u64,
    started: Option<u64>,
    precopy_began: u64,
    round_began: u64,
    /// Totals when the round began.
    round_bytes: u64,
    round_dirty: DirtyCounts,
    /// When the part of the downtime that is being measured began.
    part_began: u64,
    totals: Totals,
}

impl<'m> Source<'m> {
    /// A migration that has not begun. `buffer` holds one record.
    pub fn new(params: SourceParams, buffer: &'m mut [u8; RECORD_BYTES]) -> Self {
        Self {
            throttle: Throttle::new(params.max_bandwidth),
            params,
            config: Config::default(),
            state: State::Start,
            outbox: Outbox::new(buffer),
            inbox: Inbox::new([0; ANSWER_BYTES]),
            pass: Pass::all(),
            meter: Meter::default(),
            tracking: false,
            paused: false,
            stalled: None,
            rest_until: 0,
            started: None,
            precopy_began: 0,
            round_began: 0,
            round_bytes: 0,
            round_dirty: DirtyCounts::default(),
            part_began: 0,
            totals: Totals::default(),
        }
    }

    /// The migration so far.
    pub fn progress(&self) -> &Totals {
        &self.totals
    }

    /// Gives up: the guest runs on here. Returns whether that was still possible;
    /// after `Go` it is not, and nothing happens.
    pub fn cancel(&mut self, vm: &mut impl SourceVm, link: &mut impl Link) -> bool {
        let possible = !matches!(self.state, State::Gone | State::Finished(_));
        if possible {
            self.fail(SourceError::Cancelled, vm, link);
        }
        possible
    }

    /// Does a bounded piece of work. To be called often while the guest runs, and
    /// without pause once [`Event::Paused`] was reported.
    pub fn step(
        &mut self,
        vm: &mut impl SourceVm,
        link: &mut impl Link,
        clock: &impl Clock,
    ) -> Step {
        if let State::Finished(outcome) = self.state {
            return Step {
                status: Status::Finished(outcome),
                event: None,
            };
        }
        let now = clock.now_us();
        let started = *self.started.get_or_insert(now);
        self.meter.enter(now);
        let mut event = None;
        let status = match self.advance(vm, link, clock, &mut event) {
            Ok(status) => status,
            Err(error) => {
                let error = self.peers_reason(link).unwrap_or(error);
                Status::Finished(self.fail(error, vm, link))
            }
        };
        let now = clock.now_us();
        self.meter.leave(now, status == Status::WaitingForPeer);
        self.totals.elapsed_us = now.saturating_sub(started);
        Step { status, event }
    }

    fn advance(
        &mut self,
        vm: &mut impl SourceVm,
        link: &mut impl Link,
        clock: &impl Clock,
        event: &mut Option<Event>,
    ) -> Result<Status, SourceError> {
        self.hear(vm, link, clock, event)?;
        let mut budget = self.params.pages_per_step.max(1);
        loop {
            let now = clock.now_us();
            self.flush(link, now)?;
            if self.outbox.vacant().is_none() {
                return self.wait_for_peer(now);
            }
            if event.is_some() || budget == 0 {
                return Ok(Status::Working);
            }
            match self.state {
                State::Start => self.put_hello(vm)?,
                State::Precopy => {
                    if let Some(until) = self.throttled_until(now) {
                        return Ok(Status::ThrottledUntil(until));
                    }
                    self.put_pages(vm, &mut budget);
                }
                State::RoundEnding => *event = Some(self.end_round(vm, clock)?),
                State::Pausing => *event = Some(self.pause(vm, clock)),
                State::Quiescing => match vm.quiesce() {
                    Poll::Ready(result) => {
                        result?;
                        self.begin_final_pass(vm, clock);
                    }
                    Poll::Pending => return self.wait_for_devices(now),
                },
                State::FinalPass => self.put_pages(vm, &mut budget),
                State::FinalPassEnding => *event = Some(self.end_final_pass(vm, now)),
                State::Auditing { next } => self.put_digests(next, vm, now, &mut budget)?,
                State::Sections { next, continues } => {
                    self.put_section(next, continues, vm, now)?;
                }
                State::Connecting | State::Finishing | State::Leaving | State::Gone => {
                    return self.wait_for_peer(now);
                }
                State::Finished(outcome) => return Ok(Status::Finished(outcome)),
            }
        }
    }

    /// Takes the answers that are there.
    fn hear(
        &mut self,
        vm: &mut impl SourceVm,
        link: &mut impl Link,
        clock: &impl Clock,
        event: &mut Option<Event>,
    ) -> Result<(), SourceError> {
        let before = self.inbox.position();
        while let Some(record) = self.inbox.poll(link)? {
            match (self.state, record) {
                (State::Connecting, Record::Accept) => {
                    *event = Some(Event::Connected);
                    self.begin_precopy(vm, clock)?;
                }
                (State::Connecting, Record::Refuse(reason)) => {
                    return Err(SourceError::Refused(reason));
                }
                (State::Finishing, Record::Ready) => self.put_go()?,
                (State::Gone, Record::Running) => {
                    self.finish(clock.now_us(), link);
                    break;
                }
                (_, Record::Abort(reason)) => return Err(SourceError::Aborted(reason)),
                (_, record) => return Err(StreamError::Order(record.kind()).into()),
            }
        }
        if self.inbox.position() != before {
            self.stalled = None;
        }
        Ok(())
    }

    /// Sends what the link takes.
    fn flush(&mut self, link: &mut impl Link, now: u64) -> Result<(), LinkError> {
        let sent = self.outbox.flush(link)? as u64;
        if matches!(self.state, State::Leaving) && self.outbox.vacant().is_some() {
            // The point of no return. It is here and not later, so that no error
            // can be seen between the last byte and the change of state; and a link
            // that refuses that byte never delivers it, so it is not earlier.
            self.state = State::Gone;
        }
        self.totals.bytes += sent;
        self.meter.sent(sent);
        if !self.paused {
            self.throttle.spend(sent, now);
        }
        if sent > 0 {
            self.stalled = None;
        }
        Ok(())
    }

    /// The end of the enforced pause in pre-copy, if one is on.
    fn throttled_until(&mut self, now: u64) -> Option<u64> {
        self.stalled = None;
        let rest = (self.rest_until > now).then_some(self.rest_until);
        self.throttle.wait_until_us(now).max(rest)
    }

    fn wait_for_peer(&mut self, now: u64) -> Result<Status, SourceError> {
        let limit_ms = match self.state {
            State::Connecting => self.params.connect_timeout_ms,
            _ => self.params.progress_timeout_ms,
        };
        self.check_stall(now, limit_ms, SourceError::Timeout)
    }

    fn wait_for_devices(&mut self, now: u64) -> Result<Status, SourceError> {
        let limit_ms = self.params.quiesce_timeout_ms;
        self.check_stall(now, limit_ms, SourceError::QuiesceTimeout)
    }

    fn check_stall(
        &mut self,
        now: u64,
        limit_ms: u64,
        error: SourceError,
    ) -> Result<Status, SourceError> {
        let since = *self.stalled.get_or_insert(now);
        if now.saturating_sub(since) >= limit_ms.saturating_mul(1_000) {
            return Err(error);
        }
        Ok(Status::WaitingForPeer)
    }

    /// The reason the peer gave before it closed the link, if it is there to read.
    /// A send that fails does not tell it, and it decides who runs the guest.
    fn peers_reason(&mut self, link: &mut impl Link) -> Option<SourceError> {
        match self.inbox.poll(link) {
            Ok(Some(Record::Abort(reason))) => Some(SourceError::Aborted(reason)),
            Ok(Some(Record::Refuse(reason))) => Some(SourceError::Refused(reason)),
            _ => None,
        }
    }

    /// Ends the migration with an error: the guest runs on here, unless it may
    /// already run at the destination.
    fn fail(
        &mut self,
        error: SourceError,
        vm: &mut impl SourceVm,
        link: &mut impl Link,
    ) -> Outcome {
        let certain = matches!(error, SourceError::Aborted(_));
        let outcome = if matches!(self.state, State::Gone) && !certain {
            Outcome::InDoubt(error)
        } else {
            if self.tracking {
                vm.stop_tracking();
            }
            if self.paused {
                vm.resume();
            }
            self.say_abort(&error, link);
            Outcome::Failed(error)
        };
        link.close();
        self.state = State::Finished(outcome);
        outcome
    }

    /// Tells the peer why, if the stream is between two records. If it is not, or
    /// the link does not take it, closing the link tells it enough.
    fn say_abort(&mut self, error: &SourceError, link: &mut impl Link) {
        if let Some(vacant) = self.outbox.vacant() {
            vacant.put_plain(Kind::Abort, |payload| error.reason().write(payload));
            if let Ok(sent) = self.outbox.flush(link) {
                self.totals.bytes += sent as u64;
            }
        }
    }
}
