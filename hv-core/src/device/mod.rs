//! Carrying a passthrough device's state across a migration.
//!
//! A device that has no migration support of its own needs a small driver here:
//! wait until it rests, read its state out, put it back into its twin.

pub mod edu;
pub mod nvme;
