//! `cargo xtask run linux`: a stock kernel as the guest.

use super::conclude;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::linux::{COMMAND_LINE, Departure, Job, Load, Sources};
use xtask::progress::Progress;
use xtask::sabotage::Sabotage;
use xtask::units::{Size, Span};
use xtask::viommu::Viommu;

/// Boot Debian's stock kernel as the guest and migrate it while it uses an NVMe disk
/// that is passed through.
///
/// Kernel and busybox are fetched by apt-get into the target directory. Exits with 0
/// only if init ran to its end on the destination, every block of the disk was read
/// as it was written, before the move and after it, every block in memory is still
/// what the disk wrote there, the clock never went backwards and lost no more than the
/// downtime, and the kernel logged no error after its boot.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A kernel (bzImage) instead of Debian's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initramfs instead of the one with busybox
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "LINE", default_value = COMMAND_LINE)]
    append: String,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// IOMMU that the guest is given; Debian 12 has a driver for virtio in its newer
    /// kernel, which is fetched for it
    #[arg(long, value_enum, value_name = "KIND", default_value = "vtd")]
    viommu: Viommu,
    /// CPUs of the guest, each on a CPU of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    vcpus: u32,
    /// Whether the guest's IOMMU offers to remap interrupts
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set)]
    interrupt_remapping: bool,
    /// Reads and writes of 4 KiB that the guest does on its disk
    #[arg(long, value_name = "N", default_value_t = 8000, value_parser = clap::value_parser!(u64).range(1..))]
    operations: u64,
    /// How many of them the guest does before its migration starts
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    migrate_at: u64,
    /// Start the migration so long after the guest instead, in the machine's time
    #[arg(long, value_name = "TIME", conflicts_with = "migrate_at")]
    migrate_after: Option<Span>,
    /// Give the guest no disk: it idles, and moves at its second tick
    #[arg(long, conflicts_with_all = ["operations", "migrate_at"])]
    no_disk: bool,
    /// Do not migrate: the guest ends where it booted
    #[arg(long, conflicts_with_all = ["migrate_after", "migrate_at"])]
    stay: bool,
    /// Bytes a second that the migration may send, in the machine's time
    #[arg(long, value_name = "SIZE", default_value = "48M")]
    max_bandwidth: Size,
    /// Boot the same without a hypervisor as well, and compare; it fails if the guest's
    /// kernel took more than 4 times as long to its init
    #[arg(long)]
    compare_boot: bool,
    /// Break one mechanism in a test build; the run must then fail
    #[arg(long, value_enum, value_name = "NAME")]
    sabotage: Option<Sabotage>,
    /// Give up after this time on the wall clock
    #[arg(long, value_name = "TIME", default_value = "240s")]
    timeout: Span,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let departure = match (args.stay, args.migrate_after) {
        (true, _) => Departure::Never,
        (false, Some(span)) => Departure::After(span),
        (false, None) => Departure::AtWork,
    };
    let job = Job {
        sources: Sources {
            kernel: args.kernel.clone(),
            initramfs: args.initrd.clone(),
            viommu: args.viommu,
            ..Sources::default()
        },
        append: args.append.clone(),
        memory: args.memory,
        vcpus: args.vcpus,
        interrupt_remapping: args.interrupt_remapping,
        load: (!args.no_disk).then_some(Load {
            operations: args.operations,
            cue: args.migrate_at,
        }),
        departure,
        max_bandwidth: Some(args.max_bandwidth),
        compare_boot: args.compare_boot,
        sabotage: args.sabotage,
        timeout: args.timeout,
        ..Job::new(match args.viommu {
            Viommu::Vtd => "linux",
            Viommu::Virtio => "linux-viommu-virtio",
        })
    };
    let done = {
        let progress = Progress::start("booting two machines");
        job.execute(&mut |role, event| progress.event(role, event))?
    };
    conclude(&done.report, &done.outcome, args.json.as_deref())
}
