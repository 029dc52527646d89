//! Placeholder until the image builder is merged.
use anyhow::{Result, bail};
use std::path::PathBuf;

/// An image.
#[derive(Clone, Copy, Debug)]
pub enum Image {
    /// The hypervisor.
    Pc,
    /// The test guest.
    Guest,
}

/// Builds it.
///
/// # Errors
/// Always.
pub fn build(image: Image, _features: &[&str]) -> Result<PathBuf> {
    bail!("{image:?} cannot be built yet")
}
