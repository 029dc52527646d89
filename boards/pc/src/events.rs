//! Machine-readable events: one JSON object (RFC 8259) a line on COM2, and what the
//! operator asks for by the same port.

use crate::clock::TscClock;
use core::fmt::{self, Write};
use hv_core::clock::Clock;
use spin::{Mutex, Once};
use strandline_rt::serial::{Port, Serial};

/// A member's value.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// A number.
    Number(u64),
    /// True or false.
    Flag(bool),
    /// Text, or anything that can be shown as text.
    Text(&'a dyn fmt::Display),
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Number(u64::from(number))
    }
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl<'a, T: fmt::Display> From<&'a T> for Value<'a> {
    fn from(text: &'a T) -> Self {
        Self::Text(text)
    }
}

static COM2: Mutex<Option<Serial>> = Mutex::new(None);

/// Asks the source to migrate its guest now.
const MIGRATE: u8 = b'm';

/// Whether the operator asked for the migration since the last call: by a byte on the
/// same port. Anything else that arrives there is dropped.
pub fn take_migration_request() -> bool {
    let mut port = COM2.lock();
    let port = port.get_or_insert_with(|| Serial::open(Port::Com2));
    core::iter::from_fn(|| port.read_byte()).any(|byte| byte == MIGRATE)
}

static CLOCK: Once<TscClock> = Once::new();

/// Has every event from now on say when it was, in microseconds of `clock`.
pub fn set_clock(clock: TscClock) {
    CLOCK.call_once(|| clock);
}

/// Writes an event: `emit("round", &[("pages", 12u64.into())])`.
pub fn emit(event: &str, members: &[(&str, Value<'_>)]) {
    let mut port = COM2.lock();
    let port = port.get_or_insert_with(|| Serial::open(Port::Com2));
    let at_us = CLOCK.get().map(Clock::now_us);
    // A serial port cannot fail.
    let _ = write_event(port, event, at_us, members);
}

fn write_event(
    out: &mut impl Write,
    event: &str,
    at_us: Option<u64>,
    members: &[(&str, Value<'_>)],
) -> fmt::Result {
    out.write_str("{\"event\":")?;
    write_text(out, &event)?;
    if let Some(at_us) = at_us {
        write!(out, ",\"at_us\":{at_us}")?;
    }
    for (name, value) in members {
        out.write_str(",")?;
        write_text(out, name)?;
        out.write_str(":")?;
        match value {
            Value::Number(number) => write!(out, "{number}")?,
            Value::Flag(flag) => write!(out, "{flag}")?,
            Value::Text(text) => write_text(out, text)?,
        }
    }
    out.write_str("}\n")
}

fn write_text(out: &mut impl Write, text: &dyn fmt::Display) -> fmt::Result {
    out.write_str("\"")?;
    write!(Escaped(out), "{text}")?;
    out.write_str("\"")
}

/// Escapes what a JSON string must not contain.
struct Escaped<'a, W>(&'a mut W);

impl<W: Write> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                c if c < ' ' => write!(self.0, "\\u{:04x}", c as u32)?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &str, members: &[(&str, Value<'_>)]) -> String {
        let mut out = String::new();
        write_event(&mut out, event, None, members).unwrap();
        out
    }

    #[test]
    fn an_event_is_one_object_on_one_line() {
        assert_eq!(line("resumed", &[]), "{\"event\":\"resumed\"}\n");
        assert_eq!(
            line(
                "x",
                &[
                    ("n", u64::MAX.into()),
                    ("ok", true.into()),
                    ("why", (&"no").into())
                ]
            ),
            "{\"event\":\"x\",\"n\":18446744073709551615,\"ok\":true,\"why\":\"no\"}\n"
        );
    }

    #[test]
    fn an_event_says_when_it_was_once_there_is_a_clock() {
        let mut out = String::new();
        write_event(&mut out, "cue", Some(17), &[]).unwrap();
        assert_eq!(out, "{\"event\":\"cue\",\"at_us\":17}\n");
    }

    #[test]
    fn text_cannot_end_the_string_or_the_line() {
        assert_eq!(
            line("x", &[("t", (&"a\"b\\c\nd\u{1}é").into())]),
            "{\"event\":\"x\",\"t\":\"a\\\"b\\\\c\\nd\\u0001é\"}\n"
        );
    }
}
