//! A model of the hardware, and a world around it in which a layer can be tested.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub)]

pub mod migration;
pub mod oracle;
pub mod unit;
pub mod world;
