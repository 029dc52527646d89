//! The register and memory structures of an Intel VT-d remapping unit.
//!
//! Shared by the driver for a real unit (`host::vtd`), which builds them, and by
//! the emulated unit (`viommu::vtd`), which decodes what a guest has built. Both
//! directions of one structure sit in one file, so that they cannot drift apart.
//!
//! Source: Intel Virtualization Technology for Directed I/O, Architecture
//! Specification, revision 4. The emulated unit knows legacy mode only
//! (RTADDR.TTM = 00, IQA.DW = 0); structures of scalable mode are those that the
//! driver makes.
//!
//! Addresses are plain `u64` here: they are host physical for a real unit and
//! guest physical for an emulated one, and whoever uses a structure wraps them at
//! once. The same holds for domain numbers, which are the host's or the guest's.

pub mod capability;
pub mod context_entry;
pub mod descriptor;
pub mod fault;
pub mod interrupt_entry;
pub mod interrupt_fault;
pub mod interrupt_request;
pub mod interrupt_table_address;
pub mod pasid_descriptor;
pub mod pasid_directory_entry;
pub mod pasid_entry;
pub mod queue_address;
pub mod registers;
pub mod root_entry;
pub mod scalable_context_entry;
pub mod scalable_fault;
pub mod scalable_root_entry;

use crate::bits;

pub use capability::{Capabilities, ExtendedCapabilities};
pub use context_entry::{AddressWidth, ContextEntry, TranslationType};
pub use descriptor::{
    ContextCacheScope, Descriptor, DescriptorError, InterruptCacheScope, IotlbScope, StatusWrite,
};
pub use fault::{FaultReason, FaultRecord, RequestKind};
pub use interrupt_entry::{InterruptEntry, SourceCheck};
pub use interrupt_fault::InterruptFaultReason;
pub use interrupt_request::InterruptRequest;
pub use interrupt_table_address::InterruptTableAddress;
pub use pasid_descriptor::{PasidCacheScope, PasidDescriptor, PasidIotlbScope};
pub use pasid_directory_entry::PasidDirectoryEntry;
pub use pasid_entry::{PasidEntry, PasidTable};
pub use queue_address::QueueAddress;
pub use registers::{FaultStatus, Global};
pub use root_entry::RootEntry;
pub use scalable_context_entry::ScalableContextEntry;
pub use scalable_fault::ScalableFaultReason;
pub use scalable_root_entry::ScalableRootEntry;
