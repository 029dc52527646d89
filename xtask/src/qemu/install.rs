//! Installs the emulator on Debian and its relatives.

use super::apt::{Source, candidate};
use super::{OLDEST, Version};
use crate::system::{System, apt_get};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "qemu-system-x86";
const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_SOURCE: &str = "/etc/apt/sources.list.d/strandline-backports.sources";

/// Installs the package, from the release itself if it has the version, or else
/// from the release's backports. It says what it does.
///
/// # Errors
/// It cannot be done here; the message says what to do by hand.
pub(super) fn install() -> Result<()> {
    let system = System::read();
    system.may_install(
        &format!("QEMU {OLDEST} or newer"),
        &command_by_hand(&system),
    )?;
    apt_get(&["update"])?;
    let offered = offered()?;
    if offered.is_some_and(|version| version >= OLDEST) {
        return apt_get(&["install", "--no-install-recommends", PACKAGE]);
    }
    if system.codename != "bookworm" {
        bail!(
            "this release offers {PACKAGE} {}, not {OLDEST} or newer: install one by hand",
            offered.map_or("nowhere".into(), |version| version.to_string())
        );
    }
    let source = configured_source("bookworm").with_context(|| {
        format!("no APT source for bookworm is configured from which to derive {BACKPORTS}")
    })?;
    let _enabled = TemporarySource::enable(&source)?;
    apt_get(&["update"])?;
    apt_get(&[
        "install",
        "--no-install-recommends",
        "-t",
        BACKPORTS,
        PACKAGE,
    ])
}

/// What to type where this may not be done.
fn command_by_hand(system: &System) -> String {
    let target = match system.codename.as_str() {
        "bookworm" => format!("-t {BACKPORTS} "),
        _ => String::new(),
    };
    format!("apt-get install --no-install-recommends {target}{PACKAGE}")
}

/// The version that the configured sources offer.
fn offered() -> Result<Option<Version>> {
    let output = Command::new("apt-cache")
        .args(["policy", PACKAGE])
        .output()
        .context("cannot run apt-cache")?;
    let policy = String::from_utf8_lossy(&output.stdout);
    Ok(candidate(&policy).and_then(Version::parse))
}

/// The source of a release among those that are configured.
fn configured_source(codename: &str) -> Option<Source> {
    let mut files: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.insert(0, "/etc/apt/sources.list".into());
    files.iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        match path.extension()?.to_str()? {
            "sources" => Source::from_deb822(&text, codename),
            "list" => Source::from_one_line(&text, codename),
            _ => None,
        }
    })
}

/// An APT source that goes away when this does.
struct TemporarySource;

impl TemporarySource {
    fn enable(source: &Source) -> Result<Self> {
        eprintln!("enabling {BACKPORTS} for this installation ({BACKPORTS_SOURCE})");
        fs::write(BACKPORTS_SOURCE, source.stanza(BACKPORTS))
            .with_context(|| format!("cannot write {BACKPORTS_SOURCE}"))?;
        Ok(Self)
    }
}

impl Drop for TemporarySource {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(Path::new(BACKPORTS_SOURCE)) {
            eprintln!("warning: please remove {BACKPORTS_SOURCE} by hand: {error}");
        }
    }
}
