//! A pair of rings that are turned by whoever rebuilds a controller.

use super::NvmeError;
use super::command::{Command, Completion};
use super::state::CompletionQueue;
use crate::memory::Frame;
use zerocopy::{FromZeros, IntoBytes};

const PAGE: usize = crate::PAGE_SIZE as usize;

/// A pair of rings in use: the queues, and how far they are.
pub(super) struct Pair<'a> {
    pub(super) submission_page: &'a Frame,
    pub(super) completion_page: &'a Frame,
    pub(super) submission: usize,
    pub(super) completion: usize,
    pub(super) submission_entries: u32,
    pub(super) tail: u32,
    /// How far the controller has read, as its last completion said.
    pub(super) head: u32,
    /// The completion queue as it will be: its size is used.
    pub(super) shape: CompletionQueue,
    /// How many completions came.
    pub(super) seen: u64,
    /// How many are acknowledged at the most.
    pub(super) limit: u64,
    pub(super) acknowledged: u64,
}

impl Pair<'_> {
    /// Where in the page the completion goes that has so many before it.
    pub(super) fn place(&self, before: u64) -> usize {
        let index = before % u64::from(self.shape.entries);
        index as usize * size_of::<Completion>() % PAGE
    }

    /// The phase of that completion: 1 in the first lap.
    pub(super) fn phase(&self, before: u64) -> u32 {
        (before / u64::from(self.shape.entries) + 1) as u32 & 1
    }

    /// Makes the next `count` places of the completion ring look old: all pages of a
    /// ring are one, so what is there may be of another page or another queue.
    pub(super) fn forget(&self, count: u32) {
        for ahead in 0..u64::from(count) {
            let mut old = Completion::new_zeroed();
            old.status = self.phase(self.seen + ahead) as u16 ^ 1;
            let at = self.place(self.seen + ahead);
            self.completion_page.write_bytes(at, old.as_bytes());
        }
    }

    /// How many commands can be put. A command that no completion tells of may not have
    /// been read, whatever became of those before it: with one too many the queue is
    /// empty to the controller, and all that is in it is lost.
    pub(super) fn room(&self) -> u32 {
        (self.head + self.submission_entries - 1 - self.tail) % self.submission_entries
    }

    /// Puts a command behind the last one, if there is room.
    pub(super) fn put(&mut self, command: Command) -> Result<(), NvmeError> {
        if self.room() == 0 {
            return Err(NvmeError::ImpossibleState);
        }
        let at = self.tail as usize * size_of::<Command>() % PAGE;
        self.submission_page.write_bytes(at, command.as_bytes());
        self.tail = (self.tail + 1) % self.submission_entries;
        Ok(())
    }
}
