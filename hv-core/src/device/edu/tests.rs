//! The device against a model of the one in QEMU.

use super::*;
use core::cell::RefCell;
use core::sync::atomic::Ordering;

const STAGING: u64 = 0x5000;

/// The device as QEMU has it; a transfer ends when it was waited for once.
struct Model<'a> {
    state: RefCell<EduState>,
    staging: &'a Frame,
    raised: RefCell<u32>,
}

impl Mmio for &Model<'_> {
    fn read32(&self, offset: usize) -> u32 {
        let state = self.state.borrow();
        match offset {
            register::LIVENESS => state.liveness,
            register::FACTORIAL => state.factorial,
            register::STATUS => state.status,
            register::INTERRUPT_STATUS => state.interrupts,
            _ => panic!("32-bit read of {offset:#x}"),
        }
    }
    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.borrow_mut();
        match offset {
            register::LIVENESS => state.liveness = !value,
            register::FACTORIAL => {
                state.factorial = (1..=value).fold(1, u32::wrapping_mul);
                if state.status & status::INTERRUPT != 0 {
                    *self.raised.borrow_mut() += 1;
                }
            }
            register::STATUS => state.status = value & status::INTERRUPT,
            register::INTERRUPT_RAISE => state.interrupts |= value,
            register::INTERRUPT_ACK => state.interrupts &= !value,
            _ => panic!("32-bit write of {offset:#x}"),
        }
    }
    fn read64(&self, offset: usize) -> u64 {
        let state = self.state.borrow();
        match offset {
            register::DMA_SOURCE => state.dma_source,
            register::DMA_DESTINATION => state.dma_destination,
            register::DMA_COUNT => state.dma_count,
            register::DMA_COMMAND => state.dma_command,
            _ => panic!("64-bit read of {offset:#x}"),
        }
    }
    fn write64(&self, offset: usize, value: u64) {
        let mut state = self.state.borrow_mut();
        match offset {
            register::DMA_SOURCE => state.dma_source = value,
            register::DMA_DESTINATION => state.dma_destination = value,
            register::DMA_COUNT => state.dma_count = value,
            register::DMA_COMMAND if value & command::RUN != 0 => state.dma_command = value,
            register::DMA_COMMAND => {}
            _ => panic!("64-bit write of {offset:#x}"),
        }
    }
}

impl Model<'_> {
    fn tick(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.dma_command & command::RUN != 0 {
            assert_eq!(state.dma_count, BUFFER_BYTES);
            if state.dma_command & command::TO_MEMORY != 0 {
                assert_eq!(state.dma_destination, STAGING);
                self.staging.copy_from(&state.buffer);
            } else {
                assert_eq!(state.dma_source, STAGING);
                self.staging.copy_to(&mut state.buffer);
            }
            if state.dma_command & command::INTERRUPT != 0 {
                state.interrupts |= 0x100;
            }
            state.dma_command &= !command::RUN;
        }
        true
    }
}

fn some_state() -> EduState {
    EduState {
        liveness: 0x1234_5678,
        factorial: 120,
        status: status::INTERRUPT,
        interrupts: 0x100,
        dma_source: BUFFER_ADDRESS,
        dma_destination: 0x77000,
        dma_count: 99,
        dma_command: 0xf8 | command::TO_MEMORY | command::INTERRUPT,
        buffer: core::array::from_fn(|i| i as u64 * 3),
    }
}

fn with_model(state: EduState, test: impl FnOnce(&Model<'_>, &Staging<'_>)) {
    let frame = Frame::zeroed();
    let model = Model {
        state: RefCell::new(state),
        staging: &frame,
        raised: RefCell::new(0),
    };
    test(
        &model,
        &Staging {
            frame: &frame,
            address: STAGING,
        },
    );
}

#[test]
fn a_state_saved_and_restored_is_the_state_there_was() {
    let mut saved = None;
    with_model(some_state(), |model, staging| {
        let edu = Edu::new(model);
        let state = edu.save(staging, &mut || model.tick()).unwrap();
        assert_eq!(state, some_state());
        saved = Some(state);
        // The source goes on: what saving disturbed is mended.
        edu.restore(&state, staging, &mut || model.tick()).unwrap();
        assert_eq!(*model.state.borrow(), some_state());
    });
    let blank = EduState {
        liveness: 0,
        factorial: 0,
        status: 0,
        interrupts: 7,
        dma_source: 0,
        dma_destination: 0,
        dma_count: 0,
        dma_command: 0,
        buffer: [1; WORDS_PER_FRAME],
    };
    with_model(blank, |model, staging| {
        Edu::new(model)
            .restore(&saved.unwrap(), staging, &mut || model.tick())
            .unwrap();
        assert_eq!(*model.state.borrow(), some_state());
        assert_eq!(*model.raised.borrow(), 0);
    });
}

#[test]
fn a_state_no_device_can_be_in_is_refused_before_anything_changes() {
    with_model(some_state(), |model, staging| {
        let edu = Edu::new(model);
        for bad in [
            EduState {
                factorial: 7,
                ..some_state()
            },
            EduState {
                dma_command: 1,
                ..some_state()
            },
            EduState {
                status: 1,
                ..some_state()
            },
        ] {
            assert_eq!(
                edu.restore(&bad, staging, &mut || true),
                Err(EduError::ImpossibleState)
            );
        }
        assert_eq!(*model.state.borrow(), some_state());
    });
}

#[test]
fn a_device_that_stays_busy_is_given_up() {
    with_model(some_state(), |model, staging| {
        let mut left = 3;
        let result = Edu::new(model).save(staging, &mut || {
            left -= 1;
            left > 0
        });
        assert_eq!(result, Err(EduError::Stuck));
        assert_eq!(staging.frame.words()[1].load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_transfer_that_does_not_end_leaves_the_guests_registers() {
    let stuck = |result: Result<(), EduError>, model: &Model<'_>| {
        assert_eq!(result, Err(EduError::Stuck));
        let mut left = *model.state.borrow();
        left.dma_command = some_state().dma_command;
        assert_eq!(left, some_state());
    };
    with_model(some_state(), |model, staging| {
        stuck(
            Edu::new(model).save(staging, &mut || false).map(drop),
            model,
        );
    });
    with_model(some_state(), |model, staging| {
        let result = Edu::new(model).restore(&some_state(), staging, &mut || false);
        stuck(result, model);
    });
}

#[test]
fn a_factorial_is_over_when_its_interrupt_is_there() {
    let computing = EduState {
        status: status::BUSY | status::INTERRUPT,
        interrupts: 0,
        ..some_state()
    };
    with_model(computing, |model, _| {
        let mut edu = Edu::new(model);
        assert!(!edu.is_resting());
        // The device is done, and about to say so.
        model.state.borrow_mut().status = status::INTERRUPT;
        assert!(!edu.is_resting());
        model.state.borrow_mut().interrupts = FACTORIAL_DONE;
        assert!(edu.is_resting());
    });
    let silent = EduState {
        status: status::BUSY,
        ..computing
    };
    with_model(silent, |model, _| {
        let mut edu = Edu::new(model);
        assert!(!edu.is_resting());
        model.state.borrow_mut().status = 0;
        assert!(edu.is_resting(), "no interrupt was asked for");
    });
}

#[test]
fn every_factorial_the_device_computes_can_be_put_back() {
    let mut factorial = 1u32;
    for n in 1..100 {
        factorial = factorial.wrapping_mul(n);
        let inverse = inverse_factorial(factorial).unwrap();
        assert_eq!((1..=inverse).fold(1, u32::wrapping_mul), factorial);
    }
    assert!(inverse_factorial(0).is_some());
    assert_eq!(inverse_factorial(7), None);
}
