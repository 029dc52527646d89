//! Live progress: one moving line on a terminal, plain lines elsewhere.

use crate::events::Event;
use crate::machine::Role;
use crate::units::human_bytes;
use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::time::Duration;

/// Shows how a run goes, on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts with what is going on now.
    pub fn start(message: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let progress = Self { bar };
        progress.now(message);
        progress
    }

    /// Shows an event, if it tells a person something.
    pub fn event(&self, role: Role, event: &Event) {
        if let Some(text) = describe(event) {
            self.now(&format!("{role}: {text}"));
        }
    }

    /// Shows what is going on now.
    pub fn now(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(message.to_owned()),
            None => eprintln!("{message}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::Boot { version, .. } => format!("Strandline {version} is up"),
        Event::Refused { reason } => format!("refused: {reason}"),
        Event::Connected => "the destination accepts the guest".into(),
        Event::Round(round) => format!(
            "round {}: {} pages ({} zero) at {}/s; dirty: {} by CPU, {} mapped, {} by unmap; {} left",
            round.round,
            round.pages,
            round.zero,
            human_bytes(round.rate),
            round.dirty_cpu,
            round.dirty_mapped,
            round.dirty_unmap,
            round.remaining
        ),
        Event::Cue => "the guest gives its cue".into(),
        Event::Switchover => "guest stopped, switching over".into(),
        Event::Migrated(migrated) => format!("migrated in {} rounds", migrated.rounds),
        Event::MigrationFailed { reason } => format!("migration failed: {reason}"),
        Event::Resumed => "guest resumed".into(),
        Event::Mismatch { gfn } => format!("frame {gfn:#x} differs"),
        Event::GuestExit { status, way } => match way.as_str() {
            "power-off" => "guest turned its machine off".into(),
            "reset" => "guest reset its machine".into(),
            _ => format!("guest ended with status {status}"),
        },
        // One line each would be noise; their number is in the table.
        Event::Iommu { .. }
        | Event::DmaFault { .. }
        | Event::DeviceReset { .. }
        | Event::DeviceRebuilt(_)
        | Event::RefusedMapping { .. }
        | Event::InterruptFault { .. }
        | Event::StrayInterrupt { .. }
        | Event::Exits(_)
        | Event::Unknown => return None,
    })
}
