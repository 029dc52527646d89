//! The operating system that this runs on, as far as it can install what is missing.

use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

/// What the operating system says about itself in `os-release(5)`.
pub(crate) struct System {
    has_apt: bool,
    /// The release's name, such as `bookworm`; empty if it has none.
    pub(crate) codename: String,
}

impl System {
    pub(crate) fn read() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        let family = format!("{} {}", value("ID"), value("ID_LIKE"));
        Self {
            has_apt: family
                .split(' ')
                .any(|name| name == "debian" || name == "ubuntu"),
            codename: value("VERSION_CODENAME"),
        }
    }

    /// Fails unless packages can be installed here and now. The error says what to do:
    /// install `what`, by `command` where there is APT.
    pub(crate) fn may_install(&self, what: &str, command: &str) -> Result<()> {
        if !self.has_apt {
            bail!("install {what} with this system's package manager");
        }
        if !rustix::process::geteuid().is_root() {
            bail!("run this as root, then try again:\n  {command}");
        }
        Ok(())
    }
}

/// Runs apt-get, saying so; its own output is shown only when it fails.
pub(crate) fn apt_get(arguments: &[&str]) -> Result<()> {
    eprintln!("apt-get {}", arguments.join(" "));
    let output = Command::new("apt-get")
        .args(["-y", "-q"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        bail!(
            "apt-get {} failed:\n{}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatives_of_debian_have_apt_and_others_are_told_to_help_themselves() {
        let mint = System::parse("ID=mint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=x\n");
        assert!(mint.has_apt);
        assert_eq!(mint.codename, "x");
        let other = System::parse("ID=fedora\n");
        let error = other.may_install("gdb", "apt-get install gdb").unwrap_err();
        assert_eq!(
            error.to_string(),
            "install gdb with this system's package manager"
        );
    }
}
