//! `cargo xtask run linux`: a stock kernel as the guest.

use super::conclude;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::linux::{self, Console, Expect, Figures, Init, Sources};
use xtask::progress::Progress;
use xtask::qemu;
use xtask::report::Report;
use xtask::run::Run;
use xtask::units::{Size, Span};

/// Boot Debian's stock kernel as the guest and migrate it while it uses an NVMe disk
/// that is passed through.
///
/// Kernel and busybox are fetched by apt-get into the target directory. Exits with 0
/// only if init ran to its end on the destination, every block of the disk was read
/// as it was written, the clock never went backwards and the kernel logged no error
/// after its boot.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A kernel (bzImage) instead of Debian's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initramfs instead of the one with busybox
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "LINE",
        default_value = "console=ttyS0 intel_iommu=on iommu.strict=1 iommu.passthrough=0"
    )]
    append: String,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// CPUs of the guest, each on a CPU of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    vcpus: u32,
    /// How long the guest runs before its migration starts, in the machine's time
    /// [default: 9s, with two CPUs, which share that time, 11s]
    #[arg(long, value_name = "TIME")]
    migrate_after: Option<Span>,
    /// Give the guest no disk: it idles
    #[arg(long)]
    no_disk: bool,
    /// Do not migrate: the guest ends where it booted
    #[arg(long, conflicts_with = "migrate_after")]
    stay: bool,
    /// Give up after this time on the wall clock
    #[arg(long, value_name = "TIME", default_value = "240s")]
    timeout: Span,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The disk that both machines have.
const DISK: Size = Size::mib(64);

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // While its disk is in use: booting takes a second CPU's share of the time longer.
    let usual = Span::seconds(7 + 2 * u64::from(args.vcpus));
    let never = Span::seconds(1_000_000);
    let run = Run {
        memory: args.memory,
        vcpus: args.vcpus,
        disk: (!args.no_disk).then_some(DISK),
        max_bandwidth: None,
        downtime_limit: None,
        migrate_after: Some(if args.stay {
            never
        } else {
            args.migrate_after.unwrap_or(usual)
        }),
        guest_line: Some(args.append.clone()),
        timeout: args.timeout,
        ..Run::new("linux")
    };
    let qemu = qemu::find()?;
    let images = linux::images(&Sources {
        kernel: args.kernel.clone(),
        initramfs: args.initrd.clone(),
        init: Init::Account,
    })?;
    let outcome = {
        let progress = Progress::start("booting two machines");
        run.execute_with(&qemu, &images, &mut |role, event| {
            progress.event(role, event);
        })?
    };
    let console = Console::read(&outcome)?;
    let verdict = linux::judge(
        &outcome,
        &console,
        Expect {
            migrates: !args.stay,
            disk: !args.no_disk,
            cpus: args.vcpus,
        },
    );
    let report = Report {
        guest: Figures::new(&console),
        ..Report::new(&run, &outcome, &verdict)
    };
    conclude(&report, &outcome, args.json.as_deref())
}
