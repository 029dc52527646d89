//! The migration stream: typed, versioned, checksummed records.
//!
//! ```text
//!   Source                                      Destination
//!     │ Hello (sizes, sections) ───────────────────> │ can it host this guest?
//!     │ <─────────────────────────── Accept / Refuse │
//!     │ Pages, ZeroPages … RoundEnd 1 ─────────────> │ every frame at least once
//!     │ Pages, ZeroPages … RoundEnd n ─────────────> │
//!     ╎ guest paused                                 │
//!     │ Pages, ZeroPages … RoundEnd last ──────────> │
//!     │ [Audit …] Section … Final ─────────────────> │ builds the guest
//!     │ <───────────────────────────────────── Ready │
//!     │ Go ────────────────────────────────────────> │ guest runs
//!     │ <─────────────────────────────────── Running │
//! ```
//! Either side may send `Abort` at any time before `Go`.
//!
//! Every record is a [`Header`] and a payload whose length is a multiple of 8.
//! The header has a checksum of its own, so a damaged length is never believed,
//! and carries the payload's. Records of one direction are numbered from 0.
//! A reader skips a record of an unknown kind unless it is marked mandatory.
//! All numbers are little-endian.

mod audit;
mod control;
mod error;
mod header;
mod hello;
mod inbox;
mod outbox;
mod pages;
mod record;
mod section;

pub use audit::{Audit, DIGESTS_PER_RECORD};
pub use control::{AbortReason, Refusal};
pub use error::StreamError;
pub use header::{Header, Kind};
pub use hello::{Config, Hello, MAX_SECTIONS, MemoryRun, SectionId, SectionInfo, VERSION};
pub use inbox::{Inbox, ReceiveError};
pub use outbox::{Outbox, Vacant};
pub use pages::{PAGES_PER_RECORD, PageEntry, Pages, RoundEnd, Run, ZeroPages};
pub use record::Record;
pub use section::{MAX_SECTION_BYTES, Section};

pub(crate) use section::write_section;

use core::mem::size_of;

/// The longest payload: a full batch of pages.
pub const MAX_PAYLOAD: usize = PAGES_PER_RECORD * size_of::<PageEntry>();
/// The longest record, and so the size of the buffer each side needs.
pub const RECORD_BYTES: usize = size_of::<Header>() + MAX_PAYLOAD;
/// The buffer for the answers, which are short.
pub(crate) const ANSWER_BYTES: usize = size_of::<Header>() + 40;

/// CRC-32C (Castagnoli), as in iSCSI.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    static CRC: crc::Crc<u32, crc::Table<16>> =
        crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
    CRC.checksum(bytes)
}
