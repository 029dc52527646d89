//! Finds the debugger, and gets it where that is possible.

use crate::system::{System, apt_get};
use anyhow::{Context, Result};
use std::process::Command;

const PROGRAM: &str = "gdb";

/// The debugger, installed first if it is missing and that can be done.
///
/// # Errors
/// It is missing and cannot be installed; the message says how to.
pub fn find() -> Result<Command> {
    if !is_installed() {
        eprintln!("{PROGRAM} is missing");
        install().with_context(|| format!("{PROGRAM} is missing"))?;
    }
    Ok(Command::new(PROGRAM))
}

fn is_installed() -> bool {
    let found = Command::new(PROGRAM).arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

fn install() -> Result<()> {
    let arguments = ["install", "--no-install-recommends", PROGRAM];
    let by_hand = format!("apt-get {}", arguments.join(" "));
    System::read().may_install(PROGRAM, &by_hand)?;
    apt_get(&["update"])?;
    apt_get(&arguments)
}
