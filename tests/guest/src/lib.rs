//! The ledger guest: a program that drives a device through its own IOMMU and
//! knows at every moment what each page of its memory must hold.
//!
//! It is migrated in the middle of its work and is never told. At the end it
//! replays its whole plan from the seed into a fresh ledger, so that nothing it
//! checks against has itself been migrated, and compares every page.
//!
//! The pure parts live here and are tested on the host; `main.rs` is the program.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod content;
pub mod ledger;
pub mod options;
pub mod rng;
