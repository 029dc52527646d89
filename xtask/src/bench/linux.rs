//! The Linux that is compared with: Debian's kernel, and an initial file system with
//! one program of ours.

use crate::cpio::Archive;
use crate::debian::Kernel;
use crate::program;
use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

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

/// Makes the initial file system.
pub(super) fn initramfs(kernel: &Kernel) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    archive.console("dev/console");
    archive.file("init", &program::build(PROBE)?);
    for (order, path) in MODULES.into_iter().enumerate() {
        if let Some(module) = kernel.module(path) {
            archive.file(&format!("modules/{order}.ko"), &module);
        }
    }
    let path = workspace::target_dir().join("programs/initramfs.cpio");
    fs::write(&path, archive.finish())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
