//! `cargo xtask test`: everything that can be checked without other hardware.

use super::{exit_code, succeeds};
use anyhow::Result;
use std::process::ExitCode;
use xtask::{qemu, workspace};

/// Run all tests: on the host, then with whole machines in QEMU.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the tests whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // First, so that a missing emulator is known before minutes of tests.
    qemu::find()?;
    let on_host = succeeds(
        workspace::cargo()
            .args(["test", "--workspace", "--exclude", "scenarios"])
            .args(&args.filter),
    )?;
    // What must fail when a mechanism is broken: built with the breaking points.
    let broken = ["test", "--package", "iommu", "--features", "sabotage"];
    let on_host = on_host
        && succeeds(
            workspace::cargo()
                .args(broken)
                .args(["--test", "*sabotage"])
                .args(&args.filter),
        )?;
    // Each scenario runs two machines, which is what two processors can take.
    let in_qemu = on_host
        && succeeds(
            workspace::cargo()
                .args(["test", "--package", "scenarios"])
                .args(&args.filter)
                .args(["--", "--test-threads=1"]),
        )?;
    Ok(exit_code(on_host && in_qemu))
}
