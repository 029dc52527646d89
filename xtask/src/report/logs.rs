//! The end of each log, for a run that failed.

use super::SHOWN;
use crate::machine::Role;
use crate::run::Outcome;
use crate::tail::last_lines;
use std::fmt::Write;

/// QEMU warns of each feature of the CPU model that it cannot emulate. The
/// hypervisor checks for itself what it needs.
const USUAL_WARNING: &str = "warning: TCG doesn't support requested feature";

/// What both machines last said, and where all of it is.
pub fn logs_of(outcome: &Outcome) -> String {
    let mut text = String::new();
    for role in [Role::Source, Role::Destination] {
        for path in outcome.files(role).for_people() {
            let mut lines = last_lines(path, SHOWN);
            lines.retain(|line| !line.contains(USUAL_WARNING));
            if lines.is_empty() {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // Writing to a string cannot fail.
            writeln!(text, "--- end of {name}").ok();
            for line in lines {
                writeln!(text, "    {line}").ok();
            }
        }
    }
    writeln!(text, "full logs: {}", outcome.logs.display()).ok();
    text
}
