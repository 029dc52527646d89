//! The parts of the hypervisor image for PCs that the program in `main.rs` wires
//! together.
//!
//! ```text
//!  command line -> options          ACPI tables -> pm timer, DMAR
//!  memory map -> free memory -> budget          PCI -> device, link
//! ```
//!
//! Parsers and planners know no hardware and are tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod budget;
pub mod clock;
pub mod destination;
pub mod events;
pub mod guest;
pub mod host;
pub mod modules;
pub mod options;
pub mod source;
pub mod tick;
pub mod turns;
pub mod vectors;
pub mod wall_clock;
pub mod worker;
