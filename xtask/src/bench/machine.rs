//! One measured machine.

use super::Record;
use crate::machine::{SUCCESS_CODE, bare, die_with_parent};
use crate::tail::last_lines;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a machine may take on the wall clock.
const TIMEOUT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);
/// How many lines of the log are shown when it fails.
const SHOWN: usize = 20;

/// What to boot.
pub(super) struct Boot<'b> {
    /// Names its files.
    pub(super) name: &'b str,
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub(super) options: &'b str,
    pub(super) memory_mib: u32,
    /// The remapping unit, as QEMU's option has it.
    pub(super) unit: &'b str,
}

/// A unit in legacy mode: second-stage tables, no dirty bits.
pub(super) const LEGACY: &str = "intel-iommu,intremap=off";
/// One in scalable mode, with first-stage tables.
pub(super) const FIRST_STAGE: &str = "intel-iommu,intremap=off,x-scalable-mode=on,x-flts=on";

impl Boot<'_> {
    /// Runs it to its end and returns what it measured.
    pub(super) fn records(&self, qemu: &Path) -> Result<Vec<Record>> {
        let logs = workspace::target_dir().join("logs/bench");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let [log, output, said] =
            ["log", "json", "qemu"].map(|kind| logs.join(format!("{}.{kind}", self.name)));
        let mut command = self.command(qemu, &log, &output);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said)?);
        die_with_parent::arrange(&mut command);
        let mut process = command.spawn().context("cannot start QEMU")?;

        let status = wait(&mut process)?;
        // The debug-exit device turns the code `c` into the status `2c + 1`.
        if status.and_then(|status| status.code()) != Some(2 * SUCCESS_CODE + 1) {
            let end = status.map_or("took too long".into(), |status| status.to_string());
            let lines = [last_lines(&said, SHOWN), last_lines(&log, SHOWN)].concat();
            bail!("the machine {}: {end}\n{}", self.name, lines.join("\n"));
        }
        let text = fs::read_to_string(&output)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("`{line}`")))
            .collect()
    }

    fn command(&self, qemu: &Path, log: &Path, output: &Path) -> Command {
        let mut command = bare(qemu, 1, false);
        command.args(["-m", &format!("{}M", self.memory_mib)]);
        command.args(["-device", self.unit, "-device", "edu"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        for port in [log, output] {
            command.args(["-serial", &format!("file:{}", port.display())]);
        }
        command.arg("-kernel").arg(&self.kernel);
        if let Some(initrd) = &self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        command.args(["-append", self.options]);
        command
    }
}

/// Waits for the process's end, or ends it: then there is no status.
fn wait(process: &mut Child) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < TIMEOUT {
        if let Some(status) = process.try_wait().context("cannot wait for QEMU")? {
            return Ok(Some(status));
        }
        thread::sleep(POLL);
    }
    process.kill().context("cannot end QEMU")?;
    process.wait().context("cannot wait for QEMU")?;
    Ok(None)
}
