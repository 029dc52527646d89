//! One QEMU process: its command line, its files, its end.

use crate::events::{Event, Stamped};
use crate::iommu::Iommu;
use crate::ledger;
use crate::observation::{Exit, Observation};
use crate::tail::Tail;
use crate::units::Size;
use anyhow::{Context, Result};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// What the hypervisor writes to the debug-exit port when its guest has left or
/// ended well.
pub const SUCCESS_CODE: i32 = 0x10;

/// The CPUs, as QEMU names them.
const CPU: &str = "EPYC-v4,+svm,+npt,+x2apic";

/// The size of the shared memory that joins the two machines.
pub const LINK_SIZE: Size = Size::mib(4);

/// What a machine gets besides the guest's memory: the image, tables and buffers.
const OVERHEAD: Size = Size::mib(256);

/// Which of the two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Boots the guest and sends it away.
    Source,
    /// Waits for the guest.
    Destination,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// What to boot.
pub struct Config<'r> {
    /// Which machine this is; it names the files.
    pub role: Role,
    /// The emulator.
    pub qemu: &'r Path,
    /// The hypervisor's ELF file.
    pub hypervisor: &'r Path,
    /// The guest's ELF file. A destination has none: its guest comes by the link.
    pub guest: Option<&'r Path>,
    /// The hypervisor's command line.
    pub options: String,
    /// The guest's memory.
    pub memory: Size,
    /// The guest's CPUs; the machine has as many.
    pub vcpus: u32,
    /// A feature that its CPUs lack, by QEMU's name for it.
    pub lacks: Option<&'r str>,
    /// The remapping unit.
    pub iommu: Iommu,
    /// The file that backs the link.
    pub link: PathBuf,
    /// The file behind an NVMe disk, which is then the guest's device instead of
    /// `edu`. Both machines have it open, as they would shared storage.
    pub disk: Option<PathBuf>,
    /// Where the machine's files go.
    pub logs: &'r Path,
    /// Where its sockets go, if it is to be talked to: see [`Sockets`]. Time that it
    /// sleeps then passes as on the wall clock.
    pub sockets: Option<&'r Path>,
    /// The TCP port at which the source waits for a debugger.
    pub gdb: Option<u16>,
}

/// Where a machine can be talked to.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// The hypervisor (COM2): a byte [`MIGRATE`] has the guest migrated.
    pub control: PathBuf,
    /// The guest's console (COM3).
    pub console: PathBuf,
}

/// Asks the source to migrate its guest.
pub const MIGRATE: u8 = b'm';

impl Sockets {
    /// The sockets of the machine `role` in `directory`.
    pub fn new(directory: &Path, role: Role) -> Self {
        Self {
            control: directory.join(format!("{role}.control")),
            console: directory.join(format!("{role}.console")),
        }
    }
}

/// The files that a machine leaves in the log directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The hypervisor's log (COM1).
    pub log: PathBuf,
    /// Its events (COM2).
    pub events: PathBuf,
    /// The guest's console (COM3).
    pub console: PathBuf,
    /// What QEMU itself said.
    pub qemu: PathBuf,
    /// The command line that started it.
    pub command: PathBuf,
}

impl Files {
    /// The files of the machine `role` in `directory`.
    pub fn new(directory: &Path, role: Role) -> Self {
        let path = |kind: &str| directory.join(format!("{role}.{kind}"));
        Self {
            log: path("log"),
            events: path("events"),
            console: path("console"),
            qemu: path("qemu"),
            command: path("command"),
        }
    }

    /// Those worth showing when a run fails, in reading order.
    pub fn for_people(&self) -> [&Path; 4] {
        [&self.qemu, &self.log, &self.events, &self.console]
    }
}

/// A running machine and what was seen of it. Dropping it kills the process.
pub struct Machine {
    /// Which machine this is.
    pub role: Role,
    /// What was seen of it so far.
    pub seen: Observation,
    process: Child,
    events: Tail,
    console: Tail,
}

impl Machine {
    /// Starts QEMU.
    ///
    /// # Errors
    /// A file cannot be made or the program cannot be started.
    pub fn start(config: &Config<'_>) -> Result<Self> {
        let files = Files::new(config.logs, config.role);
        for stale in files.for_people() {
            File::create(stale).with_context(|| format!("cannot create {}", stale.display()))?;
        }
        let mut command = command_line(config, &files);
        std::fs::write(&files.command, format!("{command:?}\n"))
            .with_context(|| format!("cannot write {}", files.command.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&files.qemu)?);
        die_with_parent::arrange(&mut command);
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {}", config.qemu.display()))?;
        Ok(Self {
            role: config.role,
            seen: Observation::default(),
            process,
            events: Tail::new(files.events),
            console: Tail::new(files.console),
        })
    }

    /// Takes in what the machine said and whether it ended since the last call, and
    /// returns its new events.
    ///
    /// # Errors
    /// A file cannot be read, or the process cannot be waited for.
    pub fn poll(&mut self) -> Result<Vec<Event>> {
        // The end is looked for first: what the process wrote before it is then
        // complete when the files are read.
        let ended = self.process.try_wait().context("cannot wait for QEMU")?;
        let mut events = Vec::new();
        for line in self.events.lines()? {
            match Stamped::parse(&line) {
                Ok(stamped) => {
                    self.seen.note_event(&stamped);
                    events.push(stamped.event);
                }
                Err(error) => self.seen.unreadable.push(format!("`{line}`: {error}")),
            }
        }
        for line in self.console.lines()? {
            match ledger::Line::parse(&line) {
                Ok(Some(line)) => self.seen.note_ledger(line),
                Ok(None) => {}
                Err(error) => self.seen.unreadable.push(format!("`{line}`: {error:#}")),
            }
        }
        if let (Some(status), Exit::Running) = (ended, self.seen.exit) {
            self.seen.exit = exit(status);
        }
        Ok(events)
    }

    /// Ends the process at once, as a power cut would, unless it has ended.
    pub fn kill(&mut self) {
        if self.seen.exit == Exit::Running {
            self.seen.exit = Exit::Killed;
        }
        // Either can only fail because the process is gone, which is what is wanted.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A machine with so many processors and nothing else. Virtual nanoseconds are guest
/// instructions: a run with one seed repeats. For a person (`in_real_time`), time that
/// the machine sleeps passes as it does for them.
pub(crate) fn bare(qemu: &Path, vcpus: u32, in_real_time: bool) -> Command {
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-machine", "q35", "-accel", "tcg"]);
    command.args(["-cpu", CPU]);
    command.args(["-smp", &vcpus.to_string()]);
    let sleep = if in_real_time { "on" } else { "off" };
    command.args(["-icount", &format!("shift=0,sleep={sleep}")]);
    // The time of day passes like every other time.
    command.args(["-rtc", "clock=vm"]);
    command
}

fn command_line(config: &Config<'_>, files: &Files) -> Command {
    let mut command = bare(config.qemu, config.vcpus, config.sockets.is_some());
    if let Some(feature) = config.lacks {
        // The last one counts.
        command.args(["-cpu", &format!("{CPU},-{feature}")]);
    }
    if let (Some(port), Role::Source) = (config.gdb, config.role) {
        command.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
    }
    let mib = config.memory.plus(OVERHEAD).bytes().div_ceil(1 << 20);
    command.args(["-m", &format!("{mib}M")]);
    command.args(["-device", config.iommu.device()]);
    match &config.disk {
        // It reaches the addresses of interrupts, as most devices do.
        None => command.args(["-device", "edu,dma_mask=0xffffffff"]),
        Some(disk) => {
            // Both machines are on one host, whose page cache is the disk: that it may
            // be behind on its own disk must not count as the guest's time.
            let options = "if=none,id=disk,format=raw,file.locking=off,cache=unsafe";
            command.args(["-drive", &format!("{options},file={}", disk.display())]);
            command.args(["-device", "nvme,drive=disk,share-rw=on,serial=strandline"]);
            // The build of SeaBIOS without a driver for NVMe: the other one keeps so
            // much memory for its queues that boot modules lie in it.
            command.args(["-bios", "bios.bin"])
        }
    };
    let link = format!(
        "memory-backend-file,id=link,share=on,size={LINK_SIZE},mem-path={}",
        config.link.display()
    );
    command.args(["-object", &link, "-device", "ivshmem-plain,memdev=link"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    let sockets = config.sockets.map(|at| Sockets::new(at, config.role));
    let (control, console) = match &sockets {
        Some(sockets) => (Some(&sockets.control), Some(&sockets.console)),
        None => (None, None),
    };
    serial_port(&mut command, &files.log, None);
    serial_port(&mut command, &files.events, control);
    serial_port(&mut command, &files.console, console);
    command.arg("-kernel").arg(config.hypervisor);
    if let Some(guest) = config.guest {
        command.arg("-initrd").arg(guest);
    }
    command.args(["-append", &config.options]);
    command
}

/// A serial port whose output goes to `file`, and which `socket` is connected to.
fn serial_port(command: &mut Command, file: &Path, socket: Option<&PathBuf>) {
    let Some(socket) = socket else {
        command.args(["-serial", &format!("file:{}", file.display())]);
        return;
    };
    let id = file
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let (file, socket) = (file.display(), socket.display());
    command.args([
        "-chardev",
        &format!("socket,id={id},path={socket},server=on,wait=off,logfile={file}"),
    ]);
    command.args(["-serial", &format!("chardev:{id}")]);
}

/// The debug-exit device turns the code `c` into the status `2c + 1`.
fn exit(status: ExitStatus) -> Exit {
    match status.code() {
        Some(status) if status % 2 == 1 && status > 1 => Exit::Code(status / 2),
        Some(status) => Exit::Emulator(status),
        None => Exit::Killed,
    }
}

#[allow(unsafe_code)]
pub(crate) mod die_with_parent {
    use rustix::process::{Signal, set_parent_process_death_signal};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    /// Has the kernel kill the process when the thread that starts it ends, however
    /// that comes about: a panic or Ctrl-C runs no destructor.
    pub(crate) fn arrange(command: &mut Command) {
        // SAFETY: between fork and exec the closure makes one system call, which is
        // async-signal-safe, and touches no memory of the parent.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_the_debug_exit_device_is_the_hypervisors_code() {
        let status = |script: &str| Command::new("sh").args(["-c", script]).status().unwrap();
        assert_eq!(exit(status("exit 33")), Exit::Code(SUCCESS_CODE));
        assert_eq!(exit(status("exit 1")), Exit::Emulator(1));
        assert_eq!(exit(status("exit 0")), Exit::Emulator(0));
        assert_eq!(exit(status("kill -9 $$")), Exit::Killed);
    }

    #[test]
    fn a_destination_is_given_no_guest_image() {
        let logs = Path::new("/logs");
        let config = Config {
            role: Role::Destination,
            qemu: Path::new("qemu"),
            hypervisor: Path::new("hv"),
            guest: None,
            options: "role=destination".into(),
            memory: Size::mib(64),
            vcpus: 1,
            lacks: Some("sha-ni"),
            iommu: Iommu::Amd,
            link: "/link".into(),
            disk: None,
            logs,
            sockets: None,
            gdb: Some(1234),
        };
        let line = command_line(&config, &Files::new(logs, config.role));
        let args: Vec<_> = line.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert!(!args.contains(&"-initrd".into()), "{args:?}");
        assert!(!args.contains(&"-S".into()), "only the source is debugged");
        assert!(args.contains(&"320M".into()), "{args:?}");
        assert!(args.contains(&format!("{CPU},-sha-ni").into()), "{args:?}");
        assert!(args.contains(&"amd-iommu,pt=off,intremap=on".into()));
        assert!(args.contains(&"file:/logs/destination.events".into()));
    }
}
