//! How far all threads together are.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// The operations to do, and those that are done.
pub(crate) struct Progress {
    total: u64,
    step: u64,
    done: AtomicU64,
}

impl Progress {
    /// `total` operations, of which every `step` are told.
    pub(crate) fn new(total: u64, step: u64) -> Self {
        Self {
            total,
            step: step.max(1),
            done: AtomicU64::new(0),
        }
    }

    /// Whether there is nothing left to do.
    pub(crate) fn is_over(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.total
    }

    /// One operation more is done.
    pub(crate) fn count(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(self.step) {
            println!("linux: progress uptime={} operations={done}", uptime());
        }
    }
}

/// Seconds since the kernel started, with two places; nothing if it does not say.
fn uptime() -> String {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = text.split(' ').next();
    uptime.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_all_operations_are_done() {
        let progress = Progress::new(2, 100);
        progress.count();
        assert!(!progress.is_over());
        progress.count();
        assert!(progress.is_over());
    }
}
