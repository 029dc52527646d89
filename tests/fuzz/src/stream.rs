//! A source of a migration that sends anything: broken records, and records that
//! are right one by one and wrong as a whole.

use crate::input::Input;
use core::task::Poll;
use hv_core::Gfn;
use hv_core::clock::Clock;
use hv_core::memory::Frame;
use migration::VmError;
use migration::destination::{Destination, DestinationParams, DestinationVm, Status};
use migration::link::{Link, LinkError};
use migration::stream::{Config, Kind, Outbox, RECORD_BYTES, Refusal, SectionInfo};
use std::collections::BTreeMap;

/// The largest guest taken in, in frames.
const FRAMES: u64 = 64;
const KINDS: [Kind; 13] = [
    Kind::Hello,
    Kind::Pages,
    Kind::ZeroPages,
    Kind::RoundEnd,
    Kind::Audit,
    Kind::Section,
    Kind::Final,
    Kind::Go,
    Kind::Accept,
    Kind::Refuse,
    Kind::Ready,
    Kind::Running,
    Kind::Abort,
];

pub(crate) fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let is_raw = input.u8() == 0;
    let mut link = Wire::default();
    if is_raw {
        link.incoming = input.bytes(usize::MAX).to_vec();
    } else {
        write_records(&mut input, &mut link);
    }
    receive(link);
}

/// Records with a right header: kind, length, and the first bytes of each.
fn write_records(input: &mut Input<'_>, link: &mut Wire) {
    let mut outbox = Outbox::new(vec![0; RECORD_BYTES]);
    while !input.is_empty() {
        let kind = KINDS[usize::from(input.u8()) % KINDS.len()];
        let length = usize::from(input.u16());
        let given = usize::from(input.u8());
        let given = input.bytes(given);
        let Some(vacant) = outbox.vacant() else {
            return;
        };
        vacant.put_plain(kind, |payload| {
            let length = length.max(given.len()).min(payload.len());
            payload[..length].fill(0);
            payload[..given.len()].copy_from_slice(given);
            length
        });
        while !outbox.flush(link).is_ok_and(|sent| sent == 0) {}
    }
    // What was sent is what the other side will hear.
    link.incoming = std::mem::take(&mut link.sent);
}

fn receive(mut link: Wire) {
    let mut vm = Guest::default();
    let mut buffer = Box::new([0; RECORD_BYTES]);
    let mut received = [0; Destination::words_needed(FRAMES) as usize];
    let params = DestinationParams::default();
    let mut destination = Destination::new(params, &mut buffer, &mut received);
    // Each step takes a record, answers, or ends the migration.
    let steps = link.incoming.len() + 1000;
    for _ in 0..steps {
        match destination.step(&mut vm, &mut link, &Still) {
            Status::Working => {}
            Status::WaitingForPeer if link.at < link.incoming.len() => {}
            Status::WaitingForPeer => return,
            Status::Finished(_) => {
                // A guest that was built is either run or thrown away.
                assert_eq!(vm.prepared, vm.running || vm.discarded);
                return;
            }
        }
    }
    panic!("the destination works without end");
}

/// Time stands still.
struct Still;

impl Clock for Still {
    fn now_us(&self) -> u64 {
        0
    }
}

/// A link whose far end has said all it will say.
#[derive(Default)]
struct Wire {
    incoming: Vec<u8>,
    at: usize,
    sent: Vec<u8>,
}

impl Link for Wire {
    fn send(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        self.sent.extend(bytes);
        Ok(bytes.len())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let rest = &self.incoming[self.at..];
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }

    fn close(&mut self) {}
}

/// The machine that is to run the guest.
#[derive(Default)]
struct Guest {
    memory: BTreeMap<u64, Frame>,
    prepared: bool,
    completed: bool,
    running: bool,
    discarded: bool,
}

impl DestinationVm for Guest {
    fn prepare(&mut self, config: &Config) -> Result<(), Refusal> {
        assert!(!self.prepared);
        // The engine has checked that it can keep account of every frame.
        assert!(config.frames() <= FRAMES);
        for run in &config.memory {
            for index in 0..run.frames {
                let gfn = run.gfn.number() + index;
                self.memory.insert(gfn, Frame::zeroed());
            }
        }
        self.prepared = true;
        Ok(())
    }

    fn frame(&self, gfn: Gfn) -> Option<&Frame> {
        self.memory.get(&gfn.number())
    }

    fn mismatch(&mut self, _: Gfn) {}

    fn load(&mut self, _: SectionInfo, _: &[u8]) -> Result<(), VmError> {
        assert!(self.prepared && !self.discarded);
        Ok(())
    }

    fn complete(&mut self) -> Poll<Result<(), VmError>> {
        assert!(self.prepared && !self.discarded);
        self.completed = true;
        Poll::Ready(Ok(()))
    }

    fn start(&mut self) {
        assert!(self.completed && !self.discarded && !self.running);
        self.running = true;
    }

    fn discard(&mut self) {
        assert!(self.prepared && !self.running && !self.discarded);
        self.discarded = true;
    }
}
