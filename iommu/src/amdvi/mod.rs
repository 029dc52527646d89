//! The register and memory structures of an AMD-Vi remapping unit.
//!
//! Both directions of one structure sit in one file, so that they cannot drift
//! apart: the driver (`host::amdvi`) encodes what the tests' unit decodes, and the
//! reverse.
//!
//! Source: AMD I/O Virtualization Technology (IOMMU) Specification, document
//! 48882, revision 3. Covered is what a host takes: translation by version 1
//! tables, device TLBs, interrupt remapping; no guest tables, no virtual APICs.
//!
//! Addresses are plain `u64` here; whoever uses a structure wraps them at once.

pub mod buffer;
pub mod command;
pub mod device_entry;
pub mod device_interrupts;
pub mod event;
pub mod features;
pub mod interrupt_entry;
pub mod interrupt_request;
pub mod registers;

use crate::bits;

pub use buffer::Buffer;
pub use command::Command;
pub use device_entry::DeviceEntry;
pub use device_interrupts::DeviceInterrupts;
pub use event::{Event, EventCode};
pub use features::Features;
pub use interrupt_entry::InterruptEntry;
pub use interrupt_request::InterruptRequest;
pub use registers::{Control, Status};
