//! Whose turn it is, and whether the worker is to come back at once.
//!
//! ```text
//!            give               look: enter the guest
//!   FREE ──────────> ORDERED ──────────────────────────┐
//!     ^                 │ call                         │ done
//!     │                 v        look: come back       v
//!     │              CALLED ─────────────────────> RETURNED
//!     └────────────────────── collect ─────────────────┘
//! ```
//!
//! # A call is more than an interrupt
//! Two interrupts of one vector are one while the first has not been taken: a worker
//! that is called before it has woken for its order takes one interrupt for both. It
//! would then enter the guest, and nothing would make it come back. So a call is a turn
//! of its own, which the worker sees when it looks, and an interrupt for the case that
//! it has looked already. Between its look and its entry interrupts are disabled: one
//! that comes after the look is there at the entry, and ends it.

use core::sync::atomic::{AtomicU8, Ordering};

/// The slot is empty.
const FREE: u8 = 0;
/// It holds an order.
const ORDERED: u8 = 1;
/// It holds an order, and what comes of it is wanted at once.
const CALLED: u8 = 2;
/// It holds what came of it.
const RETURNED: u8 = 3;

/// What the worker is to do with its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    /// Run the guest until it exits.
    Run,
    /// Run it no further than the interrupt that ends its first entry.
    ComeBack,
}

/// Whose turn it is. The slot belongs to the worker from `give` to `done`, and to the
/// boot CPU otherwise: each is written after the slot and read before it.
pub(super) struct Turn(AtomicU8);

impl Turn {
    pub(super) const fn new() -> Self {
        Self(AtomicU8::new(FREE))
    }

    /// The boot CPU has put an order into the slot. An interrupt is to follow.
    pub(super) fn give(&self) {
        self.0.store(ORDERED, Ordering::Release);
    }

    /// The boot CPU wants the worker back, if it has an order. An interrupt is to
    /// follow, which must not overtake this.
    pub(super) fn call(&self) {
        // It fails if there is no order, or it is done: then there is nothing to call.
        let _ = self
            .0
            .compare_exchange(ORDERED, CALLED, Ordering::SeqCst, Ordering::Relaxed);
    }

    /// What the worker is to do, if it has an order. Interrupts are disabled, and stay
    /// so until it enters the guest.
    pub(super) fn look(&self) -> Option<Errand> {
        match self.0.load(Ordering::Acquire) {
            ORDERED => Some(Errand::Run),
            CALLED => Some(Errand::ComeBack),
            _ => None,
        }
    }

    /// The worker has put into the slot what came of the order.
    pub(super) fn done(&self) {
        self.0.store(RETURNED, Ordering::Release);
    }

    /// Whether the worker is done. Then the slot is the boot CPU's again.
    pub(super) fn collect(&self) -> bool {
        let is_done = self.0.load(Ordering::Acquire) == RETURNED;
        if is_done {
            self.0.store(FREE, Ordering::Relaxed);
        }
        is_done
    }
}

#[cfg(test)]
mod tests {
    //! Every interleaving of a boot CPU that gives an order and calls, and a worker,
    //! with an interrupt controller that remembers one interrupt of a kind.

    use super::*;

    /// Where the worker is.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Place {
        Halted,
        Looks,
        Enters,
        InGuest,
        HasLeft,
    }

    /// What the boot CPU does next.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Step {
        Give,
        InterruptForOrder,
        Call,
        InterruptForCall,
        Collect,
        Over,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Machine {
        turn: u8,
        is_pending: bool,
        worker: Place,
        boss: Step,
        /// A call is an interrupt and no more.
        is_broken: bool,
    }

    const START: Machine = Machine {
        turn: FREE,
        is_pending: false,
        worker: Place::Halted,
        boss: Step::Give,
        is_broken: false,
    };

    impl Machine {
        fn boss(mut self) -> Option<Self> {
            let turn = Turn(AtomicU8::new(self.turn));
            self.boss = match self.boss {
                Step::Give => {
                    turn.give();
                    Step::InterruptForOrder
                }
                Step::InterruptForOrder => {
                    self.is_pending = true;
                    Step::Call
                }
                Step::Call => {
                    if !self.is_broken {
                        turn.call();
                    }
                    Step::InterruptForCall
                }
                Step::InterruptForCall => {
                    self.is_pending = true;
                    Step::Collect
                }
                Step::Collect if turn.collect() => Step::Over,
                Step::Collect | Step::Over => return None,
            };
            self.turn = turn.0.into_inner();
            Some(self)
        }

        fn worker(mut self) -> Option<Self> {
            let turn = Turn(AtomicU8::new(self.turn));
            self.worker = match self.worker {
                Place::Halted if self.is_pending => {
                    self.is_pending = false;
                    Place::Looks
                }
                Place::Looks => match turn.look() {
                    None => Place::Halted,
                    Some(errand) => {
                        self.is_pending |= errand == Errand::ComeBack;
                        Place::Enters
                    }
                },
                Place::Enters => Place::InGuest,
                Place::InGuest if self.is_pending => {
                    self.is_pending = false;
                    Place::HasLeft
                }
                Place::HasLeft => {
                    turn.done();
                    Place::Looks
                }
                Place::Halted | Place::InGuest => return None,
            };
            self.turn = turn.0.into_inner();
            Some(self)
        }
    }

    /// The states in which nothing more happens.
    fn ends(start: Machine) -> Vec<Machine> {
        let (mut open, mut seen, mut ends) = (vec![start], Vec::new(), Vec::new());
        while let Some(machine) = open.pop() {
            if seen.contains(&machine) {
                continue;
            }
            seen.push(machine);
            let next = [machine.boss(), machine.worker()];
            if next == [None, None] {
                ends.push(machine);
            }
            open.extend(next.into_iter().flatten());
        }
        ends
    }

    #[test]
    fn a_worker_that_is_called_comes_back_whenever_that_was() {
        let ends = ends(START);
        assert!(!ends.is_empty());
        for end in ends {
            assert_eq!(
                (end.boss, end.worker),
                (Step::Over, Place::Halted),
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_call_that_is_an_interrupt_alone_can_be_lost() {
        let ends = ends(Machine {
            is_broken: true,
            ..START
        });
        let is_lost = |end: &Machine| (end.boss, end.worker) == (Step::Collect, Place::InGuest);
        assert!(ends.iter().any(is_lost));
    }
}
