//! Building a bootable image.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The flags an image is compiled with; see the file itself.
const CONFIG: &str = "boards/image.toml";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What can be booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Image {
    /// The hypervisor for PCs.
    Pc,
    /// The test guest.
    Guest,
    /// The benchmark of the IOMMU layer.
    Bench,
}

impl Image {
    const fn package(self) -> &'static str {
        match self {
            Self::Pc => "strandline-pc",
            Self::Guest => "ledger-guest",
            Self::Bench => "strandline-bench",
        }
    }
}

/// Builds an image with these features of its package, and returns the stripped
/// ELF file. Each set of features has a file of its own.
///
/// # Errors
/// Cargo or `strip` cannot be run, or failed; both say why on standard error.
pub fn build(image: Image, features: &[&str]) -> Result<PathBuf> {
    let (top, target_dir) = (workspace::root(), target_dir());
    let package = image.package();

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(top)
        // Either would replace the flags of the config file.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args([
            "build",
            "--quiet",
            "--release",
            "--config",
            CONFIG,
            "--target",
            TARGET,
        ])
        .args(["--package", package, "--bin", package])
        .args(["--features", &features.join(",")])
        .arg("--target-dir")
        .arg(&target_dir);
    run(&mut cargo)?;

    let built = with_symbols(image);
    let flavour: String = features.iter().map(|name| format!("-{name}")).collect();
    let stripped = target_dir.join(format!("{package}{flavour}.elf"));
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    Ok(stripped)
}

/// The file that the last build of this image left, with symbols.
pub fn with_symbols(image: Image) -> PathBuf {
    target_dir()
        .join(TARGET)
        .join("release")
        .join(image.package())
}

/// Apart from host builds, which have other flags.
fn target_dir() -> PathBuf {
    workspace::target_dir().join("image")
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(status.success(), "{} failed: {status}", program.display());
    Ok(())
}
