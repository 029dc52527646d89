//! An AMD-Vi unit for tests: registers, command buffer, event log, and caches of
//! device table entries, translations and interrupt remapping that hold all they may
//! and drop only what they are told to.
//!
//! Devices with TLBs are behind it too. They keep what they are told, and whenever they
//! can they ask anew for every page they ever used. All raise anew what they ever did.

mod devices;

use crate::amdvi::event::{EventCode, EventFlags};
use crate::amdvi::registers::*;
use crate::amdvi::{Buffer, Command, DeviceEntry, Event, Features};
use crate::host::testing::read128;
use crate::unit::SourceId;
use core::cell::{RefCell, RefMut};
use hv_core::memory::PhysMemory;
use hv_core::mmio::Mmio;
use hv_core::platform::apic::Msi;
use hv_core::testing::Arena;
use hv_core::{Hpa, PAGE_SIZE};
use std::collections::{BTreeSet, HashMap};
use std::vec::Vec;

/// What is wrong with the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Defect {
    None,
    /// It carries out no command.
    DoesNotAnswer,
    /// It skips commands it does not know and never writes its log, as QEMU's.
    TellsNothing,
    /// It answers waits at once, and does the rest later.
    AnswersTooEarly,
    /// Devices do not answer when they are told to forget. The unit says so, and goes
    /// on or not.
    DevicesKeepSilent {
        goes_on: bool,
    },
    /// Devices answer, and keep all.
    DevicesKeepTheirs,
    /// Devices are told before the unit has dropped its own translations.
    DevicesTooEarly,
}

pub(super) struct State {
    pub(super) features: Features,
    pub(super) control: Control,
    pub(super) status: Status,
    pub(super) exclusion: u64,
    pub(super) defect: Defect,
    /// Every value of the control register, and the commands carried out.
    pub(super) controls: Vec<Control>,
    pub(super) commands: Vec<Command>,
    /// Whether it stopped at a command it does not know.
    halted: bool,
    /// How often the status is read after a doorbell before it carries out anything.
    pub(super) delay: u32,
    looks: u32,
    device_table: u64,
    queue: Buffer,
    queue_head: u64,
    queue_tail: u64,
    log: Buffer,
    log_head: u64,
    log_tail: u64,
    entries: HashMap<SourceId, DeviceEntry>,
    translations: HashMap<(u16, u64), u64>,
    device_tlbs: HashMap<(SourceId, u64), u64>,
    /// What devices with TLBs used.
    used: BTreeSet<(u16, u64)>,
    /// Words 2 of device table entries, and entries of remapping tables, absent ones too.
    interrupt_words: HashMap<SourceId, u64>,
    interrupts: HashMap<(SourceId, u16), u32>,
    /// What devices looked up there.
    raised: BTreeSet<(u16, u16)>,
    /// What is in the domains' tables: a translation changes with it.
    pub(super) version: u64,
}

pub(super) struct FakeUnit<'a> {
    arena: &'a Arena,
    state: RefCell<State>,
}

impl<'a> FakeUnit<'a> {
    pub(super) fn new(arena: &'a Arena) -> Self {
        let nowhere = Buffer {
            base: 0,
            length: Buffer::ONE_PAGE,
        };
        let state = State {
            features: Features::INVALIDATE_ALL,
            control: Control::empty(),
            status: Status::empty(),
            exclusion: 1,
            defect: Defect::None,
            controls: Vec::new(),
            commands: Vec::new(),
            halted: false,
            delay: 0,
            looks: 0,
            device_table: 0,
            queue: nowhere,
            queue_head: 0,
            queue_tail: 0,
            log: nowhere,
            log_head: 0,
            log_tail: 0,
            entries: HashMap::new(),
            translations: HashMap::new(),
            device_tlbs: HashMap::new(),
            used: BTreeSet::new(),
            interrupt_words: HashMap::new(),
            interrupts: HashMap::new(),
            raised: BTreeSet::new(),
            version: 0,
        };
        Self {
            arena,
            state: RefCell::new(state),
        }
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// Tells of something.
    pub(super) fn log_event(&self, event: Event) {
        self.state().log_event(self.arena, event);
    }

    fn ring_doorbell(&self, tail: u64) {
        let mut state = self.state();
        state.queue_tail = tail;
        state.looks = state.delay;
        if state.defect == Defect::AnswersTooEarly {
            let wait = (tail + PAGE_SIZE - Buffer::ENTRY) % PAGE_SIZE;
            let wait = Command::decode(read128(self.arena, state.queue.base + wait));
            state.carry_out(self.arena, wait.unwrap());
        }
    }

    fn run_queue(&self) {
        let mut state = self.state();
        if state.looks > 0 {
            state.looks -= 1;
            return;
        }
        while state.fetches() && state.queue_head != state.queue_tail {
            let raw = read128(self.arena, state.queue.base + state.queue_head);
            state.ask_anew(self.arena);
            match Command::decode(raw) {
                Some(Command::DeviceTlb { device, block, .. })
                    if matches!(state.defect, Defect::DevicesKeepSilent { .. }) =>
                {
                    let event = Event {
                        device,
                        ..unit_event(EventCode::IotlbTimeout, block.page << 12)
                    };
                    state.log_event(self.arena, event);
                    if state.defect == (Defect::DevicesKeepSilent { goes_on: false }) {
                        state.halted = true;
                        return;
                    }
                }
                Some(command) => state.carry_out(self.arena, command),
                None => {
                    let at = state.queue.base + state.queue_head;
                    state.log_event(self.arena, unit_event(EventCode::IllegalCommand, at));
                    if state.defect != Defect::TellsNothing {
                        state.halted = true;
                        return;
                    }
                }
            }
            state.ask_anew(self.arena);
            state.queue_head = state.queue.next(state.queue_head);
        }
    }
}

/// A refused write.
pub(super) fn write_fault(device: SourceId, address: u64) -> Event {
    Event {
        code: Ok(EventCode::PageFault),
        device,
        flags: EventFlags::WRITE,
        address,
    }
}

/// A refused interrupt request.
pub(super) fn interrupt_fault(device: SourceId, msi: Msi) -> Event {
    Event {
        code: Ok(EventCode::PageFault),
        device,
        flags: EventFlags::INTERRUPT,
        address: u64::from(msi.data & 0x7ff) << 2,
    }
}

/// An event that is not about a DMA.
pub(super) fn unit_event(code: EventCode, address: u64) -> Event {
    Event {
        code: Ok(code),
        device: SourceId::new(0),
        flags: EventFlags::empty(),
        address,
    }
}

impl State {
    fn fetches(&self) -> bool {
        let on = self.control.contains(Control::ENABLE | Control::COMMANDS);
        on && !self.halted && self.defect != Defect::DoesNotAnswer
    }

    fn status(&self) -> Status {
        let mut status = self.status;
        let on = |what| self.control.contains(Control::ENABLE | what);
        status.set(Status::COMMANDS_RUN, on(Control::COMMANDS) && !self.halted);
        let logs = on(Control::EVENT_LOG) && !status.contains(Status::EVENT_OVERFLOW);
        status.set(Status::EVENTS_RUN, logs);
        status
    }

    fn carry_out(&mut self, arena: &Arena, command: Command) {
        self.commands.push(command);
        if matches!(command, Command::Pages { .. }) && self.defect == Defect::DevicesTooEarly {
            self.device_tlbs.clear();
            self.ask_anew(arena);
        }
        match command {
            Command::CompletionWait { address, data } => {
                let frame = arena.frame(Hpa::new(address & !0xfff)).unwrap();
                frame.write_bytes(address as usize & 0xfff, &data.to_le_bytes());
            }
            Command::DeviceEntry { device } => {
                self.entries.remove(&device);
                self.interrupt_words.remove(&device);
            }
            Command::Pages { domain, block, .. } => self
                .translations
                .retain(|(tag, page), _| *tag != domain || !block.contains(*page)),
            // One after the other anyway.
            Command::Fence => {}
            Command::DeviceTlb { device, block, .. } => self.forget_device_tlb(device, block),
            Command::InterruptTable { device } => {
                self.interrupts.retain(|(of, _), _| *of != device);
            }
            Command::All => {
                self.entries.clear();
                self.interrupt_words.clear();
                self.interrupts.clear();
                self.translations.clear();
            }
        }
    }

    fn log_event(&mut self, arena: &Arena, event: Event) {
        let runs = self.status().contains(Status::EVENTS_RUN);
        if !runs || self.defect == Defect::TellsNothing {
            return;
        }
        let next = self.log.next(self.log_tail);
        if next == self.log_head {
            self.status |= Status::EVENT_OVERFLOW;
            return;
        }
        let at = self.log.base + self.log_tail;
        let frame = arena.frame(Hpa::new(at & !0xfff)).unwrap();
        frame.write_bytes(at as usize & 0xfff, &event.encode().to_le_bytes());
        self.log_tail = next;
    }
}

impl Mmio for FakeUnit<'_> {
    fn read32(&self, offset: usize) -> u32 {
        panic!("read32 at {offset:#x}")
    }

    fn write32(&self, offset: usize, _: u32) {
        panic!("write32 at {offset:#x}")
    }

    fn read64(&self, offset: usize) -> u64 {
        if offset == STATUS {
            self.run_queue();
        }
        let state = self.state();
        match offset {
            CONTROL => state.control.bits(),
            STATUS => state.status().bits(),
            FEATURES => state.features.bits(),
            COMMAND_HEAD => state.queue_head,
            EVENT_TAIL => state.log_tail,
            _ => panic!("read64 at {offset:#x}"),
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state();
        let is_on = |what| state.control.contains(what);
        match offset {
            CONTROL => {
                state.control = Control::from_bits_retain(value);
                let control = state.control;
                state.controls.push(control);
                if !control.contains(Control::COMMANDS) {
                    state.halted = false;
                }
            }
            STATUS => state.status &= !Status::from_bits_truncate(value),
            EXCLUSION_BASE => state.exclusion = value,
            DEVICE_TABLE => {
                assert!(!is_on(Control::ENABLE), "the table moves under the unit");
                state.device_table = value;
            }
            COMMAND_BUFFER | COMMAND_HEAD => {
                assert!(!is_on(Control::COMMANDS), "the buffer moves under the unit");
                match offset {
                    COMMAND_HEAD => state.queue_head = value,
                    _ => state.queue = Buffer::decode(value),
                }
            }
            EVENT_LOG => {
                assert!(!is_on(Control::EVENT_LOG), "the log moves under the unit");
                state.log = Buffer::decode(value);
            }
            EVENT_HEAD => state.log_head = value,
            EVENT_TAIL => state.log_tail = value,
            COMMAND_TAIL => {
                drop(state);
                self.ring_doorbell(value);
                self.run_queue();
            }
            _ => panic!("write64 at {offset:#x}"),
        }
    }
}
