//! Finds the emulator, and gets it where that is possible.

mod apt;
mod install;

use anyhow::{Context, Result};
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The oldest version that will do: earlier ones have no x2APIC without KVM.
pub const OLDEST: Version = Version(10, 0);

/// A version, major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32);

impl Version {
    /// Reads `10.0.2+ds-2`, a package's version with or without epoch.
    fn parse(text: &str) -> Option<Self> {
        let text = text.split_once(':').map_or(text, |(_epoch, rest)| rest);
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self(major, minor))
    }

    /// Reads what `qemu-system-x86_64 --version` prints.
    fn from_banner(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("version ")?;
        Self::parse(rest)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The emulator, installed first if it is missing or too old and that can be done.
///
/// # Errors
/// It is missing or too old and cannot be installed; the message says how to.
pub fn find() -> Result<PathBuf> {
    static FOUND: OnceLock<()> = OnceLock::new();
    if FOUND.get().is_none() {
        match installed() {
            Some(version) if version >= OLDEST => {}
            found => install_over(found)?,
        }
        FOUND.get_or_init(|| ());
    }
    Ok(PROGRAM.into())
}

/// The version that is installed, if any.
pub fn installed() -> Option<Version> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    Version::from_banner(&String::from_utf8_lossy(&output.stdout))
}

fn install_over(found: Option<Version>) -> Result<()> {
    let problem = match found {
        None => format!("{PROGRAM} is missing (version {OLDEST} or newer is needed)"),
        Some(version) => format!("{PROGRAM} is {version}, but {OLDEST} or newer is needed"),
    };
    eprintln!("{problem}");
    install::install().context(problem.clone())?;
    match installed() {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(anyhow::anyhow!(
            "the package was installed, but still: {problem}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_banner_and_from_packages() {
        let banner = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(Version::from_banner(banner), Some(Version(10, 0)));
        assert_eq!(Version::parse("1:7.2+dfsg-7+deb12u15"), Some(Version(7, 2)));
        assert_eq!(Version::parse("(none)"), None);
        assert!(Version(9, 2) < OLDEST && Version(10, 1) > OLDEST);
    }
}
