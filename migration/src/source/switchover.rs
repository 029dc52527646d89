//! The part of the source's engine that runs while the guest is paused.

use super::pass::Pass;
use super::{Downtime, Event, Outcome, Source, SourceError, SourceVm, State};
use crate::VmError;
use crate::digest::digest;
use crate::link::Link;
use crate::stream::{DIGESTS_PER_RECORD, Kind, StreamError, write_section};
use hv_core::clock::Clock;

impl Source<'_> {
    pub(super) fn pause(&mut self, vm: &mut impl SourceVm, clock: &impl Clock) -> Event {
        self.part_began = clock.now_us();
        vm.pause();
        self.paused = true;
        self.stalled = None;
        self.state = State::Quiescing;
        Event::Paused
    }

    /// The order matters: CPUs stopped, devices at rest, then the last harvest.
    /// After it nobody writes, so the pass that follows leaves nothing behind.
    pub(super) fn begin_final_pass(&mut self, vm: &mut impl SourceVm, clock: &impl Clock) {
        self.stalled = None;
        self.end_part(clock.now_us(), |downtime| &mut downtime.quiesce_us);
        vm.final_harvest();
        let now = clock.now_us();
        self.end_part(now, |downtime| &mut downtime.harvest_us);
        self.begin_round(Pass::marked(true), now);
        self.state = State::FinalPass;
    }

    pub(super) fn end_final_pass(&mut self, vm: &impl SourceVm, now: u64) -> Event {
        self.end_part(now, |downtime| &mut downtime.pages_us);
        let expected = self.totals.expected_downtime_us;
        let stats = self.round_stats(vm, now);
        self.totals.expected_downtime_us = expected;
        self.state = if self.config.audit {
            State::Auditing { next: 0 }
        } else {
            State::FIRST_SECTION
        };
        Event::RoundDone(stats)
    }

    /// Puts digests of the pages from `next` on into the outbox.
    pub(super) fn put_digests(
        &mut self,
        next: u64,
        vm: &impl SourceVm,
        now: u64,
        budget: &mut u32,
    ) -> Result<(), SourceError> {
        let left = self.config.frames() - next;
        let count = left.min(DIGESTS_PER_RECORD as u64).min(u64::from(*budget));
        let (Some(vacant), true) = (self.outbox.vacant(), count > 0) else {
            self.end_part(now, |downtime| &mut downtime.audit_us);
            self.state = State::FIRST_SECTION;
            return Ok(());
        };
        *budget -= count as u32;
        let config = &self.config;
        vacant.put(Kind::Audit, |payload| {
            payload[..8].copy_from_slice(&next.to_le_bytes());
            for (index, to) in (next..next + count).zip(payload[8..].chunks_exact_mut(8)) {
                let frame = config.frame_at(index).and_then(|gfn| vm.frame(gfn));
                let frame = frame.ok_or(VmError("a slot lacks a frame"))?;
                to.copy_from_slice(&digest(frame).to_le_bytes());
            }
            Ok::<_, VmError>(8 + 8 * count as usize)
        })?;
        self.state = State::Auditing { next: next + count };
        Ok(())
    }

    /// Puts a record of section `next` into the outbox, or `Final` after the last
    /// section.
    pub(super) fn put_section(
        &mut self,
        next: usize,
        continues: bool,
        vm: &mut impl SourceVm,
        now: u64,
    ) -> Result<(), SourceError> {
        let Some(vacant) = self.outbox.vacant() else {
            return Ok(());
        };
        match self.config.sections.get(next) {
            Some(&info) => {
                vacant.put(Kind::Section, |payload| {
                    write_section(info, continues, payload, |state| match continues {
                        false => vm.save(next, state),
                        true => vm.save_more(next, state),
                    })
                })?;
                let continues = vm.has_more(next);
                let next = if continues { next } else { next + 1 };
                self.state = State::Sections { next, continues };
            }
            None => {
                vacant.put_empty(Kind::Final);
                self.end_part(now, |downtime| &mut downtime.state_us);
                self.state = State::Finishing;
            }
        }
        Ok(())
    }

    /// The destination has built the guest. From the moment the last byte of `Go`
    /// has left, the guest may run there and must not run here.
    pub(super) fn put_go(&mut self) -> Result<(), SourceError> {
        // Ready answers Final; before Final has left whole it answers nothing.
        let vacant = self.outbox.vacant();
        vacant
            .ok_or(StreamError::Order(Kind::Ready))?
            .put_empty(Kind::Go);
        self.state = State::Leaving;
        Ok(())
    }

    pub(super) fn finish(&mut self, now: u64, link: &mut impl Link) {
        self.end_part(now, |downtime| &mut downtime.acknowledge_us);
        link.close();
        self.state = State::Finished(Outcome::Done);
    }

    /// Ends the measurement of one part of the downtime and begins the next.
    fn end_part(&mut self, now: u64, part: impl FnOnce(&mut Downtime) -> &mut u64) {
        *part(&mut self.totals.downtime) = now.saturating_sub(self.part_began);
        self.part_began = now;
    }
}
