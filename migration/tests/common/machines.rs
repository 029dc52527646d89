//! Two toy machines, and a guest and a device that write at random.

use hv_core::dirty::{DirtyLog, DirtySource};
use hv_core::memory::{Frame, Slot};
use hv_core::{Gfn, Hpa};
use migration::VmError;
use migration::destination::DestinationVm;
use migration::source::SourceVm;
use migration::stream::{Config, Refusal, SectionId, SectionInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

/// Marsaglia's xorshift64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

pub const SECTIONS: [SectionInfo; 2] = [
    SectionInfo {
        id: SectionId(1),
        version: 1,
        instance: 0,
    },
    SectionInfo {
        id: SectionId(2),
        version: 3,
        instance: 1,
    },
];

type Memory = BTreeMap<u64, Frame>;

/// The machine that runs the guest first.
pub struct ToySource {
    pub memory: Memory,
    pub slots: Vec<Slot>,
    pub sections: Vec<SectionInfo>,
    pub log: DirtyLog<'static>,
    pub state: [Vec<u8>; 2],
    pub running: bool,
    pub tracking: bool,
    /// Negative control: every so many marks one is lost; 0 loses none.
    pub lose_every: u64,
    /// Polls until the devices are at rest.
    pub quiesce_polls: u32,
    pub fail_save: bool,
    random: Random,
    marks: u64,
    /// Written by the CPU since the last harvest.
    cpu_dirty: BTreeSet<u64>,
    /// Mapped for a device.
    device_pages: Vec<u64>,
    device_running: bool,
    polled: u32,
}

impl ToySource {
    /// A guest with runs of memory `(first frame, frames)`, a third of it zero.
    pub fn new(seed: u64, runs: &[(u64, u64)]) -> Self {
        let mut random = Random::new(seed);
        let mut memory = Memory::new();
        let slots: Vec<Slot> = runs
            .iter()
            .map(|&(gfn, frames)| Slot {
                gfn: Gfn::new(gfn),
                hpa: Hpa::new(gfn << 12),
                frames,
            })
            .collect();
        for gfn in runs.iter().flat_map(|&(gfn, frames)| gfn..gfn + frames) {
            let frame = Frame::zeroed();
            if random.below(3) > 0 {
                let word = random.below(512) as usize;
                frame.words()[word].store(random.below(u64::MAX), Ordering::Relaxed);
            }
            memory.insert(gfn, frame);
        }
        let end = runs
            .iter()
            .map(|&(gfn, frames)| gfn + frames)
            .max()
            .unwrap();
        let words = (0..DirtyLog::words_needed(end)).map(|_| AtomicU64::new(0));
        let words: &'static [AtomicU64] = Box::leak(words.collect());
        let device_pages = memory.keys().copied().filter(|gfn| gfn % 7 == 3).collect();
        Self {
            memory,
            slots,
            sections: SECTIONS.to_vec(),
            log: DirtyLog::new(words, end),
            state: [vec![seed as u8; 13], vec![!seed as u8; 200]],
            running: true,
            tracking: false,
            lose_every: 0,
            quiesce_polls: 2,
            fail_save: false,
            random,
            marks: 0,
            cpu_dirty: BTreeSet::new(),
            device_pages,
            device_running: true,
            polled: 0,
        }
    }

    fn write(&mut self, gfn: u64) {
        let word = self.random.below(512) as usize;
        let value = self.random.below(5);
        self.memory[&gfn].words()[word].store(value, Ordering::Relaxed);
    }

    fn mark(&mut self, gfn: u64, source: DirtySource) {
        self.marks += 1;
        if self.lose_every == 0 || !self.marks.is_multiple_of(self.lose_every) {
            self.log.mark(Gfn::new(gfn), source);
        }
    }

    fn any_page(&mut self) -> u64 {
        let index = self.random.below(self.memory.len() as u64) as usize;
        *self.memory.keys().nth(index).unwrap()
    }

    /// Lets the guest and its device write for a while.
    pub fn run(&mut self, writes: u64) {
        for _ in 0..writes {
            if self.running {
                let gfn = self.any_page();
                self.write(gfn);
                if self.random.below(2) == 0 {
                    self.cpu_dirty.insert(gfn);
                } else {
                    self.mark(gfn, DirtySource::Hypervisor);
                }
                self.state[0][0] = self.state[0][0].wrapping_add(1);
            }
            if self.device_running && !self.device_pages.is_empty() {
                let which = self.random.below(self.device_pages.len() as u64) as usize;
                let gfn = self.device_pages[which];
                self.write(gfn);
                // Now and then the guest unmaps the page and maps another one.
                if self.running && self.random.below(4) == 0 {
                    self.mark(gfn, DirtySource::Unmap);
                    self.device_pages[which] = self.any_page();
                }
            }
        }
    }
}

impl SourceVm for ToySource {
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.memory.get(&gfn.number())
    }
    fn log(&self) -> &DirtyLog<'_> {
        &self.log
    }
    fn sections(&self) -> &[SectionInfo] {
        &self.sections
    }
    fn start_tracking(&mut self) -> Result<(), VmError> {
        self.log.start();
        self.cpu_dirty.clear();
        self.tracking = true;
        Ok(())
    }
    fn stop_tracking(&mut self) {
        self.log.stop();
        self.tracking = false;
    }
    fn harvest(&mut self) {
        for gfn in std::mem::take(&mut self.cpu_dirty) {
            self.mark(gfn, DirtySource::Cpu);
        }
    }
    fn device_writable_pages(&self) -> u64 {
        self.device_pages.len() as u64
    }
    fn device_downtime_us(&self) -> u64 {
        10
    }
    fn pause(&mut self) {
        assert!(self.running);
        self.running = false;
    }
    fn quiesce(&mut self) -> Poll<Result<(), VmError>> {
        self.polled += 1;
        if self.polled <= self.quiesce_polls {
            return Poll::Pending;
        }
        self.device_running = false;
        Poll::Ready(Ok(()))
    }
    fn final_harvest(&mut self) {
        assert!(!self.running && !self.device_running);
        self.harvest();
        for gfn in self.device_pages.clone() {
            self.mark(gfn, DirtySource::Mapped);
        }
    }
    fn save(&mut self, index: usize, to: &mut [u8]) -> Result<usize, VmError> {
        if self.fail_save {
            return Err(VmError("the device lost its state"));
        }
        let state = &self.state[index];
        to[..state.len()].copy_from_slice(state);
        Ok(state.len())
    }
    fn resume(&mut self) {
        assert!(!self.running);
        self.running = true;
        self.device_running = true;
    }
}

/// The machine that is to run the guest next.
#[derive(Default)]
pub struct ToyDestination {
    pub memory: Memory,
    pub loaded: Vec<(SectionInfo, Vec<u8>)>,
    pub refuse: Option<Refusal>,
    pub prepared: bool,
    pub never_completes: bool,
    pub completed: bool,
    pub running: bool,
    pub discarded: bool,
    pub mismatches: Vec<u64>,
}

impl DestinationVm for ToyDestination {
    fn prepare(&mut self, config: &Config) -> Result<(), Refusal> {
        if let Some(refusal) = self.refuse {
            return Err(refusal);
        }
        for run in &config.memory {
            for gfn in run.gfn.number()..run.gfn.number() + run.frames {
                let frame = Frame::zeroed();
                // Not zero, so that a zero page that never came is seen.
                frame.words()[5].store(0xdead, Ordering::Relaxed);
                self.memory.insert(gfn, frame);
            }
        }
        self.prepared = true;
        Ok(())
    }
    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.memory.get(&gfn.number())
    }
    fn mismatch(&mut self, gfn: Gfn) {
        self.mismatches.push(gfn.number());
    }
    fn load(&mut self, info: SectionInfo, bytes: &[u8]) -> Result<(), VmError> {
        self.loaded.push((info, bytes.to_vec()));
        Ok(())
    }
    fn complete(&mut self) -> Poll<Result<(), VmError>> {
        if self.never_completes {
            return Poll::Pending;
        }
        self.completed = true;
        Poll::Ready(Ok(()))
    }
    fn start(&mut self) {
        assert!(self.completed && !self.discarded);
        self.running = true;
    }
    fn discard(&mut self) {
        assert!(self.prepared && !self.running && !self.discarded);
        self.discarded = true;
    }
}
