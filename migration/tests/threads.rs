//! Source, destination and a writing guest at the same time, on three threads and
//! over shared memory. It shows that the parts work together there; that no mark
//! is lost between the drain and the read is argued in `source/pass.rs` and cannot
//! be seen from outside.

#![allow(clippy::unwrap_used, reason = "tests")]

use hv_core::clock::Clock;
use hv_core::dirty::{DirtyLog, DirtySource};
use hv_core::memory::{Frame, Slot};
use hv_core::{Gfn, Hpa};
use migration::VmError;
use migration::destination::{self, Destination, DestinationParams, DestinationVm};
use migration::link::{Ring, Role, ring};
use migration::source::{self, NonConvergence, Source, SourceParams, SourceVm};
use migration::stream::{Config, RECORD_BYTES, Refusal, SectionInfo};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Instant;

const FRAMES: u64 = 2_048;

struct WallClock(Instant);

impl Clock for WallClock {
    fn now_us(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// What the guest's thread shares with the machine around it.
struct Guest {
    memory: Vec<Frame>,
    log: DirtyLog<'static>,
    pause: AtomicBool,
    paused: AtomicBool,
}

impl Guest {
    /// Writes each page once, in a scattered order, and marks it after the write:
    /// no later write covers up for a mark that was lost.
    fn run(&self) {
        for index in 0..FRAMES {
            if self.pause.load(Ordering::SeqCst) {
                break;
            }
            let gfn = index * 37 % FRAMES;
            self.memory[gfn as usize].words()[7].store(index + 1, Ordering::Relaxed);
            self.log.mark(Gfn::new(gfn), DirtySource::Hypervisor);
            for _ in 0..500 {
                std::hint::spin_loop();
            }
        }
        self.paused.store(true, Ordering::SeqCst);
    }
}

struct From<'g> {
    guest: &'g Guest,
    slots: [Slot; 1],
}

impl SourceVm for From<'_> {
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.guest.memory.get(gfn.number() as usize)
    }
    fn log(&self) -> &DirtyLog<'_> {
        &self.guest.log
    }
    fn sections(&self) -> &[SectionInfo] {
        &[]
    }
    fn start_tracking(&mut self) -> Result<(), VmError> {
        self.guest.log.start();
        Ok(())
    }
    fn stop_tracking(&mut self) {}
    fn harvest(&mut self) {}
    fn device_writable_pages(&self) -> u64 {
        0
    }
    fn device_downtime_us(&self) -> u64 {
        0
    }
    fn pause(&mut self) {
        self.guest.pause.store(true, Ordering::SeqCst);
    }
    fn quiesce(&mut self) -> Poll<Result<(), VmError>> {
        if self.guest.paused.load(Ordering::SeqCst) {
            Poll::Ready(Ok(()))
        } else {
            thread::yield_now();
            Poll::Pending
        }
    }
    fn final_harvest(&mut self) {}
    fn save(&mut self, _: usize, _: &mut [u8]) -> Result<usize, VmError> {
        Err(VmError("there are no sections"))
    }
    fn resume(&mut self) {}
}

#[derive(Default)]
struct To {
    memory: Vec<Frame>,
    mismatches: u64,
}

impl DestinationVm for To {
    fn prepare(&mut self, config: &Config) -> Result<(), Refusal> {
        self.memory
            .resize_with(config.frames() as usize, Frame::zeroed);
        Ok(())
    }
    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.memory.get(gfn.number() as usize)
    }
    fn mismatch(&mut self, _: Gfn) {
        self.mismatches += 1;
    }
    fn load(&mut self, _: SectionInfo, _: &[u8]) -> Result<(), VmError> {
        Err(VmError("there are no sections"))
    }
    fn complete(&mut self) -> Poll<Result<(), VmError>> {
        Poll::Ready(Ok(()))
    }
    fn start(&mut self) {}
    fn discard(&mut self) {}
}

fn words(count: u64) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fn receive(words: &[AtomicU64]) -> (destination::Outcome, To) {
    let clock = WallClock(Instant::now());
    let mut link = Ring::new(words, Role::Destination).unwrap();
    let mut buffer = Box::new([0; RECORD_BYTES]);
    let mut received = [0; Destination::words_needed(FRAMES) as usize];
    let params = DestinationParams::default();
    let mut engine = Destination::new(params, &mut buffer, &mut received);
    let mut vm = To::default();
    loop {
        match engine.step(&mut vm, &mut link, &clock) {
            destination::Status::Finished(outcome) => return (outcome, vm),
            _ => thread::yield_now(),
        }
    }
}

fn send(words: &[AtomicU64], guest: &Guest) -> source::Outcome {
    let clock = WallClock(Instant::now());
    let mut link = Ring::new(words, Role::Source).unwrap();
    let mut buffer = Box::new([0; RECORD_BYTES]);
    let params = SourceParams {
        min_rounds: 20,
        max_rounds: 20,
        on_non_convergence: NonConvergence::Force,
        audit: true,
        ..SourceParams::default()
    };
    let mut engine = Source::new(params, &mut buffer);
    let mut vm = From {
        guest,
        slots: [Slot {
            gfn: Gfn::new(0),
            hpa: Hpa::new(0),
            frames: FRAMES,
        }],
    };
    loop {
        match engine.step(&mut vm, &mut link, &clock).status {
            source::Status::Finished(outcome) => return outcome,
            _ => thread::yield_now(),
        }
    }
}

#[test]
fn a_guest_that_writes_on_another_thread_arrives_whole() {
    let log: &'static [AtomicU64] = words(DirtyLog::words_needed(FRAMES)).leak();
    let guest = Guest {
        memory: (0..FRAMES).map(|_| Frame::zeroed()).collect(),
        log: DirtyLog::new(log, FRAMES),
        pause: AtomicBool::new(false),
        paused: AtomicBool::new(false),
    };
    let link = words(ring::MIN_WORDS as u64 * 2);
    thread::scope(|scope| {
        let writer = scope.spawn(|| guest.run());
        let receiver = scope.spawn(|| receive(&link));
        let sent = send(&link, &guest);
        // Ends the writer even if the source never paused it.
        guest.pause.store(true, Ordering::SeqCst);
        writer.join().unwrap();
        assert_eq!(sent, source::Outcome::Done);
        let (outcome, to) = receiver.join().unwrap();
        assert_eq!(outcome, destination::Outcome::Running { announced: true });
        assert_eq!(to.mismatches, 0);
        for (here, there) in guest.memory.iter().zip(&to.memory) {
            for (here, there) in here.words().iter().zip(there.words()) {
                assert_eq!(here.load(Ordering::Relaxed), there.load(Ordering::Relaxed));
            }
        }
    });
}
