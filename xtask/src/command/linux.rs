//! `cargo xtask run linux`: a stock kernel as the guest.

use super::exit_code;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::linux::{self, Console, Sources};
use xtask::progress::Progress;
use xtask::qemu;
use xtask::report::logs_of;
use xtask::run::{Outcome, Run};
use xtask::units::{Size, Span};

/// Boot Debian's stock kernel as the guest and migrate it while it idles.
///
/// Kernel and busybox are fetched by apt-get into the target directory. Exits with 0
/// only if init ran to its end on the destination, its clock never went backwards
/// and the kernel logged no error
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
        default_value = "console=ttyS0 intel_iommu=on iommu.strict=1"
    )]
    append: String,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    memory: Size,
    /// How long the guest runs before its migration starts, in the machine's time
    #[arg(long, value_name = "TIME", default_value = "9s")]
    migrate_after: Span,
    /// Do not migrate: the guest ends where it booted
    #[arg(long, conflicts_with = "migrate_after")]
    stay: bool,
    /// Give up after this time on the wall clock
    #[arg(long, value_name = "TIME", default_value = "240s")]
    timeout: Span,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let never = Span::seconds(1_000_000);
    let run = Run {
        memory: args.memory,
        migrate_after: Some(if args.stay { never } else { args.migrate_after }),
        guest_line: Some(args.append.clone()),
        timeout: args.timeout,
        ..Run::new("linux")
    };
    let qemu = qemu::find()?;
    let images = linux::images(&Sources {
        kernel: args.kernel.clone(),
        initramfs: args.initrd.clone(),
    })?;
    let outcome = {
        let progress = Progress::start("booting two machines");
        run.execute_with(&qemu, &images, &mut |role, event| {
            progress.event(role, event);
        })?
    };
    let console = Console::read(&outcome)?;
    let wrong = linux::judge(&outcome, &console, !args.stay);
    if !wrong.is_empty() {
        eprint!("{}", logs_of(&outcome));
    }
    show(&outcome, &console);
    for line in &wrong {
        println!("  wrong: {line}");
    }
    println!("{}", if wrong.is_empty() { "PASS" } else { "FAIL" });
    Ok(exit_code(wrong.is_empty()))
}

fn show(outcome: &Outcome, console: &Console) {
    let seconds = |at: Option<u64>| match at {
        Some(at) => format!("{}.{:02} s", at / 100, at % 100),
        None => "-".into(),
    };
    let rows = [
        ("kernel", console.kernel.clone().unwrap_or("-".into())),
        ("init started, guest's clock", seconds(console.init)),
        ("init ended, guest's clock", seconds(console.end)),
        ("clock sources", console.clock_sources.join(", ")),
        (
            "ticks before and after the move",
            format!(
                "{} + {}",
                console.ticks_on_source,
                console.ticks.len() - console.ticks_on_source
            ),
        ),
        (
            "kernel errors in boot and later",
            format!("{} + {}", console.boot_errors.len(), console.errors.len()),
        ),
        (
            "downtime",
            match &outcome.source.migrated {
                Some(migrated) => format!("{} us", migrated.downtime_us),
                None => "-".into(),
            },
        ),
        (
            "wall clock",
            format!("{:.1} s", outcome.elapsed.as_secs_f64()),
        ),
        ("logs", outcome.logs.display().to_string()),
    ];
    for (name, value) in rows {
        println!("  {name:<32} {value}");
    }
}
