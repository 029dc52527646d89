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
use std::path::Path;
use std::process::{Command, ExitCode};
use xtask::report::{Report, logs_of};
use xtask::run::Outcome;

/// Runs a command that speaks for itself; true if it succeeded.
fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    Ok(status.success())
}

/// Says how a run ended: as JSON if it is asked for, the logs if they are needed, and
/// the table.
fn conclude(report: &Report, outcome: &Outcome, json: Option<&Path>) -> Result<ExitCode> {
    let is_pass = report.failures.is_empty();
    if let Some(path) = json {
        report.write_json(path)?;
    }
    if !is_pass {
        eprint!("{}", logs_of(outcome));
    }
    print!("{report}");
    Ok(exit_code(is_pass))
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
