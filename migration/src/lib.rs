//! Live migration: pre-copy, switchover and the stream between the two machines.
//!
//! ```text
//!  guest writes ─┐                                             ┌─> frames
//!  IOMMU reports ├─> DirtyLog ──> Source ══ stream ══> Destination
//!  emulation ────┘   (hv-core)      ^    <── answers ──    │   └─> device state
//!                                   └─ SourceVm            └─ DestinationVm
//! ```
//!
//! The crate knows nothing of IOMMUs or virtual machine monitors. It drains
//! [`hv_core::dirty::DirtyLog`], asks a [`source::SourceVm`] for everything else,
//! and builds the guest on the other side through a
//! [`destination::DestinationVm`]. Both engines are polled: a call of `step` does a
//! bounded amount of work and says why it returned, so they run beside a guest on
//! one CPU. Nothing allocates: buffers are given at construction.
//!
//! # Exactly one guest
//! At every moment at most one of the two machines runs the guest. The source
//! resumes it on any failure before the last byte of the record `Go` left; the
//! destination starts it only on a complete and correct `Go`. Between that byte
//! and the answer `Running` a broken link leaves the source
//! [in doubt](source::Outcome::InDoubt), with its guest paused.
//!
//! # Memory budget
//! | what | bytes |
//! | --- | --- |
//! | source | one record buffer, [`stream::RECORD_BYTES`] (64 KiB) |
//! | destination | the same, and one bit a guest page |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod destination;
mod digest;
pub mod link;
pub mod source;
pub mod stream;
mod throttle;

/// Why the machine around the guest could not do what migration asked of it, in
/// words for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct VmError(pub &'static str);

/// Bytes per second from a count and a duration; a duration of zero counts as one
/// microsecond, the clock's resolution.
pub(crate) fn bytes_per_second(bytes: u64, duration_us: u64) -> u64 {
    let rate = u128::from(bytes) * 1_000_000 / u128::from(duration_us.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// How long `bytes` take at a rate, in microseconds; for ever at a rate of zero.
pub(crate) fn transfer_us(bytes: u64, bytes_per_second: u64) -> u64 {
    if bytes == 0 {
        return 0;
    }
    (u128::from(bytes) * 1_000_000)
        .checked_div(u128::from(bytes_per_second))
        .and_then(|us| u64::try_from(us).ok())
        .unwrap_or(u64::MAX)
}
