//! A local APIC for the one CPU of a guest, with id 0.
//!
//! AMD64 Architecture Programmer's Manual volume 2, chapter 16: registers in memory
//! at FEE0_0000h (section 16.3), or MSRs in x2APIC mode (section 16.11). A register
//! has the same number in both: bits 11:4 of its address, or its MSR less 800h.
//! Logical destinations follow the flat model; the destination format is fixed.

use super::apic_timer::{Tick, Timer, TimerState};
use super::msr::Refused;
use super::time::Time;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// APIC_BASE: this is the boot CPU.
const BASE_BSP: u64 = 1 << 8;
/// APIC_BASE: x2APIC mode.
const BASE_X2APIC: u64 = 1 << 10;
/// APIC_BASE: enabled.
const BASE_ENABLE: u64 = 1 << 11;
/// APIC_BASE: the address, fixed here.
const BASE_ADDRESS: u64 = 0xfee0_0000;
/// Version 14h with six local vectors.
const VERSION: u32 = 0x0005_0014;
/// SVR: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// Local vectors: masked.
const LVT_MASKED: u32 = 1 << 16;
/// Local vectors: the timer is periodic.
const LVT_PERIODIC: u32 = 1 << 17;
/// The bits of a local vector that can be written.
const LVT_WRITABLE: u32 = 0x0007_ffff;
/// Vectors below this are exceptions; the APIC never delivers them.
const FIRST_VECTOR: u8 = 16;

/// A message signalled interrupt: what the function writes and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Where to; an interrupt if it is FEEx_xxxxh.
    pub address: u64,
    /// What: vector and delivery mode.
    pub data: u32,
}

/// Where the registers are in memory.
pub const WINDOW: u64 = BASE_ADDRESS;
/// The first MSR of x2APIC mode.
const FIRST_MSR: u32 = 0x800;

/// Numbers of registers.
mod register {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TASK_PRIORITY: u32 = 0x08;
    pub(super) const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub(super) const END_OF_INTERRUPT: u32 = 0x0b;
    pub(super) const LOGICAL_DESTINATION: u32 = 0x0d;
    pub(super) const DESTINATION_FORMAT: u32 = 0x0e;
    pub(super) const SPURIOUS: u32 = 0x0f;
    pub(super) const IN_SERVICE: u32 = 0x10;
    pub(super) const TRIGGER_MODE: u32 = 0x18;
    pub(super) const REQUESTED: u32 = 0x20;
    pub(super) const ERROR_STATUS: u32 = 0x28;
    pub(super) const COMMAND: u32 = 0x30;
    pub(super) const COMMAND_HIGH: u32 = 0x31;
    /// Timer, thermal, performance, LINT0, LINT1, error.
    pub(super) const FIRST_LVT: u32 = 0x32;
    pub(super) const LAST_LVT: u32 = 0x37;
    pub(super) const TIMER_INITIAL: u32 = 0x38;
    pub(super) const TIMER_CURRENT: u32 = 0x39;
    pub(super) const TIMER_DIVIDE: u32 = 0x3e;
    pub(super) const SELF: u32 = 0x3f;
}

/// The state of the APIC. The layout is fixed: these bytes migrate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ApicState {
    registers: Registers,
    timer: TimerState,
}

/// All but the timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Registers {
    base: u64,
    requested: [u64; 4],
    in_service: [u64; 4],
    icr: u64,
    tpr: u32,
    svr: u32,
    lvt: [u32; 6],
    /// Used outside x2APIC mode only.
    logical_destination: u32,
    reserved: u32,
}

/// The APIC.
pub struct Apic(Registers, Timer);

impl Default for Apic {
    /// As after reset: registers in memory, software disabled.
    fn default() -> Self {
        let registers = Registers {
            base: BASE_ADDRESS | BASE_ENABLE | BASE_BSP,
            requested: [0; 4],
            in_service: [0; 4],
            icr: 0,
            tpr: 0,
            svr: 0xff,
            lvt: [LVT_MASKED; 6],
            logical_destination: 0,
            reserved: 0,
        };
        Self(registers, Timer::default())
    }
}

impl Apic {
    /// MSR APIC_BASE.
    pub fn base(&self) -> u64 {
        self.0.base
    }

    /// Writes MSR APIC_BASE. The address cannot be moved, and x2APIC mode is left
    /// only by disabling the APIC.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        let allowed = BASE_ADDRESS | BASE_ENABLE | BASE_X2APIC | BASE_BSP;
        let (old, mode) = (self.0.base, value & (BASE_ENABLE | BASE_X2APIC));
        let leaves_x2apic = old & BASE_X2APIC != 0 && mode == BASE_ENABLE;
        let illegal = mode == BASE_X2APIC || leaves_x2apic;
        if value & !allowed != 0 || value & BASE_ADDRESS != BASE_ADDRESS || illegal {
            return Err(Refused);
        }
        if mode == 0 {
            *self = Self::default();
        }
        self.0.base = BASE_ADDRESS | BASE_BSP | mode;
        Ok(())
    }

    /// Whether the registers are in memory at [`WINDOW`].
    pub fn is_in_memory(&self) -> bool {
        self.0.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE
    }

    /// Reads an x2APIC MSR, 800h to 8FFh.
    pub fn read_msr(&self, msr: u32, now: Time) -> Result<u64, Refused> {
        self.require_x2apic()?;
        match msr.wrapping_sub(FIRST_MSR) {
            register::ID => Ok(0),
            // Cluster 0, the first CPU in it.
            register::LOGICAL_DESTINATION => Ok(1),
            register::COMMAND => Ok(self.0.icr),
            number => self.read(number, now).map(u64::from).ok_or(Refused),
        }
    }

    /// Writes an x2APIC MSR. On an error nothing changes.
    pub fn write_msr(&mut self, msr: u32, value: u64, now: Time) -> Result<(), Refused> {
        self.require_x2apic()?;
        let number = msr.wrapping_sub(FIRST_MSR);
        let limit = match number {
            register::COMMAND => {
                self.0.icr = value;
                self.send(value);
                return Ok(());
            }
            register::TASK_PRIORITY | register::SELF => 0xff,
            register::END_OF_INTERRUPT | register::ERROR_STATUS => 0,
            register::SPURIOUS => 0x1ff,
            register::FIRST_LVT..=register::LAST_LVT => LVT_WRITABLE,
            register::TIMER_INITIAL => u32::MAX,
            register::TIMER_DIVIDE => 0xb,
            _ => return Err(Refused),
        };
        let value = u32::try_from(value).map_err(|_| Refused)?;
        if value > limit {
            return Err(Refused);
        }
        self.write(number, value, now);
        Ok(())
    }

    /// Reads a register in memory. Those that do not exist read as 0.
    pub fn read_memory(&self, offset: u64, now: Time) -> u32 {
        match (offset >> 4) as u32 {
            register::ID => 0,
            register::LOGICAL_DESTINATION => self.0.logical_destination,
            register::DESTINATION_FORMAT => u32::MAX,
            register::COMMAND => self.0.icr as u32,
            register::COMMAND_HIGH => (self.0.icr >> 32) as u32,
            number => self.read(number, now).unwrap_or(0),
        }
    }

    /// Writes a register in memory. Bits and registers that do not exist, or are
    /// read-only, are left alone.
    pub fn write_memory(&mut self, offset: u64, value: u32, now: Time) {
        match (offset >> 4) as u32 {
            register::LOGICAL_DESTINATION => self.0.logical_destination = value & 0xff << 24,
            register::COMMAND_HIGH => {
                self.0.icr = self.0.icr & 0xffff_ffff | u64::from(value & 0xff << 24) << 32;
            }
            register::COMMAND => {
                self.0.icr = self.0.icr >> 32 << 32 | u64::from(value);
                // The destination has eight bits here, with all ones for everyone.
                let destination = match self.0.icr >> 56 {
                    0xff => 0xffff_ffff,
                    destination => destination,
                };
                self.send(destination << 32 | u64::from(value));
            }
            register::SELF => {}
            number => self.write(number, value, now),
        }
    }

    /// The timer catches up with `now`.
    pub fn advance(&mut self, now: Time) {
        let [lvt, ..] = self.0.lvt;
        let tick = self.1.advance(now, lvt & LVT_PERIODIC != 0);
        if tick == Tick::Expired && lvt & LVT_MASKED == 0 {
            self.request(lvt as u8);
        }
    }

    /// A message signalled interrupt arrives. It is dropped unless it is a fixed
    /// or lowest-priority interrupt for this CPU.
    pub fn deliver(&mut self, msi: Msi) {
        let destination = msi.address >> 12 & 0xff;
        let logical = msi.address & 1 << 2 != 0;
        let is_ours = destination == 0xff || self.is_addressed(destination, logical);
        let delivery = msi.data >> 8 & 7;
        if msi.address >> 20 == 0xfee && is_ours && delivery <= 1 {
            self.request(msi.data as u8);
        }
    }

    /// The vector that the CPU would be interrupted with if it could be.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = highest(&self.0.requested)?;
        let enabled = self.0.svr & SVR_ENABLE != 0 && self.0.base & BASE_ENABLE != 0;
        (enabled && u32::from(vector >> 4) > self.processor_priority() >> 4).then_some(vector)
    }

    /// The CPU takes the interrupt of `vector`, which [`Apic::deliverable`] named.
    pub fn accept(&mut self, vector: u8) {
        clear(&mut self.0.requested, vector);
        set(&mut self.0.in_service, vector);
    }

    /// The task priority class, which the guest also has as CR8.
    pub fn task_priority_class(&self) -> u64 {
        u64::from(self.0.tpr >> 4)
    }

    /// The guest wrote CR8.
    pub fn set_task_priority_class(&mut self, class: u64) {
        if class != self.task_priority_class() {
            self.0.tpr = ((class & 0xf) << 4) as u32;
        }
    }

    /// The state of the APIC.
    pub fn save(&self) -> ApicState {
        ApicState {
            registers: self.0,
            timer: self.1.save(),
        }
    }

    /// An APIC in a state from outside, unless it is impossible.
    pub fn restored(state: &ApicState) -> Option<Self> {
        let registers = &state.registers;
        let base = registers.base & !(BASE_ENABLE | BASE_X2APIC) == BASE_ADDRESS | BASE_BSP;
        let mode = registers.base & (BASE_ENABLE | BASE_X2APIC) != BASE_X2APIC;
        let exceptions = (registers.requested[0] | registers.in_service[0]) & 0xffff == 0;
        let values = registers.tpr <= 0xff
            && registers.svr <= 0x1ff
            && registers.lvt.iter().all(|lvt| *lvt <= LVT_WRITABLE)
            && registers.logical_destination << 8 == 0
            && registers.reserved == 0;
        let timer = Timer::restored(&state.timer)?;
        (base && mode && exceptions && values).then_some(Self(*registers, timer))
    }

    /// Reads what is the same in both modes.
    fn read(&self, number: u32, now: Time) -> Option<u32> {
        let word = |words: &[u64; 4], first: u32| {
            let index = (number - first) as usize;
            (words[index / 2] >> (32 * (index % 2))) as u32
        };
        let [timer_lvt, ..] = self.0.lvt;
        Some(match number {
            register::VERSION => VERSION,
            register::TASK_PRIORITY => self.0.tpr,
            register::PROCESSOR_PRIORITY => self.processor_priority(),
            register::SPURIOUS => self.0.svr,
            register::IN_SERVICE..register::TRIGGER_MODE => {
                word(&self.0.in_service, register::IN_SERVICE)
            }
            // Everything delivered here is edge triggered.
            register::TRIGGER_MODE..register::REQUESTED => 0,
            register::REQUESTED..register::ERROR_STATUS => {
                word(&self.0.requested, register::REQUESTED)
            }
            register::ERROR_STATUS => 0,
            register::FIRST_LVT..=register::LAST_LVT => {
                self.0.lvt[(number - register::FIRST_LVT) as usize]
            }
            register::TIMER_INITIAL => self.1.initial(),
            register::TIMER_CURRENT => self.1.current(now, timer_lvt & LVT_PERIODIC != 0),
            register::TIMER_DIVIDE => self.1.divide(),
            _ => return None,
        })
    }

    /// Writes what is the same in both modes.
    fn write(&mut self, number: u32, value: u32, now: Time) {
        match number {
            register::TASK_PRIORITY => self.0.tpr = value & 0xff,
            register::END_OF_INTERRUPT => self.end_of_interrupt(),
            register::SPURIOUS => self.0.svr = value & 0x1ff,
            register::FIRST_LVT..=register::LAST_LVT => {
                let index = (number - register::FIRST_LVT) as usize;
                self.0.lvt[index] = value & LVT_WRITABLE;
            }
            register::TIMER_INITIAL => self.1.start(value, now),
            register::TIMER_DIVIDE => self.1.set_divide(value),
            register::SELF => self.request(value as u8),
            _ => {}
        }
    }

    /// Whether a destination that is not a broadcast names this APIC.
    fn is_addressed(&self, destination: u64, logical: bool) -> bool {
        let ours = match (logical, self.is_in_memory()) {
            (false, _) => return destination == 0,
            (true, true) => self.0.logical_destination >> 24,
            (true, false) => 1,
        };
        destination & u64::from(ours) != 0
    }

    fn require_x2apic(&self) -> Result<(), Refused> {
        let on = self.0.base & BASE_X2APIC != 0;
        on.then_some(()).ok_or(Refused)
    }

    fn request(&mut self, vector: u8) {
        if vector >= FIRST_VECTOR {
            set(&mut self.0.requested, vector);
        }
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = highest(&self.0.in_service) {
            clear(&mut self.0.in_service, vector);
        }
    }

    /// An interprocessor interrupt: only those that reach this CPU do anything.
    fn send(&mut self, icr: u64) {
        let (delivery, shorthand, destination) = (icr >> 8 & 7, icr >> 18 & 3, icr >> 32);
        let logical = icr & 1 << 11 != 0;
        let is_ours = match shorthand {
            0 => destination == 0xffff_ffff || self.is_addressed(destination, logical),
            1 | 2 => true,
            _ => false,
        };
        if is_ours && delivery == 0 {
            self.request(icr as u8);
        }
    }

    /// The higher of the task's priority and that of the interrupt in service.
    fn processor_priority(&self) -> u32 {
        let in_service = u32::from(highest(&self.0.in_service).unwrap_or(0));
        if self.0.tpr >> 4 >= in_service >> 4 {
            self.0.tpr
        } else {
            in_service & 0xf0
        }
    }
}

fn highest(words: &[u64; 4]) -> Option<u8> {
    let index = words.iter().rposition(|word| *word != 0)?;
    let bit = 63 - words[index].leading_zeros();
    Some((index as u32 * 64 + bit) as u8)
}

fn set(words: &mut [u64; 4], vector: u8) {
    words[usize::from(vector / 64)] |= 1 << (vector % 64);
}

fn clear(words: &mut [u64; 4], vector: u8) {
    words[usize::from(vector / 64)] &= !(1 << (vector % 64));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_ns(0);

    fn enabled() -> Apic {
        let mut apic = Apic::default();
        apic.set_base(apic.base() | BASE_X2APIC).unwrap();
        apic.write_msr(0x80f, 0x1ff, NOW).unwrap();
        apic
    }

    fn msi(vector: u32) -> Msi {
        Msi {
            address: 0xfee0_0000,
            data: vector,
        }
    }

    #[test]
    fn the_registers_need_x2apic_mode() {
        let mut apic = Apic::default();
        assert_eq!(apic.read_msr(0x802, NOW), Err(Refused));
        assert_eq!(apic.write_msr(0x808, 0, NOW), Err(Refused));
        assert_eq!(apic.set_base(BASE_ADDRESS | BASE_X2APIC), Err(Refused));
        apic = enabled();
        assert_eq!(apic.read_msr(0x803, NOW), Ok(u64::from(VERSION)));
        assert_eq!(apic.set_base(BASE_ADDRESS | BASE_ENABLE), Err(Refused));
    }

    #[test]
    fn a_higher_class_interrupts_a_lower_one_and_not_the_reverse() {
        let mut apic = enabled();
        apic.deliver(msi(0x41));
        assert_eq!(apic.deliverable(), Some(0x41));
        apic.accept(0x41);
        apic.deliver(msi(0x4f));
        assert_eq!(apic.deliverable(), None, "same class");
        apic.deliver(msi(0x51));
        assert_eq!(apic.deliverable(), Some(0x51));
        apic.accept(0x51);
        apic.write_msr(0x80b, 0, NOW).unwrap();
        assert_eq!(apic.deliverable(), None, "0x41 is still in service");
        apic.write_msr(0x80b, 0, NOW).unwrap();
        assert_eq!(apic.deliverable(), Some(0x4f));
        apic.write_msr(0x808, 0x40, NOW).unwrap();
        assert_eq!(apic.deliverable(), None, "task priority");
    }

    #[test]
    fn messages_for_others_and_exception_vectors_are_dropped() {
        let mut apic = enabled();
        for (address, data) in [
            (0xfee0_1000, 0x41),
            (0xfed0_0000, 0x41),
            (0xfee0_0000, 0x8),
            (0xfee0_0000, 0x441),
        ] {
            apic.deliver(Msi { address, data });
        }
        assert_eq!(apic.deliverable(), None);
    }

    #[test]
    fn an_interrupt_to_oneself_arrives() {
        let mut apic = enabled();
        apic.write_msr(0x83f, 0x33, NOW).unwrap();
        assert_eq!(apic.deliverable(), Some(0x33));
        apic.accept(0x33);
        apic.write_msr(0x80b, 0, NOW).unwrap();
        apic.write_msr(0x830, 1 << 18 | 0x34, NOW).unwrap();
        assert_eq!(apic.read_msr(0x821, NOW), Ok(1 << (0x34 - 32)));
    }

    #[test]
    fn impossible_states_are_refused() {
        let good = enabled().save();
        assert!(Apic::restored(&good).is_some());
        let mut bad = good;
        bad.registers.requested[0] = 1 << 3;
        assert!(Apic::restored(&bad).is_none());
        let mut bad = good;
        bad.registers.base = 0;
        assert!(Apic::restored(&bad).is_none());
    }

    #[test]
    fn registers_in_memory_are_those_of_the_msrs() {
        let mut apic = Apic::default();
        apic.write_memory(0xf0, 0x1ff, NOW);
        apic.write_memory(0xd0, 1 << 24, NOW);
        // A message to logical destination 1, and one to nobody here.
        for address in [0xfee0_1004, 0xfee0_2004] {
            apic.deliver(Msi {
                address,
                data: 0x41,
            });
        }
        assert_eq!(apic.read_memory(0x220, NOW), 1 << 1);
        apic.accept(0x41);
        apic.write_memory(0xb0, 0xabcd, NOW);
        assert_eq!(apic.deliverable(), None);
        // To itself by its physical id.
        apic.write_memory(0x310, 0, NOW);
        apic.write_memory(0x300, 0x51, NOW);
        assert_eq!(apic.deliverable(), Some(0x51));
        assert_eq!(apic.read_memory(0x123_0000, NOW), 0, "no such register");
    }

    #[test]
    fn the_timer_interrupts_unless_it_is_masked() {
        let mut apic = enabled();
        apic.write_msr(0x83e, 0xb, NOW).unwrap();
        for (lvt, vector) in [(0x61 | u64::from(LVT_MASKED), None), (0x61, Some(0x61))] {
            apic.write_msr(0x832, lvt, NOW).unwrap();
            apic.write_msr(0x838, 100, NOW).unwrap();
            apic.advance(Time::from_ns(99));
            assert_eq!(apic.deliverable(), None);
            apic.advance(Time::from_ns(100));
            assert_eq!(apic.deliverable(), vector);
        }
    }
}
