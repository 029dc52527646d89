//! The same kernel without a hypervisor under it: what booting is compared with.

use super::{Console, Parts};
use crate::machine::{bare, die_with_parent};
use crate::run::Run;
use crate::tail::Tail;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);
/// How init starts its first line.
const INIT: &str = "linux: init ";

/// Boots `parts` in a machine like that of `run`, until init says when it started.
///
/// # Errors
/// The machine cannot be started, ends, or takes longer than the run may.
pub(super) fn boot(qemu: &Path, run: &Run, parts: &Parts) -> Result<Console> {
    let directory = tempfile::tempdir().context("cannot create a directory")?;
    let [kernel, initramfs, console] =
        ["kernel", "initramfs", "console"].map(|name| directory.path().join(name));
    std::fs::write(&kernel, &parts.kernel).context("cannot write the kernel")?;
    std::fs::write(&initramfs, &parts.initramfs).context("cannot write the initramfs")?;

    let mut command = bare(qemu, run.vcpus, false);
    command.args(["-m", &run.memory.to_string()]);
    command.args(["-device", run.iommu.device()]);
    command
        .arg("-serial")
        .arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(initramfs);
    command.args(["-append", run.guest_line.as_deref().unwrap_or_default()]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    die_with_parent::arrange(&mut command);
    let process = command.spawn();
    let mut process = Killed(process.with_context(|| format!("cannot start {}", qemu.display()))?);

    let started = Instant::now();
    let mut tail = Tail::new(console);
    loop {
        let said = tail.lines()?;
        if let Some(line) = said.iter().find(|line| line.contains(INIT)) {
            return Ok(Console::of(line, "", None));
        }
        if let Some(status) = process.0.try_wait().context("cannot wait for QEMU")? {
            bail!("the machine without a hypervisor ended before its init: {status}");
        }
        if started.elapsed() > run.timeout.duration() {
            bail!("the machine without a hypervisor does not reach its init");
        }
        thread::sleep(POLL);
    }
}

/// A process that does not outlive its use.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Either can only fail because the process is gone, which is what is wanted.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
