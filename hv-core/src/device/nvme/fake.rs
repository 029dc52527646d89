//! A controller that behaves as the specification says, as far as it is needed: new
//! queues start at entry 0 in phase 1, and nothing but commands moves them on.

use super::command::{Command, Completion, FLUSH, admin};
use super::register::{ACQ, AQA, ASQ, CAP, CC, CSTS, DOORBELLS};
use super::{GuestDma, NvmeState, Scratch};
use crate::memory::Frame;
use crate::mmio::Mmio;
use crate::{PAGE_SHIFT, PAGE_SIZE};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// What a device reaches: pages by IOVA.
#[derive(Clone, Default)]
pub(super) struct Memory(Rc<RefCell<BTreeMap<u64, Rc<Frame>>>>);

impl Memory {
    /// Memory of its own at `iova`.
    pub(super) fn give(&self, iova: u64, pages: u64) {
        for page in 0..pages {
            let frame = Rc::new(Frame::zeroed());
            self.0
                .borrow_mut()
                .insert((iova >> PAGE_SHIFT) + page, frame);
        }
    }

    /// What a device reaches while it is rebuilt: the rings of `state` on scratch
    /// pages, and those.
    pub(super) fn scratch(state: &NvmeState) -> (Self, [Rc<Frame>; 4]) {
        let pages: [Rc<Frame>; 4] = core::array::from_fn(|_| Rc::new(Frame::zeroed()));
        let memory = Self::default();
        for ring in state.rings() {
            for page in 0..ring.pages {
                let page = (ring.start >> PAGE_SHIFT) + page;
                let frame = pages[ring.scratch].clone();
                memory.0.borrow_mut().insert(page, frame);
            }
        }
        (memory, pages)
    }

    fn page(&self, iova: u64) -> Option<Rc<Frame>> {
        self.0.borrow().get(&(iova >> PAGE_SHIFT)).cloned()
    }
}

pub(super) fn scratch(pages: &[Rc<Frame>; 4]) -> Scratch<'_> {
    Scratch {
        pages: core::array::from_fn(|index| &*pages[index]),
    }
}

impl GuestDma for Memory {
    fn read(&self, iova: u64, to: &mut [u8]) -> bool {
        let offset = (iova % PAGE_SIZE) as usize;
        self.page(iova)
            .is_some_and(|page| page.read_bytes(offset, to) == to.len())
    }
    fn write(&self, iova: u64, from: &[u8]) -> bool {
        let offset = (iova % PAGE_SIZE) as usize;
        self.page(iova)
            .is_some_and(|page| page.write_bytes(offset, from) == from.len())
    }
}

#[derive(Clone, Copy, Default)]
struct Queue {
    base: u64,
    entries: u32,
    /// A submission queue's head, a completion queue's tail.
    next: u32,
    /// The other end, by doorbell.
    doorbell: u32,
    phase: u16,
    target: usize,
}

/// The controller.
#[derive(Default)]
pub(super) struct Controller {
    pub(super) memory: Memory,
    registers: BTreeMap<u64, u32>,
    submission: [Queue; 9],
    completion: [Queue; 9],
    /// Event requests that wait.
    pub(super) events: Vec<u16>,
    pub(super) features: Vec<[u32; 6]>,
    /// Host Behavior Support, the beginning of it.
    pub(super) behavior: [u64; 8],
    /// How many commands were completed.
    pub(super) completed: u64,
    /// I/O commands carried out: queue and id.
    pub(super) done: Vec<(usize, u16)>,
    /// Commands are left where they are.
    pub(super) is_slow: bool,
}

/// Queues of up to 64 entries; doorbells 4 bytes apart.
pub(super) const CAPABILITIES: u64 = 63;

pub(super) struct Shared(pub(super) RefCell<Controller>);

impl Shared {
    pub(super) fn new(memory: Memory) -> Self {
        Self(RefCell::new(Controller {
            memory,
            ..Controller::default()
        }))
    }

    pub(super) fn work(&self) {
        self.0.borrow_mut().work();
    }
}

impl Mmio for &Shared {
    fn read32(&self, offset: usize) -> u32 {
        let controller = self.0.borrow();
        match offset as u64 {
            CAP => CAPABILITIES as u32,
            0x04 => (CAPABILITIES >> 32) as u32,
            CSTS => controller.register(CC) & 1,
            at => controller.register(at),
        }
    }
    fn write32(&self, offset: usize, value: u32) {
        let mut controller = self.0.borrow_mut();
        let at = offset as u64;
        if at >= DOORBELLS {
            controller.ring((at - DOORBELLS) as usize / 4, value);
            return;
        }
        let was_on = controller.register(CC) & 1 != 0;
        controller.registers.insert(at, value);
        if at == CC && (value & 1 != 0) != was_on {
            controller.switch(value & 1 != 0);
        }
    }
    fn read64(&self, _: usize) -> u64 {
        panic!("registers are read by halves")
    }
    fn write64(&self, _: usize, _: u64) {
        panic!("registers are written by halves")
    }
}

impl Controller {
    fn register(&self, at: u64) -> u32 {
        self.registers.get(&at).copied().unwrap_or(0)
    }

    fn switch(&mut self, on: bool) {
        self.submission = Default::default();
        self.completion = Default::default();
        self.events.clear();
        self.features.clear();
        self.behavior = [0; 8];
        if on {
            let base = |at| u64::from(self.register(at + 4)) << 32 | u64::from(self.register(at));
            let aqa = self.register(AQA);
            let (asq, acq) = (base(ASQ), base(ACQ));
            self.submission[0] = queue(asq, (aqa & 0xfff) + 1, 0);
            self.completion[0] = queue(acq, (aqa >> 16) + 1, 0);
        }
    }

    fn ring(&mut self, index: usize, value: u32) {
        let queues = [&mut self.submission, &mut self.completion];
        let queue = &mut queues[index % 2][index / 2];
        assert!(value < queue.entries, "doorbell {index} of {value}");
        queue.doorbell = value;
        if !self.is_slow {
            self.work();
        }
    }

    fn work(&mut self) {
        for number in 0..self.submission.len() {
            while self.submission[number].next != self.submission[number].doorbell {
                let queue = &mut self.submission[number];
                let at = queue.base + 64 * u64::from(queue.next);
                queue.next = (queue.next + 1) % queue.entries;
                let mut command = Command::default();
                assert!(self.memory.read(at, command.as_mut_bytes()));
                self.carry_out(number, &command);
            }
        }
    }

    fn carry_out(&mut self, number: usize, command: &Command) {
        let [word10, word11, ..] = command.words;
        let id = (word10 & 0xffff) as usize;
        let size = (word10 >> 16) + 1;
        let mut status = 0;
        match (number, command.opcode) {
            (0, admin::CREATE_COMPLETION) => self.completion[id] = queue(command.data[0], size, 0),
            (0, admin::CREATE_SUBMISSION) => {
                let target = (word11 >> 16) as usize;
                assert!(self.submission[id].entries == 0, "queue {id} is there");
                assert!(self.completion[target].entries > 0);
                self.submission[id] = queue(command.data[0], size, target);
            }
            (0, admin::DELETE_SUBMISSION) => self.submission[id] = Queue::default(),
            (0, admin::SET_FEATURES) if word10 == 0x16 => {
                let behavior = self.behavior.as_mut_bytes();
                assert!(self.memory.read(command.data[0], behavior));
            }
            (0, admin::SET_FEATURES) => self.features.push(command.words),
            (0, admin::GET_FEATURES) => {}
            (0, admin::EVENT_REQUEST) => {
                self.events.push(command.id);
                return;
            }
            (0, _) => status = 1,
            (_, FLUSH) => self.done.push((number, command.id)),
            _ => status = 1,
        }
        self.complete(number, command.id, status);
    }

    /// Completes a command that was taken from queue `number`.
    pub(super) fn complete(&mut self, number: usize, id: u16, status: u16) {
        self.completed += 1;
        let target = self.submission[number].target;
        let queue = &mut self.completion[target];
        let next = (queue.next + 1) % queue.entries;
        assert_ne!(next, queue.doorbell, "completion queue {target} is full");
        let completion = Completion {
            submission: number as u16,
            submission_head: self.submission[number].next as u16,
            id,
            status: status << 1 | queue.phase,
            ..Completion::default()
        };
        let at = queue.base + 16 * u64::from(queue.next);
        queue.phase ^= u16::from(next == 0);
        queue.next = next;
        assert!(self.memory.write(at, completion.as_bytes()));
    }
}

fn queue(base: u64, entries: u32, target: usize) -> Queue {
    Queue {
        base,
        entries,
        next: 0,
        doorbell: 0,
        phase: 1,
        target,
    }
}
