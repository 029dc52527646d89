//! Work in bounded steps, and the order in which the guest hears of it.
//!
//! One job is in hand at a time. It is chosen from what the registers and the
//! queue ask for, advanced step by step, and only at its end does the guest's
//! view change. So a job that is dropped (save, restore) is found again where it
//! was, and a step that failed is tried again.
//!
//! ```text
//!   registers, queue --begin--> job --advance, advance, advance--> finish: registers,
//!        ^                              DmaSpace calls                queue's head,
//!        |                              with their reports            used ring
//!        +----------------------------------------------------------------+
//! ```
//!
//! # Told last
//! A guest that is told of an unmap may at once use the page for something else,
//! and the migration may at once take it for clean. Every call of the host side
//! returns with the device drained and its pages in the dirty log; a job is
//! finished only when all its calls have returned; and nothing but `finish` tells
//! the guest. So for each model, whatever its queue looks like: report before
//! completion.

use super::Service;
use crate::space::{DmaSpace, SpaceError};
use hv_core::memory::{GuestMemory, PhysMemory};

/// How far a job has come.
pub(super) enum Progress<J> {
    /// There is a next step.
    More(J),
    /// All that the host side has to do is done.
    Done(J),
}

/// A model that works like that.
pub(super) trait Stepwise {
    /// What is being done, for whom.
    type Job: Copy;

    /// The job in hand.
    fn job(&self) -> Option<Self::Job>;

    /// Takes a job in hand, or none.
    fn set_job(&mut self, job: Option<Self::Job>);

    /// Whether anything asks for a job.
    fn is_asked(&self) -> bool;

    /// Carries out what needs nothing of the host side, and makes a job of
    /// everything else.
    fn begin<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &impl DmaSpace,
    ) -> Option<Self::Job>;

    /// The next step. On an error the model is as before it.
    ///
    /// `left` is how many more may follow in this turn. A step that does the work of
    /// several at once, since one drain then serves them all, takes the others from it.
    fn advance<M: PhysMemory>(
        &mut self,
        job: Self::Job,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        left: &mut u32,
    ) -> Result<Progress<Self::Job>, SpaceError>;

    /// Tells whoever asked: the only place where the guest's view changes because
    /// of what the host side did.
    fn finish<M: PhysMemory>(&mut self, job: Self::Job, guest: &GuestMemory<'_, M>);

    /// Whether there is nothing to do.
    fn is_resting(&self) -> bool {
        self.job().is_none() && !self.is_asked()
    }

    /// Does up to `budget` steps.
    fn work<M: PhysMemory>(
        &mut self,
        guest: &GuestMemory<'_, M>,
        space: &mut impl DmaSpace,
        budget: u32,
    ) -> Result<Service, SpaceError> {
        let mut left = budget;
        while left > 0 && !self.is_resting() {
            left -= 1;
            match self.job() {
                Some(job) => match self.advance(job, guest, space, &mut left)? {
                    Progress::More(job) => self.set_job(Some(job)),
                    Progress::Done(job) => {
                        self.set_job(None);
                        self.finish(job, guest);
                    }
                },
                None => {
                    let job = self.begin(guest, space);
                    self.set_job(job);
                }
            }
        }
        Ok(if self.is_resting() {
            Service::Idle
        } else {
            Service::More
        })
    }
}
