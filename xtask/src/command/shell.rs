//! `cargo xtask shell`: a Linux guest to type at.

use super::exit_code;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::linux::{self, Init, Sources};
use xtask::run::Run;
use xtask::site::Site;
use xtask::units::{Size, Span};
use xtask::{qemu, shell};

/// Boot a Linux guest, and type at its console.
///
/// Ctrl-] m migrates it to a second machine while you do. Ctrl-] q ends everything.
/// Without a terminal, input is taken as it comes, Ctrl-] (byte 1Dh) included, and
/// its end ends the guest.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A kernel (bzImage) instead of Debian's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// CPUs of the guest, each on a CPU of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    vcpus: u32,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let run = Run {
        memory: args.memory,
        vcpus: args.vcpus,
        max_bandwidth: None,
        downtime_limit: None,
        // Only when asked to.
        migrate_after: Some(Span::seconds(1_000_000)),
        guest_line: Some("console=ttyS0 quiet intel_iommu=on iommu.strict=1".into()),
        ..Run::new("shell")
    };
    let qemu = qemu::find()?;
    let images = linux::images(&Sources {
        kernel: args.kernel.clone(),
        init: Init::Shell,
        ..Sources::default()
    })?;
    let site = Site::new(&run, &qemu, &images)?;
    Ok(exit_code(shell::serve(&site)?))
}
