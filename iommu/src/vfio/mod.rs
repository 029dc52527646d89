//! The front for users of Linux VFIO: its type 1 (version 2) interface, command by
//! command and errno by errno.
//!
//! It is a thin layer over the native interface, [`crate::Iommu`], which stays the
//! only one that knows tables, invalidation and drain. Added here are the checks
//! in the order of Linux, the errnos, and what VFIO alone has: the caller's
//! addresses, and emulated devices that pin pages. An embedder who has no such
//! users wants the native interface.
//!
//! ```text
//!  Container::ioctl   which command (container), then one file each:
//!                     info, map, unmap, seed, dirty
//!  DeviceAccess       pin, unpin, read, write for emulated devices (pin)
//!  DmaLogging         the log a device keeps itself (dma_logging)
//!        |
//!        v
//!  Iommu::map, unmap, report_writable, hold, attach
//! ```
//!
//! # Rules
//! `rules.txt` beside this file lists the rules of the interface, by the numbers
//! that comments and tests refer to; `cargo xtask rules` shows which test covers
//! which. Where releases of Linux differ, 6.18 is followed. Deliberately otherwise:
//!
//! - *Nothing is half done.* Where Linux finds out while copying that the caller's
//!   bitmap or structure cannot be written, mappings are gone already, or bits are
//!   cleared (C13, D4). Here all memory is looked up first, and the same errno
//!   means that nothing happened.
//! - *A read-only mapping is never dirty*, whoever uses it (D6).
//! - *Sizes are limited by memory*, not by 2^31 pages a mapping (B11, D2) or
//!   256 MiB a bitmap (C3, A5): what was given in [`Resources`] counts.
//! - *An emulated device that does not unpin* fails the call with EBUSY; Linux
//!   stops the machine (C11).
//! - *An updated address must be the same memory* (B6); Linux trusts the caller.
//! - *No flag at all* in DIRTY_PAGES is EINVAL by a check, not by chance (D1).
//! - *A lost unit* (see [`crate::Iommu`]) is EIO, which Linux does not know.
//!
//! Everything runs under the caller's exclusive borrow, so there is no lock that
//! could be dropped; only [`EmulatedDevices::dma_unmap`] is called in the middle of
//! a request, and may do what [`DeviceAccess`] permits.

pub mod abi;
mod caller;
mod container;
mod dirty;
pub mod dma_logging;
mod error;
mod info;
mod map;
mod mappings;
mod pin;
pub mod seed;
mod sorted;
mod unmap;

pub use caller::{CallerMemory, EmulatedDevices};
pub use container::{Container, Group, Resources, Version};
pub use error::VfioError;
pub use mappings::MappingSlot;
pub use pin::{DeviceAccess, PinSlot};
