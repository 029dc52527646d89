//! The Linux that is compared with: Debian's kernel package, unpacked but not
//! installed, and an initial file system with one program of ours.

use super::initramfs::Archive;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on the release's current kernel.
const CURRENT: &str = "linux-image-amd64";

/// Translation on, each unmap invalidating at once as Strandline does, and nothing
/// that slows system calls down.
pub(super) const OPTIONS: &str =
    "console=ttyS0 quiet panic=-1 intel_iommu=on iommu.strict=1 mitigations=off";

/// What VFIO with a PCI device takes, each after those it depends on. Some kernels
/// have one or the other built in.
const MODULES: [&str; 6] = [
    "virt/lib/irqbypass.ko",
    "drivers/vfio/vfio_virqfd.ko",
    "drivers/vfio/vfio.ko",
    "drivers/vfio/vfio_iommu_type1.ko",
    "drivers/vfio/pci/vfio-pci-core.ko",
    "drivers/vfio/pci/vfio-pci.ko",
];

const PROBE: &str = "vfio-probe";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The program has no libraries beside it.
const STATIC: &str =
    "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\", \"target-feature=+crt-static\"]";

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// As in its file names: `6.1.0-56-amd64`.
    pub(super) version: String,
    files: PathBuf,
}

/// Fetches the package with APT, from wherever that is told to, unless it is there.
pub(super) fn fetch() -> Result<Kernel> {
    let advice = "without Debian's packages at hand, use --skip-linux";
    let depends = output(Command::new("apt-cache").args(["depends", CURRENT])).context(advice)?;
    let package = package(&depends).context(advice)?;
    let version = package.trim_start_matches("linux-image-").to_owned();
    let folder = workspace::target_dir().join("linux").join(package);
    let kernel = Kernel {
        version,
        files: folder.join("files"),
    };
    if kernel.image().exists() {
        return Ok(kernel);
    }

    eprintln!("apt-get download {package}");
    fs::create_dir_all(&folder)?;
    let mut download = Command::new("apt-get");
    download
        .current_dir(&folder)
        .args(["-q", "download", package]);
    output(&mut download).context(advice)?;
    let archive = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get left no package")?;
    output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&kernel.files),
    )?;
    ensure!(kernel.image().exists(), "{package} has no kernel");
    Ok(kernel)
}

impl Kernel {
    /// The file to boot.
    pub(super) fn image(&self) -> PathBuf {
        self.files.join(format!("boot/vmlinuz-{}", self.version))
    }

    /// Makes the initial file system.
    pub(super) fn initramfs(&self) -> Result<PathBuf> {
        let mut archive = Archive::new();
        for directory in ["dev", "proc", "sys", "modules"] {
            archive.directory(directory);
        }
        archive.console("dev/console");
        archive.program("init", &fs::read(probe()?)?);
        let modules = self.files.join("lib/modules").join(&self.version);
        for (order, path) in MODULES.into_iter().enumerate() {
            if let Ok(module) = fs::read(modules.join("kernel").join(path)) {
                archive.program(&format!("modules/{order}.ko"), &module);
            }
        }
        let path = self.files.with_file_name("initramfs.cpio");
        fs::write(&path, archive.finish())?;
        Ok(path)
    }
}

/// Builds the program.
fn probe() -> Result<PathBuf> {
    let target_dir = workspace::target_dir().join("probe");
    let status = workspace::cargo()
        // Either would replace the flags given here.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--release", "--package", PROBE])
        .args(["--target", TARGET, "--config", STATIC])
        .arg("--target-dir")
        .arg(&target_dir)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo failed: {status}");
    let folder: &Path = &target_dir.join(TARGET).join("release");
    Ok(folder.join(PROBE))
}

/// The package that [`CURRENT`] depends on, in what `apt-cache depends` prints.
fn package(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed:\n{}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_kernels_package_is_found() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-9-amd64\n";
        assert_eq!(package(depends), Some("linux-image-6.1.0-9-amd64"));
        assert_eq!(package("linux-image-amd64\n"), None);
    }
}
