//! `cargo xtask lint`: formatting and lints.

use super::{exit_code, succeeds};
use anyhow::Result;
use std::process::{Command, ExitCode};
use xtask::workspace;

/// Check formatting and lints, of the host code and of the images.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let clean = succeeds(workspace::cargo().args(["fmt", "--all", "--check"]))?
        && succeeds(&mut host_clippy())?
        && succeeds(&mut image_clippy())?;
    Ok(exit_code(clean))
}

fn host_clippy() -> Command {
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets"]);
    clippy.args(["--", "-D", "warnings"]);
    clippy
}

/// The code that only a freestanding build compiles.
fn image_clippy() -> Command {
    let mut clippy = workspace::cargo();
    // Either would replace the flags of the config file.
    clippy.env_remove("RUSTFLAGS");
    clippy.env_remove("CARGO_ENCODED_RUSTFLAGS");
    clippy.args(["clippy", "--release", "--config", "boards/image.toml"]);
    clippy.args(["--package", "strandline-pc", "--package", "ledger-guest"]);
    clippy.args(["--package", "strandline-bench"]);
    clippy.arg("--target-dir");
    clippy.arg(workspace::target_dir().join("image"));
    clippy.args(["--", "-D", "warnings"]);
    clippy
}
