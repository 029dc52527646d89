//! The files a run needs, each built once per process.

use crate::image::{self, Image};
use anyhow::{Context, Result, anyhow};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The hypervisor and the guest.
#[derive(Clone, Debug)]
pub struct Images {
    /// The hypervisor's ELF file.
    pub hypervisor: PathBuf,
    /// The test guest's ELF file.
    pub guest: PathBuf,
}

impl Images {
    /// The images as they ship.
    ///
    /// # Errors
    /// The build failed; cargo has said why.
    pub fn ordinary() -> Result<Self> {
        static BUILT: OnceLock<Result<Images>> = OnceLock::new();
        once(&BUILT, || Self::build("ordinary", &[]))
    }

    /// The images with the breaking points compiled in.
    ///
    /// # Errors
    /// The build failed; cargo has said why.
    pub fn breakable() -> Result<Self> {
        static BUILT: OnceLock<Result<Images>> = OnceLock::new();
        once(&BUILT, || Self::build("breakable", &["sabotage"]))
    }

    /// Builds and copies, so that building the other flavour does not change a file
    /// that a machine is about to boot.
    fn build(flavour: &str, features: &[&str]) -> Result<Self> {
        let directory = crate::workspace::target_dir().join("images").join(flavour);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let place = |name: &str, built: PathBuf| {
            let path = directory.join(name);
            std::fs::copy(&built, &path)
                .with_context(|| format!("cannot copy {}", built.display()))?;
            anyhow::Ok(path)
        };
        Ok(Self {
            hypervisor: place("strandline", image::build(Image::Pc, features)?)?,
            guest: place("ledger-guest", image::build(Image::Guest, &[])?)?,
        })
    }
}

fn once(cell: &OnceLock<Result<Images>>, build: impl FnOnce() -> Result<Images>) -> Result<Images> {
    match cell.get_or_init(build) {
        Ok(images) => Ok(images.clone()),
        Err(error) => Err(anyhow!("{error:#}")),
    }
}
