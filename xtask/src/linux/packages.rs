//! Gets kernel and busybox from the distribution by its own package manager, and
//! unpacks them without installing them.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Depends on the current stock kernel's package.
const KERNEL: &str = "linux-image-amd64";
const BUSYBOX: &str = "busybox-static";

/// The stock kernel, fetched unless it is in `directory` already.
///
/// # Errors
/// The package cannot be found, fetched or unpacked.
pub(super) fn kernel(directory: &Path) -> Result<PathBuf> {
    let boot = directory.join("kernel/boot");
    if let Some(path) = find_kernel(&boot) {
        return Ok(path);
    }
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = kernel_package(&depends)
        .with_context(|| format!("no {KERNEL} is offered: give a kernel with --kernel"))?;
    unpack(directory, package, "kernel")?;
    find_kernel(&boot).with_context(|| format!("{package} holds no kernel"))
}

/// A static busybox, fetched unless it is in `directory` already.
///
/// # Errors
/// As for [`kernel`].
pub(super) fn busybox(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("busybox/bin/busybox");
    if !path.exists() {
        unpack(directory, BUSYBOX, "busybox")?;
    }
    Ok(path)
}

/// The file whose name starts with `vmlinuz` in a `/boot`.
fn find_kernel(boot: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(boot).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz"))
    })
}

/// The package in what `apt-cache depends` prints.
fn kernel_package(depends: &str) -> Option<&str> {
    depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
}

/// Fetches a package and unpacks it to `directory/to`.
fn unpack(directory: &Path, package: &str, to: &str) -> Result<()> {
    eprintln!("apt-get download {package}");
    let fetched = directory.join(format!("{to}-package"));
    // One that was left half fetched would be taken for another package.
    if fetched.exists() {
        std::fs::remove_dir_all(&fetched)?;
    }
    std::fs::create_dir_all(&fetched)?;
    output(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(&fetched),
    )?;
    let archive = std::fs::read_dir(&fetched)?
        .next()
        .with_context(|| format!("apt-get downloaded nothing for {package}"))??;
    output(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(archive.path())
            .arg(directory.join(to)),
    )?;
    Ok(std::fs::remove_dir_all(&fetched)?)
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
        assert_eq!(kernel_package(""), None);
    }
}
