//! The register and memory structures of an Intel VT-d remapping unit.
//!
//! Shared by the driver for a real unit (`host::vtd`), which builds them, and by
//! the emulated unit (`viommu::vtd`), which decodes what a guest has built. Both
//! directions of one structure sit in one file, so that they cannot drift apart.
//!
//! Source: Intel Virtualization Technology for Directed I/O, Architecture
//! Specification, revision 4. Only legacy mode (RTADDR.TTM = 00) with 128-bit
//! queue descriptors (IQA.DW = 0) is covered.
//!
//! Addresses are plain `u64` here: they are host physical for a real unit and
//! guest physical for an emulated one, and whoever uses a structure wraps them at
//! once. The same holds for domain numbers, which are the host's or the guest's.

pub mod capability;
pub mod context_entry;
pub mod descriptor;
pub mod fault;
pub mod queue_address;
pub mod registers;
pub mod root_entry;

use crate::bits;

pub use capability::{Capabilities, ExtendedCapabilities};
pub use context_entry::{AddressWidth, ContextEntry, TranslationType};
pub use descriptor::{
    ContextCacheScope, Descriptor, DescriptorError, InterruptCacheScope, IotlbScope, StatusWrite,
};
pub use fault::{FaultReason, FaultRecord, RequestKind};
pub use queue_address::QueueAddress;
pub use registers::{FaultStatus, Global};
pub use root_entry::RootEntry;
