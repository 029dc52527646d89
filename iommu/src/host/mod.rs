//! Drivers for host remapping units.

pub mod amdvi;
pub mod any;
mod poll;
pub mod vtd;
