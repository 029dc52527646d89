//! The destination: builds the guest from the stream, and starts it when told to.
//!
//! Order, checks and the guest's growth are in `builder`; this is the polling
//! around it, the answers, and the end. On any failure before the start the guest
//! is discarded first and the source told afterwards, so a source that hears
//! `Abort` knows that the guest runs nowhere else.

mod builder;
mod vm;

pub use vm::DestinationVm;

use crate::VmError;
use crate::link::{Link, LinkError};
use crate::stream::{
    ANSWER_BYTES, AbortReason, Inbox, Kind, Outbox, RECORD_BYTES, ReceiveError, Refusal,
    StreamError,
};
use builder::{Answer, Builder};
use hv_core::Gfn;
use hv_core::clock::Clock;

/// What to do when the audit finds pages that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMismatch {
    /// Fail; the guest runs on at the source and nothing is lost.
    Refuse,
    /// Name them and go on. For tests that lose pages on purpose.
    Report,
}

/// Parameters of one incoming migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationParams {
    /// How long to wait for a source, in milliseconds; 0 is for ever.
    pub connect_timeout_ms: u64,
    /// How long the source may be silent once it is there, in milliseconds. It is
    /// silent while it is throttled and while its devices come to rest.
    pub progress_timeout_ms: u64,
    /// What to do when the audit finds pages that differ.
    pub on_mismatch: OnMismatch,
    /// Records taken in by one call of `step`.
    pub records_per_step: u32,
}

impl Default for DestinationParams {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 0,
            progress_timeout_ms: 30_000,
            on_mismatch: OnMismatch::Refuse,
            records_per_step: 8,
        }
    }
}

/// What came so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rounds that ended.
    pub rounds: u32,
    /// Pages that came, zero pages included, each time they did.
    pub pages: u64,
    /// Zero pages among them.
    pub zero_pages: u64,
    /// Pages compared by the audit.
    pub audited: u64,
    /// Pages that differed.
    pub mismatches: u64,
    /// The first of them.
    pub first_mismatch: Option<Gfn>,
}

/// Why an incoming migration failed. Nothing of the guest is left here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// This machine cannot host the guest; the source was told.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The source gave up.
    #[error("the source gave up: {0}")]
    Aborted(AbortReason),
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The source sent something malformed.
    #[error("malformed stream: {0}")]
    Stream(#[from] StreamError),
    /// The source was silent too long.
    #[error("the source sends nothing")]
    Timeout,
    /// Pages differ from the source's.
    #[error("{pages} pages differ from the source's, the first is guest frame {first}")]
    Audit {
        /// How many.
        pages: u64,
        /// The first.
        first: Gfn,
    },
    /// The machine failed.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl From<ReceiveError> for DestinationError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Stream(StreamError::Version(_)) => Self::Refused(Refusal::Version),
            ReceiveError::Stream(error) => error.into(),
            ReceiveError::Link(error) => error.into(),
        }
    }
}

impl DestinationError {
    fn reason(&self) -> AbortReason {
        match self {
            Self::Timeout => AbortReason::Timeout,
            Self::Audit { .. } => AbortReason::Audit,
            Self::Vm(_) => AbortReason::Machine,
            Self::Refused(_) | Self::Aborted(_) | Self::Link(_) | Self::Stream(_) => {
                AbortReason::Stream
            }
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs here.
    Running {
        /// Whether the link took the message that says so. If not, the source is
        /// in doubt and keeps its guest paused.
        announced: bool,
    },
    /// It does not and never will.
    Failed(DestinationError),
}

/// Why `step` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The work allowed for one call is done; there may be more.
    Working,
    /// Nothing can be done until the source sends or reads on.
    WaitingForPeer,
    /// It is over; further calls do nothing.
    Finished(Outcome),
}

/// The engine of one migration to this machine.
pub struct Destination<'m> {
    params: DestinationParams,
    inbox: Inbox<&'m mut [u8; RECORD_BYTES]>,
    outbox: Outbox<[u8; ANSWER_BYTES]>,
    builder: Builder<'m>,
    /// Since when the source has been awaited without any byte moving.
    stalled: Option<u64>,
    finished: Option<Outcome>,
}

impl<'m> Destination<'m> {
    /// Words of memory needed to keep account of a guest of `frames` frames.
    pub const fn words_needed(frames: u64) -> u64 {
        frames.div_ceil(64)
    }

    /// Waits for a source. `buffer` holds one record; `received` one bit a guest
    /// frame, and a guest for which it is too small is refused.
    pub fn new(
        params: DestinationParams,
        buffer: &'m mut [u8; RECORD_BYTES],
        received: &'m mut [u64],
    ) -> Self {
        Self {
            params,
            inbox: Inbox::new(buffer),
            outbox: Outbox::new([0; ANSWER_BYTES]),
            builder: Builder::new(params.on_mismatch, received),
            stalled: None,
            finished: None,
        }
    }

    /// What came so far.
    pub fn progress(&self) -> &Totals {
        &self.builder.totals
    }

    /// Does a bounded piece of work.
    pub fn step(
        &mut self,
        vm: &mut impl DestinationVm,
        link: &mut impl Link,
        clock: &impl Clock,
    ) -> Status {
        if let Some(outcome) = self.finished {
            return Status::Finished(outcome);
        }
        match self.advance(vm, link, clock) {
            Ok(status) => status,
            Err(error) => Status::Finished(self.fail(error, vm, link)),
        }
    }

    fn advance(
        &mut self,
        vm: &mut impl DestinationVm,
        link: &mut impl Link,
        clock: &impl Clock,
    ) -> Result<Status, DestinationError> {
        let before = self.inbox.position();
        let mut sent = 0;
        for _ in 0..self.params.records_per_step.max(1) {
            sent += self.outbox.flush(link)?;
            let Some(vacant) = self.outbox.vacant() else {
                return self.wait(before, sent, clock);
            };
            if self.builder.is_running() {
                return Ok(self.end(Outcome::Running { announced: true }, link));
            }
            let answer = if let Some(record) = self.inbox.poll(link)? {
                self.builder.take(record, vm)?
            } else if self.builder.is_completing() {
                self.builder.complete(vm)?
            } else {
                return self.wait(before, sent, clock);
            };
            match answer {
                Some(Answer::Accept) => vacant.put_empty(Kind::Accept),
                Some(Answer::Ready) => vacant.put_empty(Kind::Ready),
                Some(Answer::Running) => vacant.put_empty(Kind::Running),
                None => {}
            }
        }
        self.stalled = None;
        Ok(Status::Working)
    }

    fn wait(
        &mut self,
        before: (u64, usize),
        sent: usize,
        clock: &impl Clock,
    ) -> Result<Status, DestinationError> {
        let now = clock.now_us();
        if sent > 0 || self.inbox.position() != before {
            self.stalled = None;
        }
        let since = *self.stalled.get_or_insert(now);
        let limit_ms = if self.builder.is_new() {
            self.params.connect_timeout_ms
        } else {
            self.params.progress_timeout_ms
        };
        let waited = now.saturating_sub(since);
        if limit_ms != 0 && waited >= limit_ms.saturating_mul(1_000) {
            return Err(DestinationError::Timeout);
        }
        Ok(Status::WaitingForPeer)
    }

    fn fail(
        &mut self,
        error: DestinationError,
        vm: &mut impl DestinationVm,
        link: &mut impl Link,
    ) -> Outcome {
        let outcome = if self.builder.is_running() {
            // The guest was started on a valid Go. Only the message was lost.
            Outcome::Running { announced: false }
        } else {
            // Discard before saying so: see the module's documentation.
            if !self.builder.is_new() {
                vm.discard();
            }
            self.say(&error, link);
            Outcome::Failed(error)
        };
        self.end(outcome, link);
        outcome
    }

    /// Tells the source why, if it can be told.
    fn say(&mut self, error: &DestinationError, link: &mut impl Link) {
        if let Some(vacant) = self.outbox.vacant() {
            match error {
                DestinationError::Refused(refusal) => {
                    vacant.put_plain(Kind::Refuse, |payload| refusal.write(payload));
                }
                other => vacant.put_plain(Kind::Abort, |payload| other.reason().write(payload)),
            }
            // Whether the link takes it or not, it is closed next.
            let _ = self.outbox.flush(link);
        }
    }

    fn end(&mut self, outcome: Outcome, link: &mut impl Link) -> Status {
        link.close();
        self.finished = Some(outcome);
        Status::Finished(outcome)
    }
}
