//! What the operator decides. The names are QMP's where QMP has one.

/// What to do when the limits on rounds or time are reached and the rest still
/// takes longer than the downtime limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonConvergence {
    /// Give up; the guest runs on.
    Fail,
    /// Switch over all the same, with a longer downtime.
    Force,
}

/// Parameters of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceParams {
    /// `max-bandwidth`: bytes a second during pre-copy; 0 is no limit. The final
    /// pass is never slowed down: it is downtime.
    pub max_bandwidth: u64,
    /// `avail-switchover-bandwidth`: bytes a second to expect in the final pass; 0
    /// takes what was measured.
    pub switchover_bandwidth: u64,
    /// `downtime-limit`, in milliseconds.
    pub downtime_limit_ms: u64,
    /// Rounds before the guest may be paused, the first included.
    pub min_rounds: u32,
    /// Rounds after which it counts as not converging; 0 is no limit.
    pub max_rounds: u32,
    /// Time of pre-copy after which it counts as not converging, in milliseconds;
    /// 0 is no limit.
    pub precopy_timeout_ms: u64,
    /// What happens then.
    pub on_non_convergence: NonConvergence,
    /// How long the destination may take to accept, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long the destination may take to read on or to answer, in milliseconds.
    pub progress_timeout_ms: u64,
    /// How long devices may take to come to rest, in milliseconds.
    pub quiesce_timeout_ms: u64,
    /// Whether to send digests of all pages at switchover, for the destination to
    /// compare. It reads all memory while the guest is paused.
    pub audit: bool,
    /// Pages looked at in one call of `step`.
    pub pages_per_step: u32,
}

impl Default for SourceParams {
    fn default() -> Self {
        Self {
            max_bandwidth: 0,
            switchover_bandwidth: 0,
            downtime_limit_ms: 300,
            min_rounds: 1,
            max_rounds: 0,
            precopy_timeout_ms: 60_000,
            on_non_convergence: NonConvergence::Fail,
            connect_timeout_ms: 30_000,
            progress_timeout_ms: 10_000,
            quiesce_timeout_ms: 5_000,
            audit: false,
            pages_per_step: 64,
        }
    }
}

impl SourceParams {
    pub(super) fn downtime_limit_us(&self) -> u64 {
        self.downtime_limit_ms.saturating_mul(1_000)
    }
}
