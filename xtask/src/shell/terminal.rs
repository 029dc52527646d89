//! The terminal of the person: raw while the shell runs.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::{Stdin, stdin};

/// A terminal that hands on each key as it is typed, until it is dropped.
pub(super) struct Raw {
    before: Option<Termios>,
    terminal: Stdin,
}

impl Raw {
    /// Makes standard input raw if it is a terminal, else leaves it alone.
    pub(super) fn enter() -> Self {
        let terminal = stdin();
        let before = isatty(&terminal)
            .then(|| tcgetattr(&terminal).ok())
            .flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // Keys then arrive a line at a time, which is no reason to stop.
            tcsetattr(&terminal, OptionalActions::Now, &raw).ok();
        }
        Self { before, terminal }
    }

    /// Whether there is a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.before.is_some()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing else can be done about it.
            tcsetattr(&self.terminal, OptionalActions::Now, before).ok();
        }
    }
}
