//! A model of the hardware, and a world around it in which a layer can be tested.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub)]
// A test may panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod dirty;
pub mod format;
pub mod migration;
pub mod oracle;
pub mod unit;
pub mod world;
