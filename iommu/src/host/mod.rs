//! Drivers for host remapping units.

pub mod amdvi;
pub mod any;
mod poll;
mod ring;
pub mod vtd;
