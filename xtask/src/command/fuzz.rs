//! `cargo xtask fuzz`: hostile input for a while.

use super::{exit_code, succeeds};
use anyhow::Result;
use std::process::ExitCode;
use xtask::workspace;

/// Throw mutations of the corpus at everything that takes hostile input
///
/// The same seed gives the same inputs. What breaks a target is kept in
/// `target/fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, in seconds, for all targets together
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Where the mutations start from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only this target: viommu, virtio, vfio, seed, dmar, ivrs, acpi, stream or
    /// elf
    target: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut fuzz = workspace::cargo();
    fuzz.args(["run", "--quiet", "--package", "fuzz-targets", "--"]);
    fuzz.arg(workspace::root().join("fuzz/corpus"));
    fuzz.arg(workspace::target_dir().join("fuzz"));
    fuzz.args([args.seconds.to_string(), args.seed.to_string()]);
    fuzz.args(&args.target);
    Ok(exit_code(succeeds(&mut fuzz)?))
}
