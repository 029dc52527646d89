//! The guest's console: the port it goes to, and a word in it that is waited for.

use heapless::Vec;
use strandline_rt::serial::{Port, Serial};

/// As much of a line as is looked at.
const LINE: usize = 128;

/// The guest's console.
pub(super) struct Console<'m> {
    pub(super) port: Serial,
    cue: Option<Cue<'m>>,
}

impl<'m> Console<'m> {
    /// The console on COM3. It waits for no word.
    pub(super) fn open() -> Self {
        Self {
            port: Serial::open(Port::Com3),
            cue: None,
        }
    }

    /// Waits from now on for a line that ends with `word`.
    pub(super) fn wait_for(&mut self, word: &'m str) {
        self.cue = Some(Cue::new(word));
    }

    /// Sends a byte of the guest.
    pub(super) fn send(&mut self, byte: u8) {
        self.port.write_bytes(&[byte]);
        if let Some(cue) = &mut self.cue {
            cue.take(byte);
        }
    }

    /// Whether the word came since the last call.
    pub(super) fn take_cue(&mut self) -> bool {
        let came = self.cue.as_mut().map(|cue| &mut cue.came);
        came.is_some_and(core::mem::take)
    }
}

/// Looks for lines that end with a word.
struct Cue<'m> {
    word: &'m str,
    /// The line so far; one that is longer than this ends with nothing.
    line: Vec<u8, LINE>,
    is_too_long: bool,
    came: bool,
}

impl<'m> Cue<'m> {
    fn new(word: &'m str) -> Self {
        Self {
            word,
            line: Vec::new(),
            is_too_long: false,
            came: false,
        }
    }

    fn take(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                let ends = self.line.ends_with(self.word.as_bytes());
                self.came |= ends && !self.is_too_long;
                self.line.clear();
                self.is_too_long = false;
            }
            b'\r' => {}
            _ => self.is_too_long |= self.line.push(byte).is_err(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hears(text: &str) -> bool {
        let mut cue = Cue::new("n=3");
        text.bytes().for_each(|byte| cue.take(byte));
        cue.came
    }

    #[test]
    fn a_word_counts_at_the_end_of_a_whole_line() {
        assert!(hears("n=3\r\n") && hears("other\ntick n=3\nmore"));
        for text in ["n=3", "n=3 \n", "n=30\n", "n=\n3\n"] {
            assert!(!hears(text), "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_no_cue_and_the_next_one_is() {
        let long = "x".repeat(LINE);
        assert!(!hears(&format!("{long}n=3\n")));
        assert!(!hears(&format!("{}n=3xxx\n", &long[3..])));
        assert!(hears(&format!("{long}{long}\nn=3\n")));
    }
}
