//! Where two machines stand: what they share, and starting them.

use crate::images::Images;
use crate::machine::{Config, LINK_SIZE, Machine, Role};
use crate::run::Run;
use crate::units::Size;
use anyhow::{Context, Result, bail};
use std::fs::{File, TryLockError};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What the two machines of a run have in common.
pub struct Site<'r> {
    run: &'r Run,
    qemu: &'r Path,
    images: &'r Images,
    link: Link,
    disk: Option<Disk>,
    logs: PathBuf,
    /// Held until the run is over.
    _claim: File,
}

impl<'r> Site<'r> {
    /// Makes the link, the disk if the run has one, and the log directory.
    ///
    /// # Errors
    /// One of them cannot be made, or another run writes its logs there.
    pub fn new(run: &'r Run, qemu: &'r Path, images: &'r Images) -> Result<Self> {
        let logs = run.log_directory();
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self {
            run,
            qemu,
            images,
            _claim: claim(&logs)?,
            link: Link::new()?,
            disk: run.disk.map(Disk::new).transpose()?,
            logs,
        })
    }

    /// Starts the machine `role`, to be talked to if there is a directory for its sockets.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(&self, role: Role, sockets: Option<&Path>) -> Result<Machine> {
        let Self { run, images, .. } = self;
        Machine::start(&Config {
            role,
            qemu: self.qemu,
            hypervisor: &images.hypervisor,
            guest: (role == Role::Source).then_some(images.guest.as_path()),
            options: run.options(role),
            memory: run.memory,
            vcpus: run.vcpus,
            lacks: run.destination_lacks.filter(|_| role == Role::Destination),
            iommu: run.iommu,
            link: self.link.path(),
            disk: self.disk.as_ref().map(|disk| disk.0.path().to_owned()),
            logs: &self.logs,
            sockets,
            gdb: run.gdb,
        })
    }
}

/// Claims a log directory: two runs that write to the same files would read each
/// other's. It is free again when the file is closed, however that comes about.
fn claim(logs: &Path) -> Result<File> {
    let path = logs.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another run writes to {}: wait until it is over",
            logs.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The shared memory between the machines: a zeroed file without a name, gone with
/// this process however that ends.
struct Link(File);

impl Link {
    fn new() -> Result<Self> {
        let file = tempfile::tempfile().context("cannot create the link's memory")?;
        file.set_len(LINK_SIZE.bytes())
            .context("cannot size the link's memory")?;
        let link = Self(file);
        if !link.path().exists() {
            bail!("/proc is not mounted: the machines could not open the link's memory");
        }
        Ok(link)
    }

    /// A path at which other processes can open it.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// A disk of zeros that the machines share; gone with this process, if that ends in
/// an orderly way.
struct Disk(tempfile::NamedTempFile);

impl Disk {
    fn new(size: Size) -> Result<Self> {
        let file = tempfile::NamedTempFile::new().context("cannot create the disk")?;
        file.as_file()
            .set_len(size.bytes())
            .context("cannot size the disk")?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_directory_is_one_runs_at_a_time() {
        let logs = tempfile::tempdir().unwrap();
        let first = claim(logs.path()).unwrap();
        let error = claim(logs.path()).unwrap_err().to_string();
        assert!(error.starts_with("another run writes to"), "{error}");
        drop(first);
        claim(logs.path()).unwrap();
    }

    #[test]
    fn the_link_is_zeroed_and_has_no_name() {
        let link = Link::new().unwrap();
        let bytes = std::fs::read(link.path()).unwrap();
        assert_eq!(bytes.len() as u64, LINK_SIZE.bytes());
        assert!(bytes.iter().all(|&byte| byte == 0));
        drop(link);
    }
}
