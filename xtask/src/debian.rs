//! Debian's stock kernel and a static busybox, fetched by the distribution's own
//! package manager and unpacked without being installed.
//!
//! Each package has a folder `linux/<package>` in the target directory and is
//! fetched once.

use crate::system::apt_get;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// Each depends on a stock kernel: the release's current one, and the newer one that
/// Debian 12 has beside it.
const KERNELS: [&str; 2] = ["linux-image-amd64", "linux-image-6.12-amd64"];
/// What a kernel's package name starts with; the version follows.
const KERNEL_PREFIX: &str = "linux-image-";
const BUSYBOX: &str = "busybox-static";
/// The folder of a package's files in the package's own.
const FILES: &str = "files";

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As in its file names: `6.1.0-9-amd64`.
    pub version: String,
    files: PathBuf,
}

impl Kernel {
    /// The oldest kernel with all these modules that was fetched before, or else the
    /// first that is offered.
    ///
    /// # Errors
    /// No package has it, or it cannot be fetched or unpacked.
    pub fn fetch(modules: &[&str]) -> Result<Self> {
        let has_all = |kernel: &Self| modules.iter().all(|path| kernel.module(path).is_some());
        if let Some(kernel) = Self::fetched_before().into_iter().find(has_all) {
            return Ok(kernel);
        }
        refresh_lists();
        for name in KERNELS {
            let kernel = Self::offered(name)?;
            if has_all(&kernel) {
                return Ok(kernel);
            }
        }
        bail!("none of {KERNELS:?} has the modules {modules:?}")
    }

    fn offered(name: &str) -> Result<Self> {
        let depends = output(Command::new("apt-cache").args(["depends", name]))?;
        let package = kernel_package(&depends)
            .with_context(|| format!("no {name} is offered; `apt-get update` may help"))?;
        Self::in_package(package, unpacked(package)?)
            .with_context(|| format!("{package} holds no kernel"))
    }

    fn fetched_before() -> Vec<Self> {
        let folders = fs::read_dir(directory()).into_iter().flatten().flatten();
        let mut kernels: Vec<_> = folders
            .filter_map(|folder| {
                let package = folder.file_name().into_string().ok()?;
                Self::in_package(&package, folder.path().join(FILES))
            })
            .collect();
        kernels.sort_by(|a, b| a.version.cmp(&b.version));
        kernels
    }

    /// The kernel in the unpacked `files` of `package`, if they have one.
    fn in_package(package: &str, files: PathBuf) -> Option<Self> {
        let version = package.strip_prefix(KERNEL_PREFIX)?.to_owned();
        let kernel = Self { version, files };
        kernel.image().exists().then_some(kernel)
    }

    /// The file to boot, a bzImage.
    pub fn image(&self) -> PathBuf {
        self.files.join(format!("boot/vmlinuz-{}", self.version))
    }

    /// A module by its path below `kernel`; `None` if this kernel has it built in or
    /// not at all. Newer kernels have theirs compressed.
    pub fn module(&self, path: &str) -> Option<Vec<u8>> {
        let modules = self.files.join("lib/modules").join(&self.version);
        let file = modules.join("kernel").join(path);
        let compressed = file.with_extension("ko.xz");
        if !compressed.exists() {
            return fs::read(file).ok();
        }
        let unpacked = Command::new("xz")
            .arg("-dc")
            .arg(compressed)
            .output()
            .ok()?;
        unpacked.status.success().then_some(unpacked.stdout)
    }
}

/// A busybox without libraries, fetched unless it is there.
///
/// # Errors
/// As for [`Kernel::fetch`].
pub fn busybox() -> Result<Vec<u8>> {
    let path = unpacked(BUSYBOX)?.join("bin/busybox");
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Where the files of a package are, fetched first unless they are there.
fn unpacked(package: &str) -> Result<PathBuf> {
    let folder = directory().join(package);
    let files = folder.join(FILES);
    if files.exists() {
        return Ok(files);
    }
    refresh_lists();
    eprintln!("apt-get download {package}");
    // Fetched and unpacked beside it: what was left half done is done again.
    let fresh = folder.join("fresh");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    let mut download = Command::new("apt-get");
    output(
        download
            .args(["-q", "download", package])
            .current_dir(&fresh),
    )?;
    let archive = archive_in(&fresh)?;
    let mut unpack = Command::new("dpkg-deb");
    output(unpack.arg("-x").arg(&archive).arg(fresh.join(FILES)))?;
    fs::rename(fresh.join(FILES), &files)?;
    fs::remove_dir_all(&fresh)?;
    Ok(files)
}

/// Has apt learn what there is, once a run: a fresh machine knows of no package, an
/// old one of versions that are gone. Without the rights it knows what it knows, and
/// if that is too little, the error names this command.
fn refresh_lists() {
    static REFRESHED: Once = Once::new();
    REFRESHED.call_once(|| {
        if let Err(error) = apt_get(&["update"]) {
            eprintln!("going on with the lists there are: {error}");
        }
    });
}

fn directory() -> PathBuf {
    workspace::target_dir().join("linux")
}

fn archive_in(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get left no package")
}

/// The package that one of [`KERNELS`] depends on, in what `apt-cache depends`
/// prints.
fn kernel_package(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(KERNEL_PREFIX))
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} failed ({}); `apt-get update` may help:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_what_the_metapackage_depends_on() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-9-amd64\n";
        assert_eq!(kernel_package(depends), Some("linux-image-6.1.0-9-amd64"));
        assert_eq!(kernel_package("linux-image-amd64\n"), None);
    }
}
