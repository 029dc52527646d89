//! The subcommands, one module each.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod debug;
pub(crate) mod fuzz;
pub(crate) mod lint;
pub(crate) mod linux;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod test;

use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

/// Runs a command that speaks for itself; true if it succeeded.
fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    Ok(status.success())
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
