//! The Linux that is compared with: Debian's kernel, and an initial file system with
//! one program of ours.

use crate::cpio::Archive;
use crate::debian::Kernel;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

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

/// Makes the initial file system.
pub(super) fn initramfs(kernel: &Kernel) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    archive.console("dev/console");
    archive.file("init", &fs::read(probe()?)?);
    for (order, path) in MODULES.into_iter().enumerate() {
        if let Some(module) = kernel.module(path) {
            archive.file(&format!("modules/{order}.ko"), &module);
        }
    }
    let path = workspace::target_dir().join("probe/initramfs.cpio");
    fs::write(&path, archive.finish())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
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
