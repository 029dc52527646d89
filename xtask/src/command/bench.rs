//! `cargo xtask bench`: what the IOMMU layer's operations cost.

use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::bench::{self, Comparison};

/// Compare what mapping and unmapping costs with Linux VFIO type1.
///
/// Boots both in QEMU on the same machine model, does the same operations on an
/// emulated VT-d unit, and counts instructions. Times a harvest on this machine too.
/// Says which targets are met. Linux is Debian's kernel package, fetched with apt-get.
///
/// The exit status is 0 if Strandline reported every page that a device wrote, and none
/// where it could not write, whatever all that cost.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure Strandline only
    #[arg(long)]
    skip_linux: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let strandline = bench::strandline()?;
    let first_stage = bench::strandline_first_stage()?;
    let linux = if args.skip_linux {
        None
    } else {
        Some(bench::linux()?)
    };
    let comparison = Comparison::new(strandline, first_stage, linux, Some(bench::harvest()?));
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&comparison)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{comparison}");
    Ok(match comparison.reports_are_right() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
