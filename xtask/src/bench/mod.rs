//! What the same operations cost on Strandline and on Linux VFIO type1.
//!
//! ```text
//!  linux            -> a kernel and its one process     \
//!                                                        machine -> records -> table
//!  image            -> the benchmark image              /
//!  harvest          -> a program on this machine ---------------------------^
//! ```
//!
//! Both run in the same emulator with the same processor model, one after the
//! other, under `-icount shift=0`: what is counted are the machine's instructions,
//! and a run repeats exactly where no timer interrupt falls into an operation.

mod harvest;
mod linux;
mod machine;
mod record;
mod table;
mod written;

pub use harvest::{HarvestCost, harvest};
pub use record::Record;
pub use table::{Comparison, Row, Target};
pub use written::Written;

use crate::debian::Kernel;
use crate::image::{self, Image};
use crate::qemu;
use anyhow::{Context, Result};
use machine::{Boot, FIRST_STAGE, LEGACY};

/// Measures Strandline.
///
/// # Errors
/// The image cannot be built or run, or it failed; the message has its log.
pub fn strandline() -> Result<Vec<Record>> {
    let boot = Boot {
        name: "strandline",
        kernel: image::build(Image::Bench, &[])?,
        initrd: None,
        options: "",
        memory_mib: 512,
        unit: LEGACY,
    };
    boot.records(&qemu::find()?)
}

/// Finds out what Strandline reports of pages that a device wrote where the unit sets
/// bits in first-stage tables.
///
/// # Errors
/// The image cannot be built or run, or it failed; the message has its log.
pub fn strandline_first_stage() -> Result<Vec<Record>> {
    let boot = Boot {
        name: "strandline-first-stage",
        kernel: image::build(Image::Bench, &[])?,
        initrd: None,
        options: "written-only",
        memory_mib: 512,
        unit: FIRST_STAGE,
    };
    boot.records(&qemu::find()?)
}

/// Measures Linux, and says which one.
///
/// # Errors
/// The kernel cannot be had, or the run failed; the message has its log.
pub fn linux() -> Result<(String, Vec<Record>)> {
    let kernel = Kernel::fetch(&[]).context("to measure without Linux, use --skip-linux")?;
    let boot = Boot {
        name: "linux",
        kernel: kernel.image(),
        initrd: Some(linux::initramfs(&kernel)?),
        options: linux::OPTIONS,
        memory_mib: 1024,
        unit: LEGACY,
    };
    Ok((kernel.version, boot.records(&qemu::find()?)?))
}
