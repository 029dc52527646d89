//! `cargo xtask lint`: formatting and lints.

use super::{exit_code, succeeds};
use anyhow::Result;
use std::process::ExitCode;
use xtask::workspace;

/// Check formatting and lints, of the host code and of the images.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let formatted = succeeds(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    let host_clean = succeeds(
        workspace::cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--", "-D", "warnings"]),
    )?;
    Ok(exit_code(formatted && host_clean))
}
