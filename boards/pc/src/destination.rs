//! The role of the destination: builds the guest from the stream, and runs it.

use crate::events;
use crate::guest::{Guest, GuestEnd};
use crate::turns::{self, Next};
use core::convert::Infallible;
use core::ops::ControlFlow;
use hv_core::clock::Clock;
use log::info;
use migration::destination::{Destination, DestinationError, Outcome, Status};
use migration::link::Link;
use strandline_rt::{cpu, interrupts};

/// Waits for the guest. When this returns it is to be run, by [`run`].
///
/// # Errors
/// It did not arrive, and nothing of it is left here.
pub fn receive(
    guest: &mut Guest<'_>,
    mut migration: Destination<'_>,
    link: &mut impl Link,
    clock: &impl Clock,
) -> Result<(), DestinationError> {
    loop {
        match migration.step(guest, link, clock) {
            Status::Working => {}
            Status::WaitingForPeer => cpu::pause(),
            Status::Finished(Outcome::Running { announced }) => {
                let pages = migration.progress().pages;
                info!("migration: the guest runs here, {pages} pages arrived");
                if !announced {
                    info!("migration: the source could not be told");
                }
                events::emit("resumed", &[]);
                return Ok(());
            }
            Status::Finished(Outcome::Failed(error)) => return Err(error),
        }
        // Nothing is to be done for the guest yet, but the tick must not pile up.
        interrupts::poll();
    }
}

/// Runs the guest until it ends.
pub fn run(guest: &mut Guest<'_>) -> GuestEnd {
    let Err(end) = turns::run::<Infallible>(guest, |_| ControlFlow::Continue(Next::Sleep));
    end
}
