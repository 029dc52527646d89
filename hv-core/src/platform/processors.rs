//! The CPUs of a guest as its devices see them: local APICs, and how one CPU resets
//! and starts another (MultiProcessor Specification 1.4, appendix B.4; AMD64
//! Architecture Programmer's Manual volume 2, section 16.5).
//!
//! A message goes to every APIC it addresses. INIT, start-up and NMI are noted, and the
//! CPU finds them when it enters the guest next. NMIs that it cannot take yet are one.

use super::apic::{Apic, ApicState, Delivery, Message};
use heapless::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most CPUs a guest can have.
pub const MAX_CPUS: usize = 2;

/// [`ProcessorState::start`] has a page.
const START_VALID: u16 = 1 << 8;

/// What one CPU has of the platform. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProcessorState {
    /// The local APIC.
    pub apic: ApicState,
    /// 1 when an INIT has come that the CPU has not seen.
    init: u16,
    /// The page of a start-up that the CPU has not seen, with bit 8 set.
    start: u16,
    /// 1 when an NMI has come that the CPU has not taken.
    nmi: u16,
    reserved: u16,
}

/// What other CPUs told this one to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// Reset, first.
    pub init: bool,
    /// Start at this 4 KiB page, if the CPU waits for that.
    pub start: Option<u8>,
}

/// What one CPU has of the platform.
pub struct Processor {
    /// The local APIC.
    pub apic: Apic,
    signals: Signals,
    nmi: bool,
}

impl Processor {
    fn new(id: u32) -> Self {
        Self {
            apic: Apic::new(id),
            signals: Signals::default(),
            nmi: false,
        }
    }

    /// Takes what other CPUs told this one to do.
    pub fn take_signals(&mut self) -> Signals {
        core::mem::take(&mut self.signals)
    }

    /// Whether other CPUs told this one something that it has not seen.
    pub fn has_signals(&self) -> bool {
        self.signals != Signals::default()
    }

    /// Takes the NMI that has come, if one has.
    pub fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }

    /// Whether an NMI has come that the CPU has not taken.
    pub fn has_nmi(&self) -> bool {
        self.nmi
    }

    fn receive(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Fixed(vector) | Delivery::LowestPriority(vector) => self.apic.request(vector),
            Delivery::Init => {
                self.apic.init();
                self.nmi = false;
                self.signals = Signals {
                    init: true,
                    start: None,
                };
            }
            Delivery::Startup(page) => self.signals.start = Some(page),
            Delivery::Nmi => self.nmi = true,
        }
    }

    /// The state of it.
    pub fn save(&self) -> ProcessorState {
        let start = self
            .signals
            .start
            .map_or(0, |page| START_VALID | u16::from(page));
        ProcessorState {
            apic: self.apic.save(),
            init: self.signals.init.into(),
            start,
            nmi: self.nmi.into(),
            reserved: 0,
        }
    }

    /// One in a state from outside, unless it is impossible for CPU `id`.
    pub fn restored(id: u32, state: &ProcessorState) -> Option<Self> {
        let start = match state.start {
            0 => None,
            START_VALID..=0x1ff => Some(state.start as u8),
            _ => return None,
        };
        let apic = Apic::restored(&state.apic).filter(|apic| apic.id() == id)?;
        let flags = state.init < 2 && state.nmi < 2 && state.reserved == 0;
        flags.then_some(Self {
            apic,
            signals: Signals {
                init: state.init == 1,
                start,
            },
            nmi: state.nmi == 1,
        })
    }
}

/// All CPUs of a guest; a CPU's number is its place and its APIC's id.
pub struct Processors(Vec<Processor, MAX_CPUS>);

impl Processors {
    /// `count` CPUs after reset: at least 1, at most [`MAX_CPUS`].
    pub fn new(count: usize) -> Self {
        let count = count.clamp(1, MAX_CPUS) as u32;
        Self((0..count).map(Processor::new).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// CPU `index`; the last one if there is none of this number.
    pub fn get(&mut self, index: usize) -> &mut Processor {
        let last = self.0.len() - 1;
        &mut self.0[index.min(last)]
    }

    /// Each of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Processor> {
        self.0.iter_mut()
    }

    /// Delivers a message of CPU `from`, or of a device.
    pub fn send(&mut self, message: Message, from: Option<usize>) {
        let from = from.map(|index| index as u32);
        let addressed = self
            .0
            .iter_mut()
            .filter(|cpu| cpu.apic.is_addressed(message.to, from));
        let receivers = match message.delivery {
            Delivery::LowestPriority(_) => 1,
            _ => MAX_CPUS,
        };
        for cpu in addressed.take(receivers) {
            cpu.receive(message.delivery);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::apic::{Destination, Msi};
    use super::*;
    use crate::platform::time::Time;

    const NOW: Time = Time::from_ns(0);

    fn two() -> Processors {
        let mut cpus = Processors::new(2);
        for cpu in cpus.iter_mut() {
            cpu.apic.set_base(cpu.apic.base() | 1 << 10).unwrap();
            cpu.apic.write_msr(0x80f, 0x1ff, NOW).unwrap();
        }
        cpus
    }

    fn command(cpus: &mut Processors, from: usize, icr: u64) {
        let sent = cpus.get(from).apic.write_msr(0x830, icr, NOW).unwrap();
        if let Some(message) = sent {
            cpus.send(message, Some(from));
        }
    }

    fn receivers(cpus: &mut Processors) -> std::vec::Vec<usize> {
        let has = |index: &usize| cpus.get(*index).apic.deliverable().is_some();
        (0..2).filter(has).collect()
    }

    #[test]
    fn a_command_reaches_those_it_names_and_no_other() {
        for (icr, expected) in [
            (1 << 32 | 0x41, std::vec![1]),
            (0x41, std::vec![0]),
            (2 << 32 | 0x41, std::vec![]),
            (0x3 << 32 | 1 << 11 | 0x41, std::vec![0, 1]),
            (0x1_0001 << 32 | 1 << 11 | 0x41, std::vec![]),
            (0xffff_ffff << 32 | 0x41, std::vec![0, 1]),
            (1 << 18 | 0x41, std::vec![0]),
            (2 << 18 | 0x41, std::vec![0, 1]),
            (3 << 18 | 0x41, std::vec![1]),
        ] {
            let mut cpus = two();
            command(&mut cpus, 0, icr);
            assert_eq!(receivers(&mut cpus), expected, "{icr:#x}");
        }
    }

    #[test]
    fn a_lowest_priority_message_reaches_one_cpu() {
        let mut cpus = two();
        let msi = Msi {
            address: 0xfee0_3004,
            data: 0x141,
        };
        cpus.send(Message::from_msi(msi).unwrap(), None);
        assert_eq!(receivers(&mut cpus), [0]);
    }

    #[test]
    fn init_and_start_up_are_found_once_and_init_forgets_what_was_before() {
        let mut cpus = two();
        command(&mut cpus, 0, 1 << 32 | 0x699);
        command(&mut cpus, 0, 1 << 32 | 0x4500);
        let signals = cpus.get(1).take_signals();
        assert_eq!((signals.init, signals.start), (true, None));
        // The deassertion of INIT does nothing.
        command(&mut cpus, 0, 1 << 32 | 0x8500);
        assert!(!cpus.get(1).has_signals());
        command(&mut cpus, 0, 1 << 32 | 0x69a);
        assert_eq!(cpus.get(1).take_signals().start, Some(0x9a));
        assert!(!cpus.get(0).has_signals());
    }

    #[test]
    fn an_nmi_reaches_those_it_is_for_however_it_was_sent_and_init_forgets_it() {
        let takers = |cpus: &mut Processors| [0, 1].map(|index| cpus.get(index).take_nmi());
        let mut cpus = two();
        for (icr, expected) in [
            // The vector and the level mean nothing.
            (1 << 32 | 0x402, [false, true]),
            (1 << 32 | 0x4400, [false, true]),
            (3 << 18 | 0x400, [false, true]),
            (2 << 18 | 0x400, [true, true]),
        ] {
            command(&mut cpus, 0, icr);
            assert_eq!(receivers(&mut cpus), [0; 0], "it is no interrupt");
            assert_eq!(takers(&mut cpus), expected, "{icr:#x}");
        }
        let msi = Msi {
            address: 0xfee0_1000,
            data: 0x400,
        };
        cpus.send(Message::from_msi(msi).unwrap(), None);
        cpus.send(Message::from_msi(msi).unwrap(), None);
        assert_eq!(takers(&mut cpus), [false, true]);
        assert_eq!(takers(&mut cpus), [false, false], "two are one");
        command(&mut cpus, 0, 1 << 32 | 0x400);
        command(&mut cpus, 0, 1 << 32 | 0x4500);
        assert!(!cpus.get(1).has_nmi());
    }

    #[test]
    fn signals_migrate_and_a_state_of_another_cpu_is_refused() {
        let mut cpus = two();
        cpus.send(
            Message {
                to: Destination::Physical(1),
                delivery: Delivery::Startup(0),
            },
            Some(0),
        );
        command(&mut cpus, 0, 1 << 32 | 0x400);
        let state = cpus.get(1).save();
        let mut restored = Processor::restored(1, &state).unwrap();
        assert_eq!(restored.take_signals().start, Some(0));
        assert!(restored.take_nmi());
        assert!(Processor::restored(0, &state).is_none());
        for bad in [
            ProcessorState { start: 1, ..state },
            ProcessorState { init: 2, ..state },
            ProcessorState { nmi: 2, ..state },
        ] {
            assert!(Processor::restored(1, &bad).is_none());
        }
    }
}
