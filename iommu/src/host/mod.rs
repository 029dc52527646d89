//! Drivers for host remapping units.

pub mod amdvi;
pub mod any;
mod device_tlbs;
mod poll;
mod ring;
#[cfg(test)]
mod testing;
pub mod vtd;
