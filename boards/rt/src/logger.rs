//! The `log` crate's backend: short lines on COM1.

use crate::serial::{Port, Serial};
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

struct SerialLog(Mutex<Option<Serial>>);

static LOG: SerialLog = SerialLog(Mutex::new(None));

/// Opens COM1 and makes it the log. Called once, before anything logs.
pub(crate) fn start() {
    *LOG.0.lock() = Some(Serial::open(Port::Com1));
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Makes the log usable for a last message, even if what is being abandoned was
/// writing a line.
pub(crate) fn rescue() {
    if LOG.0.is_locked() {
        let mut last = Serial::open(Port::Com1);
        last.write_bytes(b"\n(log interrupted)\n");
        // Nobody returns to the line that was being written: the caller stops this
        // CPU, and then the machine; a line of the other CPU may be mixed in.
        force_unlock();
    }
}

#[allow(unsafe_code)]
fn force_unlock() {
    // SAFETY: the lock's holder never runs again (see `rescue`), or is the other CPU,
    // which at worst finishes its line: what the lock guards is a port.
    unsafe { LOG.0.force_unlock() }
}

impl Log for SerialLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut serial = self.0.lock();
        let Some(serial) = serial.as_mut() else {
            return;
        };
        let prefix = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        // A serial port cannot fail.
        let _ = writeln!(serial, "{prefix}{}", record.args());
    }

    fn flush(&self) {}
}
