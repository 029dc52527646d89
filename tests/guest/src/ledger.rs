//! The plan and the ledger: what is done next, and what every page must hold.
//!
//! Both are one state machine, because what can be done next depends on what is
//! mapped. It draws only on the seed, so a fresh ledger that replays as many
//! operations arrives at the same expectations, whatever became of the first.
//!
//! A page is either the CPU's or mapped for the device in a slot. The CPU does
//! not write a page when it maps it: its dirty mark would hide whether the unmap
//! reports. A slot is a fixed window of two pages of IOVA space, so each time a slot is
//! mapped again, the same IOVA leads elsewhere.

use crate::content::{Content, PATCHES, Patch, Stamp, WORDS};
use crate::rng::Rng;

/// How many pages a ledger can account for (32 MiB).
pub const MAX_PAGES: usize = 8192;
/// How many slots each domain has.
pub const SLOTS: usize = 8;
/// How many of them, from the first on, are mapped and unmapped all the time. The
/// others stay mapped for long, like the rings of a driver, and are written again
/// and again meanwhile: whoever stops the machine finds them mapped.
const BRIEF_SLOTS: usize = 4;
/// How many domains the device is switched between.
pub const DOMAINS: usize = 2;
/// The size of a slot, in pages.
pub const SLOT_PAGES: usize = 2;

/// An index into the pages in play.
pub type Page = u16;

/// Who wrote a page last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Writer {
    /// The CPU.
    #[default]
    Cpu,
    /// The device.
    Device,
}

/// What is known of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// What it must hold.
    pub content: Content,
    /// Who wrote it last.
    pub writer: Writer,
    /// The operation that wrote it, from 1 on; 0 is the first fill.
    pub operation: u32,
    /// Whether it is mapped in a slot.
    pub mapped: bool,
}

/// One thing to do. Slots are those of the device's current domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// The CPU writes a whole page.
    Write {
        /// The page.
        page: Page,
        /// The pattern.
        stamp: Stamp,
    },
    /// The device reads a page into its buffer, through a read-only mapping that
    /// is made and removed for it.
    Load {
        /// The slot whose IOVA is used; it is free.
        slot: usize,
        /// The page.
        page: Page,
    },
    /// Maps two pages in a free slot, for the device to write.
    Map {
        /// The slot.
        slot: usize,
        /// The pages, in the order of their IOVAs.
        pages: [Page; SLOT_PAGES],
    },
    /// The device writes its buffer into a mapped slot.
    Store {
        /// The slot.
        slot: usize,
        /// Where in the slot the first word goes.
        offset: usize,
        /// The number of words, up to [`WORDS`].
        len: usize,
    },
    /// Removes the mappings of a slot.
    Unmap {
        /// The slot.
        slot: usize,
    },
    /// Starts a device write into a page and unmaps it before the write comes;
    /// then the CPU writes the page. The device's write must not land.
    Abandon {
        /// The slot whose IOVA is used; it is free.
        slot: usize,
        /// The page.
        page: Page,
        /// What the CPU writes once the unmap is complete.
        stamp: Stamp,
    },
    /// The device writes to a page mapped read-only. It must not land.
    Forbidden {
        /// The slot whose IOVA is used; it is free.
        slot: usize,
        /// The page.
        page: Page,
    },
    /// Attaches the device to the other domain; slots stay mapped in the old one.
    Switch {
        /// The domain.
        domain: usize,
    },
}

/// What is mapped in a slot.
#[derive(Clone, Copy, Debug)]
struct Mapped {
    pages: [Page; SLOT_PAGES],
    stores: usize,
}

/// The state of the plan.
pub struct Ledger {
    rng: Rng,
    done: u32,
    count: usize,
    entries: [Entry; MAX_PAGES],
    slots: [[Option<Mapped>; SLOTS]; DOMAINS],
    domain: usize,
    buffer: Stamp,
}

impl Ledger {
    /// A ledger that is set up by [`Ledger::reset`] before its first use; it fits
    /// static memory.
    pub const fn empty() -> Self {
        const ENTRY: Entry = Entry {
            content: Content::full(Stamp(0)),
            writer: Writer::Cpu,
            operation: 0,
            mapped: false,
        };
        Self {
            rng: Rng::new(0),
            done: 0,
            count: 0,
            entries: [ENTRY; MAX_PAGES],
            slots: [[None; SLOTS]; DOMAINS],
            domain: 0,
            buffer: Stamp(0),
        }
    }

    /// Starts the plan of `seed` over `pages` pages (cut to [`MAX_PAGES`]), each
    /// holding its first pattern. The device's buffer is not known yet, so the
    /// first operation is a load.
    pub fn reset(&mut self, seed: u64, pages: usize) {
        self.rng = Rng::new(seed);
        self.done = 0;
        self.count = pages.min(MAX_PAGES);
        self.slots = [[None; SLOTS]; DOMAINS];
        self.domain = 0;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            *entry = Entry {
                content: Content::full(Stamp(index as u32)),
                ..Entry::default()
            };
        }
    }

    /// What is known of the pages in play.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.count]
    }

    /// How many operations were planned so far.
    pub fn operations(&self) -> u32 {
        self.done
    }

    /// Decides the next operation and enters its outcome.
    pub fn next_operation(&mut self) -> Operation {
        let operation = self.choose();
        self.done += 1;
        self.enter(operation);
        operation
    }

    /// A stamp no other operation uses: first fills use those below
    /// [`MAX_PAGES`].
    fn fresh_stamp(&self) -> Stamp {
        Stamp(MAX_PAGES as u32 + self.done)
    }

    fn choose(&mut self) -> Operation {
        let slot = self.rng.below(SLOTS as u64) as usize;
        let dice = self.rng.below(100);
        let stores = self.slots[self.domain][slot].map(|mapped| mapped.stores);
        let stamp = self.fresh_stamp();
        if self.done == 0 {
            return Operation::Load {
                slot,
                page: self.pick(true),
            };
        }
        match (stores, dice) {
            (_, 0..30) => Operation::Write {
                page: self.pick(false),
                stamp,
            },
            (_, 30..32) => Operation::Switch {
                domain: (self.domain + 1) % DOMAINS,
            },
            // A whole page each time, so that any number of them can be told by
            // the youngest.
            (Some(_), 32..99) if slot >= BRIEF_SLOTS => Operation::Store {
                slot,
                offset: self.rng.below(SLOT_PAGES as u64) as usize * WORDS,
                len: WORDS,
            },
            (Some(0..PATCHES), 32..66) => {
                // Short transfers now and then; most reach into both pages.
                let len = if dice < 40 { WORDS / 8 } else { WORDS };
                Operation::Store {
                    slot,
                    offset: self.rng.below(WORDS as u64) as usize,
                    len,
                }
            }
            (Some(_), _) => Operation::Unmap { slot },
            (None, 32..40) => Operation::Load {
                slot,
                page: self.pick(true),
            },
            (None, 40..45) => Operation::Abandon {
                slot,
                page: self.pick(false),
                stamp,
            },
            (None, 45..47) => Operation::Forbidden {
                slot,
                page: self.pick(false),
            },
            (None, _) => {
                let first = self.pick(true);
                let mut second = self.pick(true);
                while second == first {
                    second = self.pick(true);
                }
                Operation::Map {
                    slot,
                    pages: [first, second],
                }
            }
        }
    }

    /// A page that is not mapped; with `plain`, one without a patch.
    fn pick(&mut self, plain: bool) -> Page {
        loop {
            let page = self.rng.below(self.count as u64) as usize;
            let entry = &self.entries[page];
            if !entry.mapped && (entry.content.is_plain() || !plain) {
                return page as Page;
            }
        }
    }

    fn enter(&mut self, operation: Operation) {
        match operation {
            Operation::Write { page, stamp } | Operation::Abandon { page, stamp, .. } => {
                self.wrote(page, Writer::Cpu, Content::full(stamp));
            }
            Operation::Load { page, .. } => {
                self.buffer = self.entries[usize::from(page)].content.base;
            }
            Operation::Map { slot, pages } => {
                self.slots[self.domain][slot] = Some(Mapped { pages, stores: 0 });
                for page in pages {
                    self.entries[usize::from(page)].mapped = true;
                }
            }
            Operation::Store { slot, offset, len } => {
                let Some(mapped) = &mut self.slots[self.domain][slot] else {
                    return;
                };
                mapped.stores += 1;
                let pages = mapped.pages;
                let in_first = len.min(WORDS.saturating_sub(offset));
                if in_first > 0 {
                    self.patched(pages[0], 0, offset, in_first);
                }
                if len > in_first {
                    let to = offset.saturating_sub(WORDS);
                    self.patched(pages[1], in_first, to, len - in_first);
                }
            }
            Operation::Unmap { slot } => {
                let mapped = self.slots[self.domain][slot].take();
                for page in mapped.into_iter().flat_map(|mapped| mapped.pages) {
                    self.entries[usize::from(page)].mapped = false;
                }
            }
            Operation::Forbidden { .. } => {}
            Operation::Switch { domain } => self.domain = domain,
        }
    }

    fn wrote(&mut self, page: Page, writer: Writer, content: Content) {
        let entry = &mut self.entries[usize::from(page)];
        entry.content = content;
        entry.writer = writer;
        entry.operation = self.done;
    }

    /// Enters a transfer of the device's buffer into one page.
    fn patched(&mut self, page: Page, from: usize, to: usize, len: usize) {
        let mut content = self.entries[usize::from(page)].content;
        content.put(Patch {
            stamp: self.buffer,
            from: from as u16,
            to: to as u16,
            len: len as u16,
        });
        self.wrote(page, Writer::Device, content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    fn ledger(seed: u64) -> Box<Ledger> {
        let mut ledger = Box::new(Ledger::empty());
        ledger.reset(seed, 500);
        ledger
    }

    #[test]
    fn a_replay_arrives_at_the_same_expectations() {
        let (mut first, mut second) = (ledger(3), ledger(3));
        let plan: Vec<_> = (0..2000).map(|_| first.next_operation()).collect();
        let replay: Vec<_> = (0..2000).map(|_| second.next_operation()).collect();
        assert_eq!(plan, replay);
        assert_eq!(first.entries(), second.entries());
        assert_ne!(ledger(4).next_operation(), plan[0]);
    }

    /// Carries the plan out on plain memory, as the guest does on its device.
    #[test]
    fn the_ledger_is_what_carrying_the_plan_out_gives() {
        let mut ledger = ledger(9);
        let mut memory: Vec<[u64; WORDS]> = ledger
            .entries()
            .iter()
            .map(|entry| core::array::from_fn(|word| entry.content.word(word)))
            .collect();
        let mut buffer = [0; WORDS];
        let mut slots = [[None; SLOTS]; DOMAINS];
        let mut current = 0;
        let mut device_writes = 0;
        for _ in 0..5000 {
            match ledger.next_operation() {
                Operation::Write { page, stamp } | Operation::Abandon { page, stamp, .. } => {
                    memory[usize::from(page)] = core::array::from_fn(|word| stamp.word(word));
                }
                Operation::Load { page, .. } => buffer = memory[usize::from(page)],
                Operation::Map { slot, pages } => slots[current][slot] = Some(pages),
                Operation::Store { slot, offset, len } => {
                    device_writes += 1;
                    let pages = slots[current][slot].unwrap();
                    for (index, word) in buffer.iter().enumerate().take(len) {
                        let at = offset + index;
                        memory[usize::from(pages[at / WORDS])][at % WORDS] = *word;
                    }
                }
                Operation::Unmap { slot } => slots[current][slot] = None,
                Operation::Forbidden { .. } => {}
                Operation::Switch { domain } => current = domain,
            }
        }
        for (page, entry) in memory.iter().zip(ledger.entries()) {
            for (index, word) in page.iter().enumerate() {
                assert_eq!(*word, entry.content.word(index));
            }
        }
        assert!(device_writes > 500, "{device_writes}");
    }

    #[test]
    fn no_page_is_in_two_slots_and_none_the_cpu_writes_is_mapped() {
        let mut ledger = ledger(11);
        let mut mapped = std::collections::BTreeMap::new();
        let mut domain = 0;
        for _ in 0..5000 {
            match ledger.next_operation() {
                Operation::Map { slot, pages } => {
                    for page in pages {
                        assert_eq!(mapped.insert(page, (domain, slot)), None);
                    }
                }
                Operation::Unmap { slot } => mapped.retain(|_, at| *at != (domain, slot)),
                Operation::Switch { domain: to } => domain = to,
                Operation::Write { page, .. } | Operation::Abandon { page, .. } => {
                    assert!(!mapped.contains_key(&page));
                }
                _ => {}
            }
        }
    }
}
