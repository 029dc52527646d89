//! `cargo xtask run`: the main job, once.

use super::{conclude, linux};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::iommu::Iommu;
use xtask::progress::Progress;
use xtask::qemu;
use xtask::report::Report;
use xtask::run::Run;
use xtask::sabotage::Sabotage;
use xtask::units::{Size, Span};
use xtask::verdict::{Expect, judge};
use xtask::viommu::Viommu;

/// Migrate a running guest between two hypervisors and verify every page.
///
/// Boots two machines in QEMU. On one of them a guest drives a passthrough device
/// through its own IOMMU; it is moved to the other in the middle of that, never
/// told, and at its end compares every page with what it last wrote there.
/// Exits with 0 only if the guest, on the destination, found every page right.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    scenario: Option<Scenario>,
    /// Seed of the guest's pseudo-random workload
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    memory: Size,
    /// Remapping unit of both machines
    #[arg(long, value_enum, value_name = "KIND", default_value = "vtd")]
    iommu: Iommu,
    /// IOMMU that the guest is given
    #[arg(long, value_enum, value_name = "KIND", default_value = "vtd")]
    viommu: Viommu,
    /// Bytes a second that the migration may send, in the machine's time [default:
    /// 2M, so that the guest does a lot meanwhile; with a sabotage 1M]
    #[arg(long, value_name = "SIZE")]
    max_bandwidth: Option<Size>,
    /// How long the guest may stand still, in the machine's time [default: 305ms, 300
    /// of which the device's state may take]
    #[arg(long, value_name = "TIME")]
    downtime_limit: Option<Span>,
    /// How long the guest runs before its migration starts, in the machine's time
    /// [default: 500ms]
    #[arg(long, value_name = "TIME")]
    migrate_after: Option<Span>,
    /// Operations that the guest does [default: 2000]
    #[arg(long, value_name = "N")]
    operations: Option<u64>,
    /// Have the two machines compare all pages at switchover as well
    #[arg(long)]
    verify: bool,
    /// Break one mechanism in a test build; the run must then fail
    #[arg(long, value_enum, value_name = "NAME")]
    sabotage: Option<Sabotage>,
    /// Give up after this time on the wall clock
    #[arg(long, value_name = "TIME", default_value = "120s")]
    timeout: Span,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the logs here [default: logs/<scenario> in the target directory]
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// What to run instead of the main job.
#[derive(clap::Subcommand)]
enum Scenario {
    Linux(linux::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(Scenario::Linux(args)) = &args.scenario {
        return linux::run(args);
    }
    let mut scenario = match args.sabotage {
        None => "main".to_owned(),
        Some(sabotage) => format!("sabotage-{}", sabotage.name()),
    };
    if args.iommu != Iommu::default() {
        scenario = format!("{scenario}-{}", args.iommu.name());
    }
    if args.viommu != Viommu::default() {
        scenario = format!("{scenario}-viommu-{}", args.viommu.name());
    }
    let usual = match args.sabotage {
        None => Run::new(&scenario),
        Some(sabotage) => Run::broken(&scenario, sabotage),
    };
    let run = Run {
        seed: args.seed,
        memory: args.memory,
        iommu: args.iommu,
        viommu: args.viommu,
        max_bandwidth: args.max_bandwidth.or(usual.max_bandwidth),
        downtime_limit: args.downtime_limit.or(usual.downtime_limit),
        migrate_after: args.migrate_after.or(usual.migrate_after),
        operations: args.operations.or(usual.operations),
        verify: args.verify,
        timeout: args.timeout,
        logs: args.logs.clone(),
        ..usual
    };

    let qemu = qemu::find()?;
    let images = run.images()?;
    let outcome = {
        let progress = Progress::start("booting two machines");
        run.execute_with(&qemu, &images, &mut |role, event| {
            progress.event(role, event)
        })?
    };
    let verdict = judge(&outcome, Expect::Migrates);
    let report = Report::new(&run, &outcome, &verdict);
    conclude(&report, &outcome, args.json.as_deref())
}
