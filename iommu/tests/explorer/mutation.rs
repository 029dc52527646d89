//! What is broken on purpose.

/// One step left out or out of order. Seen from the hardware, a layer that
/// invalidates at another moment is an invalidation that comes at another moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    None,
    /// No invalidation.
    NoInvalidation,
    /// The wait does not wait.
    NoDrain,
    /// No invalidation, but only when tracking starts.
    StartKeepsCaches,
    /// The wait does not wait, but only when tracking starts.
    StartDoesNotWait,
    /// The invalidation drops leaves only.
    LeavesOnly,
    /// Invalidation and drain come before all else.
    DrainFirst,
    /// They come at the end, after bits were read, and the report made.
    DrainLast,
    /// They come after the call returned.
    DrainAfterReturn,
    /// What a call reports does not arrive.
    ReportDropped,
    /// Devices keep their translations.
    DevicesKeepTheirs,
    /// Devices forget theirs before the unit does.
    DevicesFirst,
}
