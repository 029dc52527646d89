//! The files a run needs, each built once per process.

use crate::image::{self, Image};
use anyhow::{Result, anyhow};
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
        once(&BUILT, || Self::build(&[]))
    }

    /// The images with the breaking points compiled in.
    ///
    /// # Errors
    /// The build failed; cargo has said why.
    pub fn breakable() -> Result<Self> {
        static BUILT: OnceLock<Result<Images>> = OnceLock::new();
        once(&BUILT, || Self::build(&["sabotage"]))
    }

    fn build(features: &[&str]) -> Result<Self> {
        Ok(Self {
            hypervisor: image::build(Image::Pc, features)?,
            guest: image::build(Image::Guest, &[])?,
        })
    }
}

fn once(cell: &OnceLock<Result<Images>>, build: impl FnOnce() -> Result<Images>) -> Result<Images> {
    match cell.get_or_init(build) {
        Ok(images) => Ok(images.clone()),
        Err(error) => Err(anyhow!("{error:#}")),
    }
}
