//! `cargo xtask`: build, run, test and lint Strandline.

#![allow(clippy::print_stdout)]

mod command;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, runs and tests Strandline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<command::run::Args>),
    Shell(command::shell::Args),
    Debug(command::debug::Args),
    Bench(command::bench::Args),
    Build(command::build::Args),
    Test(command::test::Args),
    Fuzz(command::fuzz::Args),
    Lint(command::lint::Args),
    Rules(command::rules::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => command::run::run(&args),
        Command::Shell(args) => command::shell::run(&args),
        Command::Debug(args) => command::debug::run(&args),
        Command::Bench(args) => command::bench::run(&args),
        Command::Build(args) => command::build::run(&args),
        Command::Test(args) => command::test::run(&args),
        Command::Fuzz(args) => command::fuzz::run(&args),
        Command::Lint(args) => command::lint::run(&args),
        Command::Rules(args) => command::rules::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
