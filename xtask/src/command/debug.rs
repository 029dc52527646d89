//! `cargo xtask debug`: the hypervisor or its guest under gdb.

use super::exit_code;
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;
use xtask::image::{self, Image};
use xtask::machine::{Machine, Role};
use xtask::qemu;
use xtask::run::Run;
use xtask::site::Site;
use xtask::units::Span;

/// Start one machine, stopped at its first instruction, and attach gdb to it.
///
/// The machine runs the test guest and does not migrate it. If gdb is not installed
/// the command for it is shown, and the machine waits.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose symbols gdb gets, and where it stops first
    #[arg(value_enum, default_value = "hypervisor")]
    what: What,
    /// The TCP port at which QEMU waits for gdb
    #[arg(long, value_name = "N", default_value_t = 1234)]
    port: u16,
    /// Show the command for gdb, do not start it
    #[arg(long)]
    no_gdb: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Strandline itself
    Hypervisor,
    /// The test guest: its addresses are what the CPU has while it runs the guest
    Guest,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let run = Run {
        gdb: Some(args.port),
        migrate_after: Some(Span::seconds(1_000_000)),
        ..Run::new("debug")
    };
    let (qemu, images) = (qemu::find()?, run.images()?);
    let site = Site::new(&run, &qemu, &images)?;
    let mut machine = site.start(Role::Source, None)?;

    let symbols = image::with_symbols(match args.what {
        What::Hypervisor => Image::Pc,
        What::Guest => Image::Guest,
    });
    let target = format!("target remote 127.0.0.1:{}", args.port);
    let mut gdb = Command::new("gdb");
    gdb.arg(&symbols);
    // A breakpoint of the CPU's: the code is not loaded yet.
    gdb.args([
        "-ex",
        &target,
        "-ex",
        "hbreak image_main",
        "-ex",
        "continue",
    ]);
    println!("the machine waits for gdb at TCP port {}:", args.port);
    println!(
        "  gdb {} -ex '{target}' -ex 'hbreak image_main' -ex continue",
        symbols.display()
    );
    if args.no_gdb || !is_installed() {
        println!("Ctrl-C ends it");
        return Ok(exit_code(wait(&mut machine)?));
    }
    let status = gdb.status().context("cannot run gdb")?;
    machine.kill();
    Ok(exit_code(status.success()))
}

fn is_installed() -> bool {
    let found = Command::new("gdb").arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

/// Waits for the machine's end; whether its guest was content.
fn wait(machine: &mut Machine) -> Result<bool> {
    while !machine.seen.has_ended() {
        machine.poll()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(machine.seen.guest_exit == Some(0))
}
