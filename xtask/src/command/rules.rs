//! `cargo xtask rules`: which test covers which rule of the VFIO interface.

use super::exit_code;
use anyhow::Result;
use std::process::ExitCode;
use xtask::rules::Coverage;
use xtask::workspace;

/// List the rules of the VFIO interface with their tests.
///
/// Fails if a rule has no test, or a test names a rule that is not listed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show only the rules without a test
    #[arg(long)]
    missing: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let coverage = Coverage::of(workspace::root())?;
    for rule in &coverage.rules {
        if args.missing && rule.is_covered() {
            continue;
        }
        println!("{:<4} {}", rule.number.to_string(), rule.text);
        for test in &rule.tests {
            println!("       {test}");
        }
        if !rule.is_covered() {
            println!("       NO TEST");
        }
    }
    for test in &coverage.strays {
        println!("{test} names a rule that is not listed");
    }
    let covered = coverage.rules.iter().filter(|rule| rule.is_covered());
    let (covered, total) = (covered.count(), coverage.rules.len());
    println!("{covered} of {total} rules are covered");
    Ok(exit_code(coverage.is_complete()))
}
