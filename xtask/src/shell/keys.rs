//! What is typed: bytes for the guest, and commands after an escape.

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

/// What came of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// It goes to the guest.
    Byte(u8),
    /// Migrate the guest.
    Migrate,
    /// End both machines.
    Quit,
    /// Show the commands.
    Help,
    /// It began a command.
    Nothing,
}

/// What can be typed, for people.
pub(super) const HELP: &str = "Ctrl-] m migrates the guest, Ctrl-] q ends everything, \
                               Ctrl-] Ctrl-] sends Ctrl-], `exit` ends the guest";

/// Tells commands from bytes.
#[derive(Default)]
pub(super) struct Keys {
    is_escaped: bool,
}

impl Keys {
    pub(super) fn take(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.is_escaped) {
            self.is_escaped = byte == ESCAPE;
            return match byte {
                ESCAPE => Key::Nothing,
                byte => Key::Byte(byte),
            };
        }
        match byte {
            b'm' => Key::Migrate,
            b'q' => Key::Quit,
            ESCAPE => Key::Byte(ESCAPE),
            _ => Key::Help,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_an_escape_is_a_command() {
        let mut keys = Keys::default();
        let typed = [b'm', ESCAPE, b'm', ESCAPE, ESCAPE, b'q', ESCAPE, b'x'];
        let seen = typed.map(|byte| keys.take(byte));
        assert_eq!(
            seen,
            [
                Key::Byte(b'm'),
                Key::Nothing,
                Key::Migrate,
                Key::Nothing,
                Key::Byte(ESCAPE),
                Key::Byte(b'q'),
                Key::Nothing,
                Key::Help,
            ]
        );
    }
}
