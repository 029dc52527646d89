//! The loop that a guest runs in, whatever role its machine plays.

use crate::guest::{Guest, GuestEnd, Turn};
use core::ops::ControlFlow;
use strandline_rt::{cpu, interrupts};

/// What to do until something happens, while the guest waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// There is work: go on at once.
    Work,
    /// Nothing before the next interrupt.
    Sleep,
    /// The other machine will act, which raises no interrupt.
    Spin,
}

/// Lets the guest run until it ends, or until `beside` breaks off. That is called
/// whenever an interrupt cut in and whenever the guest waits, with all interrupts
/// handed on that have come.
///
/// # Errors
/// The guest ended.
pub fn run<T>(
    guest: &mut Guest<'_>,
    mut beside: impl FnMut(&mut Guest<'_>) -> ControlFlow<T, Next>,
) -> Result<T, GuestEnd> {
    loop {
        let turn = guest.advance()?;
        if turn == Turn::Ran {
            continue;
        }
        let vectors = interrupts::poll();
        guest.take_interrupts(vectors);
        let next = match beside(guest) {
            ControlFlow::Continue(next) => next,
            ControlFlow::Break(value) => return Ok(value),
        };
        // What came may be what the guest waits for.
        if turn != Turn::Idle || !vectors.is_empty() {
            continue;
        }
        match next {
            Next::Work => {}
            Next::Sleep => guest.take_interrupts(interrupts::wait()),
            Next::Spin => cpu::pause(),
        }
    }
}
