//! `cargo xtask debug`: the hypervisor or its guest under gdb.

use super::exit_code;
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use xtask::image::{self, Image};
use xtask::machine::{Machine, Role};
use xtask::run::Run;
use xtask::site::Site;
use xtask::units::Span;
use xtask::{gdb, qemu};

/// Start one machine, stopped at its first instruction, attach gdb to it, and let it
/// run to the main function of the hypervisor or of its guest.
///
/// The machine runs the test guest and does not migrate it. gdb is installed if it is
/// missing and that can be done. In the guest, breakpoints and registers are the
/// guest's; memory is not, because QEMU looks it up in the guest's page tables without
/// the hypervisor's beneath.
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
    /// More arguments for gdb, such as: -- -batch -ex backtrace
    #[arg(last = true, value_name = "ARGUMENTS")]
    more: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Strandline itself
    Hypervisor,
    /// The test guest: its addresses are what the CPU has while it runs the guest
    Guest,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut gdb = match args.no_gdb {
        true => None,
        false => Some(gdb::find()?),
    };
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
    let commands = [
        format!("target remote 127.0.0.1:{}", args.port),
        // A breakpoint of the CPU's: the code is not loaded yet.
        "hbreak image_main".into(),
        "continue".into(),
    ];
    println!("the machine waits for gdb at TCP port {}:", args.port);
    println!("  {}", command_line(&symbols, &commands));
    let Some(gdb) = &mut gdb else {
        println!("Ctrl-C ends it");
        return Ok(exit_code(wait(&mut machine)?));
    };
    gdb.arg(&symbols);
    for command in &commands {
        gdb.args(["-ex", command]);
    }
    let status = gdb.args(&args.more).status().context("cannot run gdb")?;
    machine.kill();
    Ok(exit_code(status.success()))
}

/// What to type to have gdb attached.
fn command_line(symbols: &Path, commands: &[String]) -> String {
    let commands: String = commands.iter().map(|it| format!(" -ex '{it}'")).collect();
    format!("gdb {}{commands}", symbols.display())
}

/// Waits for the machine's end; whether its guest was content.
fn wait(machine: &mut Machine) -> Result<bool> {
    while !machine.seen.has_ended() {
        machine.poll()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(machine.seen.guest_exit == Some(0))
}
