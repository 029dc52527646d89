//! A guest's driver that is moved from one controller to another and must not notice.

use super::command::{Command, Completion, FLUSH, admin};
use super::fake::{Memory, Shared, scratch};
use super::register::{ACQ, AQA, ASQ, CC, DOORBELLS};
use super::shadow::Shadow;
use super::state::{CompletionQueue, SubmissionQueue};
use super::{Nvme, NvmeError, NvmeState};
use crate::vm::MmioDevice;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// One pair of queues, as a driver sees them.
#[derive(Clone, Copy)]
struct Rings {
    number: u64,
    submission: u64,
    completion: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: u32,
}

/// A driver, with its memory.
#[derive(Clone)]
struct Driver {
    memory: Memory,
    rings: Vec<Rings>,
    next_id: u16,
}

type Device<'a> = Nvme<&'a Shared>;

/// Entries of the admin queues and of the I/O queues.
const ADMIN: u32 = 32;
const IO: u32 = 16;

impl Driver {
    /// Turns a controller on and makes `queues` pairs of I/O queues.
    fn start(nvme: &mut Device<'_>, memory: &Memory, queues: u32) -> Self {
        let mut driver = Self {
            memory: memory.clone(),
            rings: Vec::new(),
            next_id: 0,
        };
        driver.add_rings(0, ADMIN);

        driver.write(
            nvme,
            AQA,
            u64::from(ADMIN - 1) << 16 | u64::from(ADMIN - 1),
            4,
        );
        driver.write(nvme, ASQ, driver.rings[0].submission, 8);
        driver.write(nvme, ACQ, driver.rings[0].completion, 8);
        driver.write(nvme, CC, 0x46_0001, 4);
        driver.admin(
            nvme,
            Command::new(admin::SET_FEATURES, [7, 0x1_0001, 0, 0, 0, 0]),
        );
        driver.submit(nvme, 0, Command::new(admin::EVENT_REQUEST, [0; 6]));
        for number in 1..=queues {
            driver.add_rings(number.into(), IO);
            let rings = driver.rings[number as usize];
            let size = (IO - 1) << 16 | number;
            for (opcode, base, flags) in [
                (admin::CREATE_COMPLETION, rings.completion, number << 16 | 3),
                (admin::CREATE_SUBMISSION, rings.submission, number << 16 | 1),
            ] {
                let command = Command {
                    data: [base, 0],
                    ..Command::new(opcode, [size, flags, 0, 0, 0, 0])
                };
                driver.admin(nvme, command);
            }
        }
        driver
    }

    fn add_rings(&mut self, number: u64, entries: u32) {
        let base = 0x10_0000 * (number + 1);
        self.memory.give(base, 1);
        self.memory.give(base + 0x8000, 1);
        self.rings.push(Rings {
            number,
            submission: base,
            completion: base + 0x8000,
            entries,
            tail: 0,
            head: 0,
            phase: 1,
        });
    }

    fn write(&self, nvme: &mut Device<'_>, offset: u64, value: u64, width: u8) {
        nvme.write(offset, width, value);
        nvme.serve(&self.memory);
    }

    /// Submits a command, and returns its id.
    fn submit(&mut self, nvme: &mut Device<'_>, queue: usize, command: Command) -> u16 {
        let id = self.next_id;
        self.next_id += 1;
        let rings = &mut self.rings[queue];
        let at = rings.submission + 64 * u64::from(rings.tail);
        assert!(super::GuestDma::write(
            &self.memory,
            at,
            Command { id, ..command }.as_bytes()
        ));
        rings.tail = (rings.tail + 1) % rings.entries;
        let (at, tail) = (DOORBELLS + 8 * rings.number, rings.tail);
        self.write(nvme, at, tail.into(), 4);
        id
    }

    /// The completion that is new, if there is one; its place is given back.
    fn poll(&mut self, nvme: &mut Device<'_>, queue: usize) -> Option<Completion> {
        let completion = self.peek(queue)?;
        let rings = &mut self.rings[queue];
        rings.head = (rings.head + 1) % rings.entries;
        rings.phase ^= u32::from(rings.head == 0);
        let (at, head) = (DOORBELLS + 8 * rings.number + 4, rings.head);
        self.write(nvme, at, head.into(), 4);
        Some(completion)
    }

    fn peek(&self, queue: usize) -> Option<Completion> {
        let rings = &self.rings[queue];
        let at = rings.completion + 16 * u64::from(rings.head);
        let mut completion = Completion::default();
        assert!(super::GuestDma::read(
            &self.memory,
            at,
            completion.as_mut_bytes()
        ));
        (completion.phase() == rings.phase).then_some(completion)
    }

    /// One admin command from begin to end.
    fn admin(&mut self, nvme: &mut Device<'_>, command: Command) {
        let id = self.submit(nvme, 0, command);
        let completion = self.poll(nvme, 0).unwrap();
        assert_eq!((completion.id, completion.is_success()), (id, true));
    }

    /// One I/O command from begin to end.
    fn io(&mut self, nvme: &mut Device<'_>, queue: usize) {
        let id = self.submit(nvme, queue, Command::new(FLUSH, [0; 6]));
        let completion = self.poll(nvme, queue).expect("nothing is completed");
        assert_eq!((completion.id, completion.is_success()), (id, true));
    }
}

fn state_at_rest(nvme: &mut Device<'_>, driver: &Driver) -> NvmeState {
    assert_eq!(nvme.rest(&driver.memory), Ok(true));
    nvme.save().unwrap()
}

/// Another controller brought to `state`, and the memory it reaches afterwards.
fn rebuilt(state: &NvmeState, driver: &Driver) -> Result<Shared, NvmeError> {
    let (scratch_memory, pages) = Memory::scratch(state);
    let shared = Shared::new(scratch_memory);
    let commands = Nvme::new(&shared).restore(state, &scratch(&pages), &mut || false)?;
    assert_eq!(commands, shared.0.borrow().completed);
    shared.0.borrow_mut().memory = driver.memory.clone();
    shared.0.borrow_mut().done.clear();
    Ok(shared)
}

/// Another controller that reads no command by itself is brought to `state`, or given up
/// at the `patience`th wait; each wait is an occasion for `meanwhile`.
fn rebuilt_slowly(
    state: &NvmeState,
    patience: u32,
    meanwhile: impl Fn(&Shared),
) -> (Shared, Result<u64, NvmeError>) {
    let (scratch_memory, pages) = Memory::scratch(state);
    let shared = Shared::new(scratch_memory);
    shared.0.borrow_mut().is_slow = true;
    let mut left = patience;
    let result = Nvme::new(&shared).restore(state, &scratch(&pages), &mut || {
        meanwhile(&shared);
        left -= 1;
        left > 0
    });
    (shared, result)
}

/// What stands before a controller that was rebuilt.
fn adopted<'a>(controller: &'a Shared, state: &NvmeState) -> Device<'a> {
    Nvme {
        shadow: Shadow::of(state),
        ..Nvme::new(controller)
    }
}

/// Moves a driver after `before[q]` commands on I/O queue `q + 1`, and goes on.
fn move_after(before: &[u32], admin_commands: u32) {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, before.len() as u32);
    let behavior = 0x900_0e00;
    memory.give(behavior & !0xfff, 1);
    assert!(super::GuestDma::write(&memory, behavior, &[1, 2, 3]));
    let set = Command {
        data: [behavior, 0],
        ..Command::new(admin::SET_FEATURES, [0x16, 0, 0, 0, 0, 0])
    };
    driver.admin(&mut nvme, set);
    for (index, count) in before.iter().enumerate() {
        (0..*count).for_each(|_| driver.io(&mut nvme, index + 1));
    }
    for _ in 0..admin_commands {
        driver.admin(
            &mut nvme,
            Command::new(admin::GET_FEATURES, [7, 0, 0, 0, 0, 0]),
        );
    }
    let state = state_at_rest(&mut nvme, &driver);
    let destination = rebuilt(&state, &driver).unwrap();
    let mut nvme = adopted(&destination, &state);
    for index in 1..=before.len() {
        (0..2 * IO + 3).for_each(|_| driver.io(&mut nvme, index));
    }
    for _ in 0..2 * ADMIN + 3 {
        driver.admin(
            &mut nvme,
            Command::new(admin::GET_FEATURES, [7, 0, 0, 0, 0, 0]),
        );
    }
    let controller = destination.0.borrow();
    assert_eq!(
        controller.done.len() as u32,
        (2 * IO + 3) * before.len() as u32
    );
    assert_eq!(controller.events, [1], "the event request waits again");
    assert_eq!(controller.features, [[7, 0x1_0001, 0, 0, 0, 0]]);
    assert_eq!(controller.behavior[..2], [0x03_0201, 0]);
}

#[test]
fn a_controller_that_was_never_turned_on_is_carried_too() {
    let source = Shared::new(Memory::default());
    let mut nvme = Nvme::new(&source);
    assert_eq!(nvme.rest(&Memory::default()), Ok(true));
    let state = nvme.save().unwrap();
    let (memory, pages) = Memory::scratch(&state);
    let destination = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&destination);
    assert_eq!(nvme.restore(&state, &scratch(&pages), &mut || false), Ok(0));
    let mut driver = Driver::start(&mut nvme, &memory, 1);
    driver.io(&mut nvme, 1);
}

#[test]
fn a_driver_goes_on_wherever_its_queues_are() {
    for count in 0..=2 * IO + 1 {
        move_after(&[count], count);
    }
}

/// The doorbell of a full ring can name the entry that a slow controller is still at,
/// for which it is an empty one.
#[test]
fn a_controller_that_reads_late_loses_no_command() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, 1);
    driver.io(&mut nvme, 1);
    let state = state_at_rest(&mut nvme, &driver);
    let (controller, result) = rebuilt_slowly(&state, 1000, Shared::work);
    assert_eq!(result, Ok(controller.0.borrow().completed));
    assert_eq!(controller.0.borrow().events.len(), 1);
}

#[test]
fn each_queue_is_brought_to_its_own_place() {
    move_after(&[3, 0, IO, 2 * IO - 1], 2 * ADMIN - 9);
}

#[test]
fn completions_not_looked_at_stay_so_and_are_not_overwritten() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, 1);
    (0..IO - 2).for_each(|_| driver.io(&mut nvme, 1));
    let flush = Command::new(FLUSH, [0; 6]);
    // As many as there is room for, over the end of the lap.
    let ids: Vec<u16> = (0..IO - 1)
        .map(|_| driver.submit(&mut nvme, 1, flush))
        .collect();
    let state = state_at_rest(&mut nvme, &driver);
    assert_eq!(state.completion[1].waiting, IO - 1);
    assert_eq!(state.waiting_vectors().collect::<Vec<_>>(), [1]);

    let destination = rebuilt(&state, &driver).unwrap();
    let mut nvme = adopted(&destination, &state);
    for id in ids {
        assert_eq!(driver.poll(&mut nvme, 1).map(|it| it.id), Some(id));
    }
    (0..2 * IO).for_each(|_| driver.io(&mut nvme, 1));
}

#[test]
fn a_controller_rests_only_when_every_command_is_completed() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, 1);
    source.0.borrow_mut().is_slow = true;
    driver.submit(&mut nvme, 1, Command::new(FLUSH, [0; 6]));
    assert_eq!(nvme.rest(&memory), Ok(false));
    source.work();
    assert_eq!(
        nvme.rest(&memory),
        Ok(true),
        "whether or not it was looked at"
    );
    driver.poll(&mut nvme, 1).unwrap();
    assert_eq!(nvme.rest(&memory), Ok(true));
}

#[test]
fn an_event_that_came_is_not_requested_again() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, 1);
    let id = source.0.borrow_mut().events.remove(0);
    source.0.borrow_mut().complete(0, id, 0);
    let state = state_at_rest(&mut nvme, &driver);
    assert_eq!(state.events(), []);
    assert_eq!(state.completion[0].waiting, 1);
    let destination = rebuilt(&state, &driver).unwrap();
    let mut nvme = adopted(&destination, &state);
    assert_eq!(driver.poll(&mut nvme, 0).map(|it| it.id), Some(id));
    (0..ADMIN + 1).for_each(|_| {
        driver.admin(
            &mut nvme,
            Command::new(admin::GET_FEATURES, [7, 0, 0, 0, 0, 0]),
        );
    });
}

/// The negative control: each thing that rebuilding brings about is needed.
#[test]
fn a_controller_that_is_elsewhere_is_noticed() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, 1);
    (0..IO + 3).for_each(|_| driver.io(&mut nvme, 1));
    let state = state_at_rest(&mut nvme, &driver);
    let goes_on = |change: fn(&mut CompletionQueue, &mut SubmissionQueue)| {
        let mut wrong = state;
        change(&mut wrong.completion[1], &mut wrong.submission[1]);
        let destination = rebuilt(&wrong, &driver).unwrap();
        let (mut nvme, mut driver) = (Nvme::new(&destination), driver.clone());
        let id = driver.submit(&mut nvme, 1, Command::new(FLUSH, [0; 6]));
        let completion = driver.peek(1);
        completion.is_some_and(|it| it.id == id) && destination.0.borrow().done.len() == 1
    };
    assert!(goes_on(|_, _| {}));
    assert!(!goes_on(|completion, _| completion.phase ^= 1), "phase");
    assert!(!goes_on(|completion, _| completion.head += 1), "completion");
    assert!(!goes_on(|_, submission| submission.tail -= 1), "submission");
}

#[test]
fn shadow_doorbells_are_refused_to_the_guest() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let mut driver = Driver::start(&mut nvme, &memory, 0);
    driver.submit(&mut nvme, 0, Command::new(admin::DOORBELL_BUFFER, [0; 6]));
    let completion = driver.poll(&mut nvme, 0).unwrap();
    assert!(!completion.is_success());
}

#[test]
fn what_cannot_be_carried_is_an_error_at_rest_and_not_before() {
    let memory = Memory::default();
    let scattered = Command::new(admin::CREATE_COMPLETION, [0xf_0001, 0, 0, 0, 0, 0]);
    let many = Command::new(admin::CREATE_COMPLETION, [0xf_00ff, 1, 0, 0, 0, 0]);
    let lent = Command::new(admin::SET_FEATURES, [0x0d, 1, 0, 0, 0, 0]);
    for (command, obstacle) in [
        (scattered, NvmeError::ScatteredQueue),
        (many, NvmeError::TooMuch),
        (lent, NvmeError::FeatureWithData(0x0d)),
    ] {
        let source = Shared::new(memory.clone());
        source.0.borrow_mut().is_slow = true;
        let mut nvme = Nvme::new(&source);
        let mut driver = Driver {
            memory: memory.clone(),
            rings: Vec::new(),
            next_id: 0,
        };
        driver.add_rings(0, ADMIN);
        driver.write(&mut nvme, AQA, 0x1f_001f, 4);
        driver.write(&mut nvme, ASQ, driver.rings[0].submission, 8);
        driver.write(&mut nvme, ACQ, driver.rings[0].completion, 8);
        driver.write(&mut nvme, CC, 0x46_0001, 4);
        driver.submit(&mut nvme, 0, command);
        assert_eq!(nvme.rest(&memory), Err(obstacle));
        // The guest turns it off and on: a fresh start.
        driver.write(&mut nvme, CC, 0, 4);
        assert_eq!(nvme.rest(&memory), Ok(true));
    }
}

#[test]
fn impossible_states_are_refused_before_anything_is_done() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let driver = Driver::start(&mut nvme, &memory, 1);
    let state = state_at_rest(&mut nvme, &driver);
    type Damage = fn(&mut NvmeState);
    let damages: [Damage; 8] = [
        |state| state.submission[0].entries = 0,
        |state| state.submission[1].tail = IO,
        |state| state.submission[1].completion = 7,
        |state| state.submission[1].completion = 0,
        |state| state.completion[1].head = IO,
        |state| state.completion[1].base += 16,
        |state| state.completion[1].entries = 1 << 20,
        |state| state.event_count = 17,
    ];
    for damage in damages {
        let mut wrong = state;
        damage(&mut wrong);
        assert_eq!(
            rebuilt(&wrong, &driver).err(),
            Some(NvmeError::ImpossibleState)
        );
    }
    let mut other = state;
    other.capabilities += 1;
    let refused = rebuilt(&other, &driver).err();
    assert!(matches!(refused, Some(NvmeError::OtherController { .. })));
    // Not a multiple of what the admin queues need.
    let mut wrong = state;
    wrong.submission[0].tail ^= 1;
    assert_eq!(
        rebuilt(&wrong, &driver).err(),
        Some(NvmeError::ImpossibleState)
    );
}

#[test]
fn a_controller_that_does_not_answer_is_given_up() {
    let memory = Memory::default();
    let source = Shared::new(memory.clone());
    let mut nvme = Nvme::new(&source);
    let driver = Driver::start(&mut nvme, &memory, 1);
    let state = state_at_rest(&mut nvme, &driver);
    let (_, result) = rebuilt_slowly(&state, 9, |_| {});
    assert_eq!(result, Err(NvmeError::Stuck));
}
