//! `cargo xtask build`: the images.

use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;
use xtask::images::Images;
use xtask::units::human_bytes;

/// Build the hypervisor's image and the test guest.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compile in the breaking points for `run --sabotage`
    #[arg(long)]
    breakable: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let images = if args.breakable {
        Images::breakable()?
    } else {
        Images::ordinary()?
    };
    show(&images.hypervisor)?;
    show(&images.guest)?;
    Ok(ExitCode::SUCCESS)
}

fn show(path: &Path) -> Result<()> {
    let size = std::fs::metadata(path)?.len();
    println!("{}  {}", path.display(), human_bytes(size));
    Ok(())
}
