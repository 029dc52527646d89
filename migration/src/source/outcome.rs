//! How a migration can go and end.

use super::RoundStats;
use crate::VmError;
use crate::link::LinkError;
use crate::stream::{AbortReason, ReceiveError, Refusal, StreamError};

/// Why a migration failed. The guest runs on at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The operator cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The destination cannot host the guest.
    #[error("the destination refuses: {0}")]
    Refused(Refusal),
    /// The destination gave up.
    #[error("the destination gave up: {0}")]
    Aborted(AbortReason),
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The destination sent something malformed.
    #[error("malformed answer: {0}")]
    Stream(#[from] StreamError),
    /// The destination was silent too long.
    #[error("the destination does not answer")]
    Timeout,
    /// Devices did not come to rest in time.
    #[error("the devices do not come to rest")]
    QuiesceTimeout,
    /// The limits on rounds or time were reached.
    #[error("the guest writes faster than its memory can be sent")]
    NoConvergence,
    /// The devices' state alone takes longer than the downtime limit; nothing was
    /// begun. The least limit in milliseconds.
    #[error("moving the devices' state takes {0} ms, more than downtime-limit allows")]
    DowntimeLimit(u64),
    /// The machine failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The machine described itself in a way that the stream cannot carry.
    #[error("the guest's memory or sections cannot be described in the stream")]
    Config,
}

impl From<ReceiveError> for SourceError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Link(error) => error.into(),
            ReceiveError::Stream(error) => error.into(),
        }
    }
}

impl SourceError {
    /// What the peer is told.
    pub(super) fn reason(&self) -> AbortReason {
        match self {
            Self::Cancelled => AbortReason::Cancelled,
            Self::Timeout | Self::QuiesceTimeout => AbortReason::Timeout,
            Self::NoConvergence | Self::DowntimeLimit(_) => AbortReason::NoConvergence,
            Self::Vm(_) | Self::Config => AbortReason::Machine,
            Self::Link(_) | Self::Stream(_) | Self::Refused(_) | Self::Aborted(_) => {
                AbortReason::Stream
            }
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination runs the guest; this one may be thrown away.
    Done,
    /// The guest runs on here.
    Failed(SourceError),
    /// `Go` was sent and no answer came. The guest stays paused here, for it may
    /// run at the destination. Whoever knows that it does not may resume it.
    InDoubt(SourceError),
}

/// Why `step` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The work allowed for one call is done; there is more.
    Working,
    /// Nothing can be done until the destination reads on or answers, or until the
    /// devices are at rest. With the guest paused the caller polls at once.
    WaitingForPeer,
    /// Nothing may be sent before this time of the clock, in microseconds.
    ThrottledUntil(u64),
    /// It is over; further calls do nothing.
    Finished(Outcome),
}

/// Something worth telling the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The destination accepted; writes are tracked from now on.
    Connected,
    /// A round ended.
    RoundDone(RoundStats),
    /// The guest was paused.
    Paused,
}

/// What a call of `step` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Why it returned.
    pub status: Status,
    /// What happened, at most one thing a call.
    pub event: Option<Event>,
}
