//! The machine Strandline runs guests on, without any knowledge of IOMMUs or of
//! migration.
//!
//! Everything here reaches hardware through small traits ([`memory::PhysMemory`],
//! [`mmio::Mmio`], [`clock::Clock`]), so every line of logic also runs on the host
//! under plain `cargo test`. Nothing allocates: memory is given at construction.
//!
//! The layers above meet in one place, the [`dirty::DirtyLog`]: whoever learns
//! that a guest page was written marks its frame there, and migration drains it.
#![no_std]

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod addr;
pub mod boot;
pub mod clock;
pub mod device;
pub mod dirty;
pub mod memory;
pub mod mmio;
pub mod npt;
pub mod platform;
pub mod sabotage;
pub mod svm;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vcpu;
pub mod vm;

pub use addr::{Gfn, Gpa, Hpa, PAGE_SHIFT, PAGE_SIZE};
