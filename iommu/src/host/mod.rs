//! Drivers for host remapping units.

pub mod vtd;
