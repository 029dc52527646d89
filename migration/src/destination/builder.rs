//! Builds the guest from records, and checks that they come in order.
//!
//! ```text
//!  Hello ──> Memory ─RoundEnd last─> [Audit ─all compared─>] Sections
//!                                                               │ Final
//!                        Running <──Go── Complete <──built── Completing
//! ```

use super::{DestinationError, DestinationVm, OnMismatch, Totals};
use crate::VmError;
use crate::digest::digest;
use crate::stream::{
    Audit, Config, Hello, Kind, Pages, Record, Refusal, RoundEnd, Section, StreamError, ZeroPages,
};
use hv_core::Gfn;
use hv_core::memory::Frame;

/// What the source is told in return for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accept,
    Ready,
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Hello,
    Memory,
    /// `next` counts pages in the order of the config.
    Audit {
        next: u64,
    },
    Sections {
        next: usize,
    },
    Completing,
    Complete,
    Running,
}

/// The guest as far as it has come.
pub(super) struct Builder<'m> {
    on_mismatch: OnMismatch,
    config: Config,
    phase: Phase,
    /// One bit for each page that has come at least once.
    received: &'m mut [u64],
    /// Pages that came in this round.
    round_pages: u64,
    pub(super) totals: Totals,
}

impl<'m> Builder<'m> {
    pub(super) fn new(on_mismatch: OnMismatch, received: &'m mut [u64]) -> Self {
        Self {
            on_mismatch,
            config: Config::default(),
            phase: Phase::Hello,
            received,
            round_pages: 0,
            totals: Totals::default(),
        }
    }

    /// Whether nothing came yet.
    pub(super) fn is_new(&self) -> bool {
        self.phase == Phase::Hello
    }

    /// Whether the guest was started.
    pub(super) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Whether the machine has more to do before the source may let go.
    pub(super) fn is_completing(&self) -> bool {
        self.phase == Phase::Completing
    }

    /// Lets the machine do a piece of what is left, and says what to answer.
    pub(super) fn complete(
        &mut self,
        vm: &mut impl DestinationVm,
    ) -> Result<Option<Answer>, DestinationError> {
        if vm.complete()?.is_pending() {
            return Ok(None);
        }
        self.phase = Phase::Complete;
        Ok(Some(Answer::Ready))
    }

    /// Takes one record in, and says what to answer.
    pub(super) fn take(
        &mut self,
        record: Record<'_>,
        vm: &mut impl DestinationVm,
    ) -> Result<Option<Answer>, DestinationError> {
        match (self.phase, record) {
            (_, Record::Abort(reason)) => return Err(DestinationError::Aborted(reason)),
            (Phase::Hello, Record::Hello(hello)) => {
                self.prepare(hello, vm)?;
                return Ok(Some(Answer::Accept));
            }
            (Phase::Memory, Record::Pages(pages)) => self.store(pages, vm)?,
            (Phase::Memory, Record::ZeroPages(zeros)) => self.clear(zeros, vm)?,
            (Phase::Memory, Record::RoundEnd(end)) => self.end_round(end)?,
            (Phase::Audit { next }, Record::Audit(audit)) => self.compare(next, audit, vm)?,
            (Phase::Sections { next }, Record::Section(section)) => self.load(next, section, vm)?,
            (Phase::Sections { next }, Record::Final) if next == self.config.sections.len() => {
                self.phase = Phase::Completing;
                return self.complete(vm);
            }
            (Phase::Complete, Record::Go) => {
                vm.start();
                self.phase = Phase::Running;
                return Ok(Some(Answer::Running));
            }
            (_, record) => return Err(StreamError::Order(record.kind()).into()),
        }
        Ok(None)
    }

    fn prepare(
        &mut self,
        hello: Hello<'_>,
        vm: &mut impl DestinationVm,
    ) -> Result<(), DestinationError> {
        let config = hello.config()?;
        let words = config.frames().div_ceil(64);
        if words > self.received.len() as u64 {
            return Err(DestinationError::Refused(Refusal::Memory));
        }
        vm.prepare(&config).map_err(DestinationError::Refused)?;
        self.received.fill(0);
        self.config = config;
        self.phase = Phase::Memory;
        Ok(())
    }

    fn store(&mut self, pages: Pages<'_>, vm: &impl DestinationVm) -> Result<(), DestinationError> {
        for entry in pages.entries() {
            entry.write_to(self.arrive(entry.gfn(), vm)?);
        }
        Ok(())
    }

    fn clear(
        &mut self,
        zeros: ZeroPages<'_>,
        vm: &impl DestinationVm,
    ) -> Result<(), DestinationError> {
        for run in zeros.runs() {
            let (first, frames) = run.range();
            let end = first.number().checked_add(frames);
            let end = end.ok_or(StreamError::OutsideMemory(first))?;
            // A run that leaves memory stops at the first page outside.
            for gfn in first.number()..end {
                self.arrive(Gfn::new(gfn), vm)?.clear();
                self.totals.zero_pages += 1;
            }
        }
        Ok(())
    }

    /// Notes that a page comes and returns where it goes.
    fn arrive<'v>(
        &mut self,
        gfn: Gfn,
        vm: &'v impl DestinationVm,
    ) -> Result<&'v Frame, DestinationError> {
        let index = self.config.index_of(gfn);
        let index = index.ok_or(StreamError::OutsideMemory(gfn))?;
        let frame = frame(gfn, vm)?;
        // Bounds what a few bytes can ask for: runs of zero pages may repeat.
        if self.round_pages == self.config.frames() {
            return Err(StreamError::LongRound(self.round_pages).into());
        }
        if let Some(word) = self.received.get_mut((index / 64) as usize) {
            *word |= 1 << (index % 64);
        }
        self.round_pages += 1;
        self.totals.pages += 1;
        Ok(frame)
    }

    fn end_round(&mut self, end: RoundEnd) -> Result<(), DestinationError> {
        if end.round != self.totals.rounds + 1 {
            return Err(StreamError::Order(Kind::RoundEnd).into());
        }
        if end.pages != self.round_pages {
            return Err(StreamError::PageCount {
                announced: end.pages,
                received: self.round_pages,
            }
            .into());
        }
        // The first round is a full pass, so from here on every page has come.
        if let Some(gfn) = self.first_missing() {
            return Err(StreamError::MissingPage(gfn).into());
        }
        self.totals.rounds = end.round;
        self.round_pages = 0;
        if end.last {
            self.phase = if self.config.audit {
                Phase::Audit { next: 0 }
            } else {
                Phase::Sections { next: 0 }
            };
        }
        Ok(())
    }

    fn first_missing(&self) -> Option<Gfn> {
        let (word, bits) = self
            .received
            .iter()
            .enumerate()
            .find(|(_, w)| **w != u64::MAX)?;
        // Bits beyond the last frame are clear, and `frame_at` finds no frame there.
        self.config
            .frame_at(word as u64 * 64 + u64::from(bits.trailing_ones()))
    }

    fn compare(
        &mut self,
        next: u64,
        audit: Audit<'_>,
        vm: &mut impl DestinationVm,
    ) -> Result<(), DestinationError> {
        if audit.first != next {
            return Err(StreamError::Order(Kind::Audit).into());
        }
        let mut index = next;
        for expected in audit.digests() {
            let gfn = self.config.frame_at(index);
            let gfn = gfn.ok_or(StreamError::Field("number of digests"))?;
            if digest(frame(gfn, vm)?) != expected {
                self.totals.mismatches += 1;
                self.totals.first_mismatch.get_or_insert(gfn);
                vm.mismatch(gfn);
            }
            index += 1;
        }
        self.totals.audited = index;
        self.phase = Phase::Audit { next: index };
        if index == self.config.frames() {
            self.judge()?;
            self.phase = Phase::Sections { next: 0 };
        }
        Ok(())
    }

    /// All pages are compared: is the result good enough to go on?
    fn judge(&self) -> Result<(), DestinationError> {
        match (self.totals.first_mismatch, self.on_mismatch) {
            (Some(first), OnMismatch::Refuse) => Err(DestinationError::Audit {
                pages: self.totals.mismatches,
                first,
            }),
            _ => Ok(()),
        }
    }

    fn load(
        &mut self,
        next: usize,
        section: Section<'_>,
        vm: &mut impl DestinationVm,
    ) -> Result<(), DestinationError> {
        if self.config.sections.get(next) != Some(&section.info) {
            return Err(StreamError::Order(Kind::Section).into());
        }
        vm.load(section.info, section.bytes)?;
        self.phase = Phase::Sections { next: next + 1 };
        Ok(())
    }
}

fn frame(gfn: Gfn, vm: &impl DestinationVm) -> Result<&Frame, VmError> {
    vm.frame(gfn)
        .ok_or(VmError("a frame that was prepared is not there"))
}
