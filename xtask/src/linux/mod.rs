//! A stock Debian kernel as the guest.
//!
//! ```text
//!  debian    -> kernel and busybox      initramfs, cpio -> the archives
//!  job       -> two machines, watched   console -> what the guest said
//!                                       verdict -> whether that is well
//!                                       figures -> and its figures
//!  direct    -> one machine without a hypervisor, to compare with
//! ```

mod console;
mod direct;
mod figures;
mod initramfs;
mod job;
mod verdict;

pub use console::{Console, Io};
pub use figures::Figures;
pub use job::{COMMAND_LINE, Departure, Done, Job, Load};
pub use verdict::{Expect, judge};

use crate::cpio::Archive;
use crate::debian::{self, Kernel};
use crate::image::{self, Image};
use crate::images::Images;
use crate::program;
use crate::viommu::Viommu;
use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// What to boot instead of Debian's stock kernel and our small initramfs.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A bzImage.
    pub kernel: Option<PathBuf>,
    /// An initramfs. Its init is to say what [`Console`] reads.
    pub initramfs: Option<PathBuf>,
    /// What our initramfs does, if it is used.
    pub init: Init,
    /// With the hypervisor's breaking points compiled in.
    pub breakable: bool,
    /// The IOMMU that the guest is given: Debian's kernel and our initramfs have its
    /// driver.
    pub viommu: Viommu,
}

/// What init of our initramfs does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// Ticks and gives an account, for [`Console`].
    #[default]
    Account,
    /// Runs a shell on the console, at whose end the machine ends.
    Shell,
}

/// What boots.
pub(crate) struct Parts {
    /// A bzImage.
    pub(crate) kernel: Vec<u8>,
    /// A cpio archive.
    pub(crate) initramfs: Vec<u8>,
}

impl Parts {
    /// Fetches, builds or reads them.
    pub(crate) fn gather(sources: &Sources) -> Result<Self> {
        // Of a kernel that is given nothing is known but its image: it has the disk's
        // driver built in, or comes with an initramfs that has it.
        let debian = match &sources.kernel {
            Some(_) => None,
            None => Some(Kernel::fetch(sources.viommu.modules())?),
        };
        let kernel = match (&sources.kernel, &debian) {
            (Some(path), _) => read(path)?,
            (None, debian) => read(&debian.as_ref().context("no kernel")?.image())?,
        };
        let initramfs = match &sources.initramfs {
            Some(path) => read(path)?,
            None => {
                let load = program::build("load")?;
                initramfs::build(sources, &debian::busybox()?, &load, debian.as_ref())
            }
        };
        Ok(Self { kernel, initramfs })
    }

    /// Packs them into one boot module, and builds the hypervisor that starts it.
    fn images(&self, breakable: bool) -> Result<Images> {
        let directory = workspace::target_dir().join("linux");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut module = Archive::default();
        module.file("kernel", &self.kernel);
        module.file("initramfs", &self.initramfs);
        let guest = directory.join("guest.cpio");
        fs::write(&guest, module.finish())
            .with_context(|| format!("cannot write {}", guest.display()))?;
        let features: &[&str] = if breakable { &["sabotage"] } else { &[] };
        Ok(Images {
            hypervisor: image::build(Image::Pc, features)?,
            guest,
        })
    }
}

/// Builds the hypervisor, fetches what is missing of the guest, and packs the guest
/// into one boot module.
///
/// # Errors
/// A build failed, a package cannot be had, or a file cannot be read or written.
pub fn images(sources: &Sources) -> Result<Images> {
    Parts::gather(sources)?.images(sources.breakable)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
