//! Building a program for a Linux guest.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The guest has no libraries.
const STATIC: &str =
    "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\", \"target-feature=+crt-static\"]";

/// Builds the program of `package`, which has no libraries beside it.
///
/// # Errors
/// The build failed; cargo has said why.
pub fn build(package: &str) -> Result<Vec<u8>> {
    let target_dir = workspace::target_dir().join("programs");
    let status = workspace::cargo()
        // Either would replace the flags given here.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--quiet", "--release", "--package", package])
        .args(["--target", TARGET, "--config", STATIC])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo failed: {status}");
    let path = target_dir.join(TARGET).join("release").join(package);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}
